"""The names of the suites and what each is for; importing it loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True)
class Suite:
    """A suite by name.

    needs_gpu:  without one it only rehearses.
    on_cpu:     it measures the CPU even where there is a GPU.
    any_cell:   it takes --cell: that one in place of its own, beside its plain loop.
    """

    name: str
    summary: str
    needs_gpu: bool = False
    on_cpu: bool = False
    any_cell: bool = False

    def run(self, session: Session) -> None:
        import_module(f".{self.name}", __package__).run(session)


SUITES = {
    suite.name: suite
    for suite in (
        Suite("smoke", "A few small layers through every provider: seconds, anywhere.", any_cell=True),
        Suite("floors", "What the machine can do at most: copies, products, exchanges, resident weights."),
        Suite("home", "cuDNN's home ground: fp16 LSTM, H 256 to 1024, B 8 to 128.", needs_gpu=True),
        Suite("grid", "RNN, GRU, LSTM in three dtypes, H 64 to 2048, B 1 to 256.", needs_gpu=True, any_cell=True),
        Suite("flashrnn", "FlashRNN's head-dim figure: B=16, T=1024, 768 = heads x dim.", needs_gpu=True),
        Suite("torchrl", "TorchRL's block-diagonal GRU, 8 heads, in its figures' shapes.", needs_gpu=True),
        Suite("features", "Ragged, packed, resets, bidirectional, layers, each beside the plain layer."),
        Suite("memory", "Bytes held between forward and backward."),
        Suite("latency", "Single steps, streams, and what a call costs on the host."),
        Suite("episodes", "Resets on the CPU beside a loop over steps, as recurrent PPO has them.", on_cpu=True),
        Suite("host", "The eager path beside torch.nn on the CPU.", on_cpu=True),
    )
}

ON_A_GPU = (
    "smoke",
    "floors",
    "home",
    "flashrnn",
    "torchrl",
    "features",
    "memory",
    "latency",
    "episodes",
    "host",
    "grid",
)
ON_A_CPU = ("smoke", "host", "episodes", "features", "latency", "memory")
"""What `holdfast bench auto` runs, in order of worth."""
