"""FlashRNN (pip install flashrnn) as a provider: https://github.com/NX-AI/flashrnn, ICLR 2025.

Its function takes W_ih x + b already computed, so each backend is timed twice: with the input GEMM, as every other
provider, and without it, as its own figures are. Shapes, from its README and `vanilla/*.py`: Wx [B, T, G, heads, H],
R [G, heads, H, H] with the new unit first, b [G, heads, H], result [S, B, T, heads, H] with h first.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.case import Phase
from ..method.numbers import Numbers, named
from .provider import Calls, Prepared, Unavailable

BACKENDS = ("cuda_fused", "cuda", "triton_fused", "vanilla_fwbw", "vanilla")
FUNCTIONS = {"rnn_tanh": "elman", "gru": "gru", "lstm": "lstm", "slstm": "slstm"}
# Its GRU: recurrent gates n, r, z; input gates r, z, n; biases n of h, r, z, n of x.
GRU_RECURRENT = (2, 0, 1)


class FlashRNN:
    """One backend of FlashRNN.

    with_gemm:  False leaves W_ih x + b_ih out of the time, and its gradient out of the results.
    """

    is_peer = True

    def __init__(self, backend: str, *, with_gemm: bool = True) -> None:
        self.backend, self.with_gemm = backend, with_gemm
        self.name = f"FlashRNN {backend}{'' if with_gemm else ' without input GEMM'}"

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        case = numbers.case
        if case.layers > 1 or case.directions > 1 or case.sequences != "dense":
            raise Unavailable("FlashRNN has no layers, directions, lengths or resets")
        try:
            flashrnn: Any = importlib.import_module("flashrnn").flashrnn
        except ImportError as error:
            raise Unavailable(f"not installed ({error}); pip install flashrnn") from None
        if numbers.device.type != "cuda" and self.backend != "vanilla":
            raise Unavailable("this backend needs a GPU")
        calls = self._calls(numbers, flashrnn, phase)
        algorithm = "cuda" if case.cell == "gru" and self.backend == "cuda_fused" else self.backend
        return calls.prepared(phase, algorithm=algorithm)

    def _calls(self, numbers: Numbers, flashrnn: Any, phase: Phase) -> Calls:
        case = numbers.case
        T, B, heads, H = case.length, case.batch_size, case.heads, case.hidden_size
        dtype = str(case.dtype).removeprefix("torch.")
        recurrent, bias = _recurrent(numbers), _bias(numbers)
        w_ih, b_ih = _stacked(numbers, "weight_ih_l0"), _stacked(numbers, "bias_ih_l0")
        leaves = {"R": recurrent, "b": bias, "w_ih": w_ih, "b_ih": b_ih}
        for leaf in leaves.values():
            leaf.requires_grad_(phase == "training")

        def project(x: Tensor) -> Tensor:
            gates = F.linear(x.transpose(0, 1), w_ih.flatten(0, 2), b_ih.flatten())
            return gates.view(B, T, -1, heads, H)

        def loop(wx: Tensor) -> Tensor:
            states = flashrnn(wx, recurrent, bias, function=FUNCTIONS[case.cell], backend=self.backend, dtype=dtype)
            return states[0][0].transpose(0, 1).reshape(T, B, heads * H)

        if not self.with_gemm:
            # Wx takes the place of x, and with it the names of its gradients; y is what is left to compare.
            calls = Calls(numbers, loop, {}, case.dtype)
            with torch.no_grad():
                calls.xs = [project(x).contiguous() for x in calls.xs]
            leaves_of_loop = [recurrent, bias]

            def loop_alone(wx: Tensor) -> Tensor:
                for leaf in leaves_of_loop:
                    leaf.grad = None
                return loop(wx)

            calls.forward = loop_alone
            calls.results = lambda: {"y": calls.y.detach()}  # type: ignore[method-assign, union-attr]
            return calls
        calls = Calls(numbers, lambda x: loop(project(x)), leaves, case.dtype)
        plain = calls.results
        calls.results = lambda: _as_torch(plain(), numbers)  # type: ignore[method-assign]
        return calls


def _stacked(numbers: Numbers, name: str) -> Tensor:
    """A parameter of all heads, [G, heads, H, ...]."""
    H = numbers.case.hidden_size
    of_heads = [w[name].unflatten(0, (-1, H)) for w in numbers.weights]
    return torch.stack(of_heads, 1).to(numbers.device, numbers.case.dtype).contiguous()


def _recurrent(numbers: Numbers) -> Tensor:
    weights = _stacked(numbers, "weight_hh_l0")
    return weights[list(GRU_RECURRENT)].contiguous() if numbers.case.cell == "gru" else weights


def _bias(numbers: Numbers) -> Tensor:
    bias = _stacked(numbers, "bias_hh_l0")
    if numbers.case.cell == "gru":
        r, z, n = bias.unbind(0)
        return torch.stack([n, r, z, torch.zeros_like(n)])
    return bias


def _as_torch(results: dict[str, Tensor], numbers: Numbers) -> dict[str, Tensor]:
    """Its gradients by torch.nn's names and gate order."""
    found = {"y": results["y"]}
    if "x" not in results:
        return found
    found["x"] = results["x"]
    recurrent = results["R"][[1, 2, 0]] if numbers.case.cell == "gru" else results["R"]
    for head in range(numbers.case.heads):
        found[named("weight_hh_l0", head)] = recurrent[:, head].flatten(0, 1)
        found[named("weight_ih_l0", head)] = results["w_ih"][:, head].flatten(0, 1)
        found[named("bias_ih_l0", head)] = results["b_ih"][:, head].flatten()
    return found
