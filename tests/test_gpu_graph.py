"""CUDA-graph capture of forward and backward: no host synchronisation, no tuning, nothing outside the allocator."""

from __future__ import annotations

import pytest
import torch

import holdfast

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("hidden", [64, 256], ids=["single_cta", "cooperative"])
@pytest.mark.parametrize("module", [holdfast.RNN, holdfast.GRU, holdfast.LSTM], ids=lambda m: m.__name__)
def test_a_captured_training_step_replays(module, hidden):
    torch.manual_seed(0)
    layer = module(32, hidden, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(20, 8, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step() -> list[torch.Tensor]:
        y, _ = layer(x)
        return [y, *torch.autograd.grad(y.float().square().mean(), [x, *layer.parameters()])]

    with holdfast.backend("triton"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        expected = step()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_a_thousand_runs_give_the_same_bits():
    torch.manual_seed(0)
    layer = holdfast.LSTM(64, 256, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(16, 16, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad(), holdfast.backend("triton"):
        first = layer(x)[0]
        assert all(torch.equal(layer(x)[0], first) for _ in range(1000))
