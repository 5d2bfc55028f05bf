"""A call in a graph that becomes ONNX: one of ONNX's own LSTM, GRU and RNN for each layer, whatever runs elsewhere.

An ExportedProgram that is handed to torch.onnx.export gets there too: the exporter runs the ops of its graph once more.

They have what `lengths=` means (sequence_lens), both directions, initial states, peepholes, the older GRU and most
activations, and any length and batch size, which torch's exporter loses for an RNN. Both of its ways get the same node:
the newer one as torch.onnx.ops.symbolic_multi_out, TorchScript's as the symbolic of an autograd function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.extras import Extras
from ..call.records import Call, Layers, as_hx
from ..eager.reference import reference_of
from ..heads import densely
from .options import Options, dtype_named
from .projection import Projected

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""ONNX's order of gates in torch's numbers: i, o, f, g and z, r, n."""

ACTIVATIONS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    "tanh": ("Tanh", (), ()),
    "sigmoid": ("Sigmoid", (), ()),
    "relu": ("Relu", (), ()),
    "linear": ("Affine", (1.0,), (0.0,)),
    "hard_sigmoid": ("HardSigmoid", (1 / 6,), (0.5,)),
    "softsign": ("Softsign", (), ()),
    "softplus": ("Softplus", (), ()),
    "elu": ("Elu", (1.0,), ()),
}
"""ONNX's name of an activation with its alpha and beta."""

FAMILIES = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "gru_reset_before": "GRU", "lstm": "LSTM"}
FAMILIES["lstm_peephole"] = "LSTM"


def run_onnx(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A checked call as ONNX nodes: (output, final states).

    Raises RuntimeError for what ONNX's operators lack, naming it.
    """
    layers = call.layers
    missing = _beyond_onnx(call)
    if missing:
        raise RuntimeError(f"ONNX's recurrent operators have no {missing}, so this call cannot be exported to ONNX")
    x = call.x.transpose(0, 1) if layers.batch_first else call.x
    each = layers.directions * layers.weights_each
    finals = []
    for layer in range(layers.num_layers):
        if layer > 0 and layers.drops:
            x = F.dropout(x, layers.dropout)
        rows = slice(layer * layers.directions, (layer + 1) * layers.directions)
        weights: Sequence[Tensor] = layers.weights[layer * each : (layer + 1) * each]
        initial: list[Tensor] | None = [state[rows] for state in call.states] or None
        projected = None
        if layers.proj_size > 0:
            projected = Projected(x, weights, initial, Extras(call.lengths), layers.directions, x.dtype)
            x, weights, initial, _ = projected.as_plain()
        x, final = _one_layer(layers, x, weights, initial, call.lengths)
        if projected is not None:
            x, final = projected.outputs(x, final)
        finals.append(final)
    y = x.transpose(0, 1) if layers.batch_first else x
    return y, tuple(torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True))


def layer_as_onnx(
    x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor | None], options: Options, extras: Extras
) -> list[Tensor]:
    """y and the final states of `holdfast::layer`, of a program that is exported once more, as ONNX nodes."""
    reference, each = reference_of(options.cell), len(weights) // options.directions
    H = weights[1].shape[0] // reference.gates
    drawn = extras.dropout is not None or extras.zoneout is not None
    layers = Layers(
        cell=options.cell,
        input_size=x.shape[-1],
        hidden_size=H,
        proj_size=0,
        num_layers=1,
        directions=options.directions,
        batch_first=options.batch_first,
        bias=each > 3,
        dropout=0.0,
        training=False,
        recurrent_dropout=0.0,
        zoneout=(1.0 if drawn else 0.0,) * reference.states,
        num_heads=H // weights[1].shape[1],
        keep=None,
        weights=list(weights),
        names=[],
    )
    hx = as_hx(tuple(state for state in initial if state is not None)) if initial[0] is not None else None
    x = x.to(dtype_named(options.dtype))
    call = Call(layers, x, hx, batch_sizes=extras.starts, lengths=extras.lengths, resets=extras.resets)
    y, states = run_onnx(densely(call))
    return [y.transpose(0, 1) if options.batch_first else y, *states]


def _beyond_onnx(call: Call) -> str:
    """What of this call ONNX's operators lack, or nothing."""
    layers = call.layers
    family, chosen = _family(layers.cell)
    if family not in FAMILIES or not set(chosen) <= set(ACTIVATIONS):
        return f"cell {layers.cell!r}"
    if call.batch_sizes is not None:
        return "PackedSequence (lengths= they have)"
    if call.return_gates:
        return "return_gates"
    if call.resets is not None:
        return "resets"
    return "recurrent dropout or zoneout" if layers.noisy else ""


def _family(cell: str) -> tuple[str, list[str]]:
    """A cell's family, and its activation and recurrent activation where it names them."""
    family, _, chosen = cell.partition("(")
    return family, chosen.removesuffix(")").split(",") if chosen else []


def _one_layer(
    layers: Layers, x: Tensor, weights: Sequence[Tensor], initial: list[Tensor] | None, lengths: Tensor | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """y [T, B, D*H] and the final states [D, B, H] of a layer without a projection; weights direction by direction."""
    family, _ = _family(layers.cell)
    op, D, H = FAMILIES[family], layers.directions, layers.hidden_size
    each = len(weights) // D
    by_direction = [weights[start : start + each] for start in range(0, len(weights), each)]

    def gates(k: int) -> Tensor:
        """Weight number k, [D, G*H, ..], in ONNX's order of gates."""
        parts = (own[k].to(x.dtype) for own in by_direction)
        # Slices: what ONNX's optimizers compute in advance. They leave a Split for every call.
        return torch.stack([torch.cat([t[gate * H : (gate + 1) * H] for gate in GATES[op]]) for t in parts])

    bias = torch.cat((gates(2), gates(3)), 1) if layers.bias else None
    inputs = [gates(0), gates(1), bias, None if lengths is None else lengths.to(torch.int32)]
    inputs += [None] * layers.n_states if initial is None else [state.to(x.dtype) for state in initial]
    if family == "lstm_peephole":  # torch's order is i, f, o
        ours = (own[-1].to(x.dtype) for own in by_direction)
        inputs.append(torch.stack([torch.cat((i, o, f)) for i, f, o in ours]))
    y, *final = _node(op, _attributes(layers, family), layers.n_states, x, *inputs)
    if lengths is not None and initial is not None:
        final = [torch.where((lengths > 0)[:, None], f, i) for f, i in zip(final, initial, strict=True)]
    y = y.transpose(1, 2).flatten(2) if D == 2 else y.squeeze(1)
    return y, final


def _attributes(layers: Layers, family: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "hidden_size": layers.hidden_size,
        "direction": "bidirectional" if layers.directions == 2 else "forward",
    }
    _, chosen = _family(layers.cell)
    if family.startswith("gru"):
        attributes["linear_before_reset"] = int(family == "gru")
    if family.startswith("rnn"):
        chosen = [family.removeprefix("rnn_")]
    elif chosen:
        activation, recurrent = chosen
        chosen = [recurrent, activation] + [activation] * (layers.n_states - 1)
    if chosen:
        named = [ACTIVATIONS[name] for name in chosen] * layers.directions
        attributes["activations"] = [name for name, _, _ in named]
        alphas, betas = (list(sum((each[k] for each in named), ())) for k in (1, 2))
        attributes |= {"activation_alpha": alphas} if alphas else {}
        attributes |= {"activation_beta": betas} if betas else {}
    return attributes


def _node(op: str, attributes: dict[str, Any], states: int, x: Tensor, *inputs: Tensor | None) -> Sequence[Tensor]:
    """The node's results: Y [T, D, B, H] and a state [D, B, H] each."""
    if torch.jit.is_tracing():
        return _TorchScriptNode.apply(op, attributes, states, x, *inputs)
    w_hh = inputs[1]
    assert w_hh is not None
    final = (w_hh.shape[0], x.shape[1], w_hh.shape[2])
    shapes = [(x.shape[0], *final), *[final] * states]
    # A trailing input that is not there is left out: ONNX knows no name for it.
    given = [x, *inputs]
    while given[-1] is None:
        given.pop()
    return torch.onnx.ops.symbolic_multi_out(op, given, attributes, dtypes=[x.dtype] * (1 + states), shapes=shapes)


class _TorchScriptNode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: str, attributes: dict[str, Any], states: int, x: Tensor, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Zeros of the right shapes: the exporter reads shapes and dtypes, and nothing of what it traced is kept."""
        w_hh = inputs[1]
        assert w_hh is not None
        T, B = x.shape[:2]
        D, _, H = w_hh.shape
        return x.new_zeros(T, D, B, H), *[x.new_zeros(D, B, H) for _ in range(states)]

    @staticmethod
    def symbolic(g: Any, op: str, attributes: dict[str, Any], states: int, *inputs: Any) -> Any:
        absent = [g.op("prim::Constant") if value is None else value for value in inputs]
        for value, given in zip(absent, inputs, strict=True):
            if given is None:
                value.setType(torch._C.OptionalType.ofTensor())
        kinds = {int: "i", float: "f", str: "s"}
        told = {
            f"{name}_{kinds[type(value[0] if isinstance(value, list) else value)]}": value
            for name, value in attributes.items()
        }
        return g.op(op, *absent, outputs=1 + states, **told)
