"""What the gates and states of a call were: the third result of `return_gates=True`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .call.records import Call


@dataclass(frozen=True, repr=False)
class Gates:
    """Gate activations and states of every step, for each layer a dict by name; `gates[0]["f"]` of an LSTM.

    Names: LSTM i, f, g, o; GRU r, z, n; RNN n; a cell of your own its gate_names; and the states "h" and, for an
    LSTM, "c". n of an RNN is h before zoneout.

    A tensor is laid out as the output, [T, B, D*H], directions side by side; h has D*P features with proj_size. Of a
    PackedSequence it is padded, with the rows in the order of the sequences that were packed. Past a row's end it is
    zero. Detached, unless the call asked for return_gates="differentiable".
    """

    layers: tuple[dict[str, Tensor], ...]

    def __getitem__(self, layer: int) -> dict[str, Tensor]:
        return self.layers[layer]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.layers)

    def __repr__(self) -> str:
        layers = "; ".join(", ".join(f"{name} {[*t.shape]}" for name, t in layer.items()) for layer in self.layers)
        return f"Gates({layers})"


def detached(traces: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: trace.detach() for name, trace in traces.items()}


def gates_as_asked(call: Call, traces: list[dict[str, Tensor]]) -> Gates:
    """Traces [T, B, ...] of each layer in the form of the call's output."""

    def as_asked(trace: Tensor) -> Tensor:
        if call.unsorted_indices is not None:
            trace = trace.index_select(1, call.unsorted_indices)
        if not call.batched:
            return trace.squeeze(1)
        return trace.transpose(0, 1) if call.layers.batch_first else trace

    return Gates(tuple({name: as_asked(trace) for name, trace in layer.items()} for layer in traces))
