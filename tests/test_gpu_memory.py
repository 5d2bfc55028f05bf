"""What is held between forward and backward, beside cuDNN's reserve for the same problem."""

from __future__ import annotations

import pytest
import torch

import holdfast


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_recompute_holds_at_most_half_of_cudnns_reserve(name):
    ours = getattr(holdfast, name)(64, 256, device="cuda", dtype=torch.float16)
    ours.keep = "recompute"
    torchs = getattr(torch.nn, name)(64, 256, device="cuda", dtype=torch.float16)
    x = torch.randn(100, 16, 64, device="cuda", dtype=torch.float16)
    reserves = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.uint8:  # of what cuDNN's node saves, only the reserve is bytes
            reserves.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torchs(x)
    assert len(reserves) == 1
    assert ours.explain(x).kept_bytes <= reserves[0] / 2
