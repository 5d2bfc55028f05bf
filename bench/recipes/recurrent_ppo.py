"""sb3-contrib's RecurrentPPO: one call with resets in place of its loop over steps.

    model = RecurrentPPO(MlpLstmPolicy, env)  # this file's policy; model.save and RecurrentPPO.load work as ever

sb3-contrib loops over time in Python as soon as an episode begins anywhere in a batch. Here a rollout's step and an
update are one call each. For its other policies: `class CnnLstmPolicy(WithResets, policies.CnnLstmPolicy)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.ppo_recurrent import policies
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from ... import convert
from ..tasks.maze import ACTIONS, OBSERVATIONS, TMaze
from .recipe import Recipe, with_gradients

States = tuple[Tensor, Tensor]


class WithResets:
    """A recurrent policy of sb3-contrib's, on holdfast's layers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        convert(self)  # type: ignore[type-var]

    @staticmethod
    def _process_sequence(features: Tensor, lstm_states: States, episode_starts: Tensor, lstm: Any) -> tuple[Any, Any]:
        """features [B*T, I], row after row; states [layers, B, H]; episode_starts [B*T], 1.0 where one begins."""
        B = lstm_states[0].shape[1]
        x = features.reshape(B, -1, lstm.input_size).transpose(0, 1)
        starts = episode_starts.reshape(B, -1).transpose(0, 1)
        y, states = lstm(x, lstm_states, resets=starts > 0)
        return y.transpose(0, 1).flatten(0, 1), states


class MlpLstmPolicy(WithResets, policies.MlpLstmPolicy):
    """sb3_contrib's MlpLstmPolicy with the LSTMs in one call each."""


class Mazes(VecEnv):
    """The T-maze of `holdfast bench tasks` as sb3 sees environments: an episode ends in about one step of twenty."""

    def __init__(self, mazes: int, corridor: tuple[int, int] = (12, 26), seed: int = 0) -> None:
        super().__init__(mazes, spaces.Box(0, 1, (OBSERVATIONS,), np.float32), spaces.Discrete(len(ACTIONS)))
        self.maze = TMaze(mazes, corridor, seed)

    def reset(self) -> np.ndarray:
        self.maze.start(torch.ones(self.num_envs, dtype=torch.bool))
        return self.maze.observe().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = torch.from_numpy(actions)

    def step_wait(self) -> Any:
        rewards, ended = self.maze.step(self.actions)
        return self.maze.observe().numpy(), rewards.numpy(), ended.numpy(), [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        pass

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError


def agent(policy: type[nn.Module], B: int, H: int, T: int, seed: int = 0) -> RecurrentPPO:
    """PPO on B mazes, T steps a rollout; minibatches of a quarter of it."""
    return RecurrentPPO(
        policy,
        Mazes(B, seed=seed),
        n_steps=T,
        batch_size=B * T // 4,
        n_epochs=4,
        policy_kwargs={"lstm_hidden_size": H, "net_arch": [], "enable_critic_lstm": False, "shared_lstm": True},
        seed=seed,
        device="cpu",
    )


def learning(policy: type[nn.Module], B: int, H: int, T: int) -> Any:
    """`learn` for one rollout and its updates; returns the values of the rollout [T, B]."""
    model = agent(policy, B, H, T)

    def learn() -> Tensor:
        set_random_seed(0)  # the same actions and minibatches, whichever way runs
        model.learn(B * T)
        return torch.from_numpy(model.rollout_buffer.values.copy())

    return learn


def one_update(policy: type[Any], B: int, H: int, T: int) -> Any:
    """The LSTM of a batch [T, B], 5% of whose steps begin an episode, forwards and backwards."""
    torch.manual_seed(0)
    lstm = nn.LSTM(64, H)
    if issubclass(policy, WithResets):
        convert(lstm)
    features, states = torch.randn(B * T, 64), (torch.randn(1, B, H), torch.randn(1, B, H))
    starts = (torch.rand(B * T) < 0.05).float()

    def update() -> Tensor:
        lstm.zero_grad()
        y, _ = policy._process_sequence(features, states, starts, lstm)
        y.square().mean().backward()
        return with_gradients(y, lstm)

    return update


def one_step(policy: type[Any], B: int, H: int) -> Any:
    """The LSTM at one step of a rollout where one episode of B begins."""
    torch.manual_seed(0)
    lstm = nn.LSTM(64, H)
    if issubclass(policy, WithResets):
        convert(lstm)
    features, states = torch.randn(B, 64), (torch.randn(1, B, H), torch.randn(1, B, H))
    starts = (torch.arange(B) == 1).float()

    @torch.no_grad()
    def step() -> Tensor:
        return policy._process_sequence(features, states, starts, lstm)[0]

    return step


def recipes(quick: bool) -> Iterator[Recipe]:
    """Rollout, update and the whole of learn, over the shapes that people train."""
    shapes = [(8, 64), (16, 128)] if quick else [(B, H) for B in (8, 16, 64) for H in (64, 128, 256)]
    T = 32 if quick else 128
    for what, way, sizes in (("a step", one_step, ()), ("update", one_update, (T,)), ("learn", learning, (T,))):
        for B, H in shapes:
            ways = {
                name: way(policy, B, H, *sizes)
                for name, policy in (("sb3-contrib", policies.MlpLstmPolicy), ("resets=", MlpLstmPolicy))
            }
            yield Recipe(f"RecurrentPPO, {what}: B={B} H={H}", ways, tolerance=2e-4 if what == "learn" else 2e-5)
