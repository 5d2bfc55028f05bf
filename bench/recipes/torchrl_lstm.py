"""TorchRL: an LSTM that reads `is_init`, in one call, where LSTMModule cuts episodes apart and pads them.

policy = TensorDictSequential(lstm_module(5, 64), ...)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import LSTMModule

from ... import LSTM
from .recipe import Recipe, with_gradients


class ResetLSTM(nn.Module):
    """An LSTM over rollouts [B, T] that cross episodes."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.lstm = LSTM(input_size, hidden_size, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, is_init: Tensor) -> Tensor:
        """[B, T, H] of x [B, T, I], the states that were stored with each step [B, T, 1, H], is_init [B, T, 1]."""
        before = h[:, 0].transpose(0, 1).contiguous(), c[:, 0].transpose(0, 1).contiguous()
        y, _ = self.lstm(x, before, resets=is_init.squeeze(-1))
        return y


STATES = ("recurrent_state_h", "recurrent_state_c")


def lstm_module(input_size: int, hidden_size: int) -> TensorDictModule:
    """Takes "observation", the stored states and "is_init", writes "features"."""
    return TensorDictModule(
        ResetLSTM(input_size, hidden_size), in_keys=["observation", *STATES, "is_init"], out_keys=["features"]
    )


def recipes(quick: bool) -> Iterator[Recipe]:
    """An update on B rollouts of T steps, 5% of which begin an episode."""
    B, T, H = (4, 16, 32) if quick else (16, 128, 128)
    torch.manual_seed(0)
    zeros = torch.zeros(B, T, 1, H)
    is_init = torch.rand(B, T, 1) < 0.05
    data = {"observation": torch.randn(B, T, 64), STATES[0]: zeros, STATES[1]: zeros, "is_init": is_init}
    rollout = TensorDict(data, [B, T])
    theirs = LSTMModule(
        64, H, in_key="observation", out_key="features", default_recurrent_mode=True, recurrent_backend="pad"
    )
    ours = lstm_module(64, H)
    ours.module.lstm.load_state_dict(theirs.lstm.state_dict())

    def update(module: nn.Module) -> Tensor:
        module.zero_grad()
        y = module(rollout.clone())["features"]
        y.square().mean().backward()
        return with_gradients(y, module)

    yield Recipe(
        f"TorchRL, update: B={B} H={H}",
        {"LSTMModule": partial(update, theirs), "resets=is_init": partial(update, ours)},
    )
