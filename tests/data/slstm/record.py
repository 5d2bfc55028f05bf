"""Made flashrnn.pt: sLSTM by the vanilla backend of flashrnn 1.0.8 (https://github.com/NX-AI/flashrnn), in float64.

    pip install --no-deps flashrnn==1.0.8
    python tests/data/slstm/record.py

Layouts are FlashRNN's: Wx [T, B, gates, heads, D], R [heads, D before, gates, D], b [gates, heads, D], states
[1, B, states, heads, D]; gates i, f, z, o and states h, c, n, m. dh [T, B, heads, D] is a gradient of h alone.
"""

from pathlib import Path

import torch


def recorded(heads: int, head_size: int, *, begun: bool, seed: int) -> dict[str, torch.Tensor]:
    """One call: what goes in, all states, and the gradients of Wx, R, b and the initial h, c and n.

    begun:  whether the initial states are those of a sequence that has begun, n at least 1, or zeros.
    """
    from flashrnn.flashrnn.vanilla import flashrnn_forward, flashrnn_pointwise_function_registry

    T, B = 5, 2
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    wx, r = 2 * randn(T, B, 4, heads, head_size), randn(heads, head_size, 4, head_size) / head_size**0.5
    b, dh = randn(4, heads, head_size), randn(T, B, heads, head_size)
    h, c, n, m = (
        randn(1, B, heads, head_size) if begun else torch.zeros(1, B, heads, head_size).double() for _ in "hcnm"
    )
    given = [wx, r, b, h, c, 1 + n.abs() if begun else n, m]
    for tensor in given:
        tensor.requires_grad_()
    states = torch.stack(given[3:], 2)
    step = flashrnn_pointwise_function_registry["slstm"]
    found, last = flashrnn_forward(wx, states, r, b, step)
    gradients = torch.autograd.grad(found[:, :, 0], given[:6], dh)
    names = ("Wx", "R", "b", "h", "c", "n")
    results = {"Wx": wx, "R": r, "b": b, "states": states, "dh": dh, "found": found, "last": last}
    results |= {f"d {name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    return {name: tensor.detach().clone() for name, tensor in results.items()}


CALLS = {"zeros": (1, 5, False), "begun": (1, 5, True), "heads": (2, 3, True)}


def all_calls() -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: recorded(heads, size, begun=begun, seed=seed)
        for seed, (name, (heads, size, begun)) in enumerate(CALLS.items())
    }


if __name__ == "__main__":
    torch.save(all_calls(), Path(__file__).with_name("flashrnn.pt"))
