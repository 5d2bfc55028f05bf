"""Writes the files of this folder: what a user of this version may have on disk.

They were written at commit 836040f and stay as they are; another version's files belong in another folder.

    python tests/data/previous_version/make.py
"""

from pathlib import Path

import own_cell
import torch
from torch import nn
from torch.export import Dim

import holdfast
from holdfast.kernels.interpreter import interpret

HERE = Path(__file__).parent
T, B, INPUT, HIDDEN = 4, 2, 3, 4


def modules():
    """Modules by name, with the arguments of a call of each."""
    x = torch.randn(T, B, INPUT)
    lengths, resets = torch.tensor([4, 2]), torch.rand(T, B) < 0.3
    noisy = {"recurrent_dropout": 0.25, "zoneout": (0.2, 0.1)}
    found = {
        "RNN": (holdfast.RNN(INPUT, HIDDEN, nonlinearity="relu", bidirectional=True), (x,), {}),
        "GRU": (holdfast.GRU(INPUT, HIDDEN, 2, batch_first=True, zoneout=0.1), (x.transpose(0, 1),), {}),
        "GRU, options": (
            holdfast.GRU(INPUT, HIDDEN, reset_after=False, activation="softsign", recurrent_activation="hard_sigmoid"),
            (x,),
            {"lengths": lengths},
        ),
        "LSTM": (holdfast.LSTM(INPUT, HIDDEN, 2, bidirectional=True), (x,), {"lengths": lengths, "resets": resets}),
        "LSTM, options": (
            holdfast.LSTM(INPUT, HIDDEN, forget_bias=1.0, peepholes=True, learn_initial_state=True, **noisy),
            (x,),
            {},
        ),
        "LSTM, projected": (holdfast.LSTM(INPUT, HIDDEN, proj_size=2), (x,), {}),
        "Recurrent": (holdfast.Recurrent("gru_reset_before", INPUT, HIDDEN), (x,), {"resets": resets}),
        "Recurrent, own cell": (holdfast.Recurrent(own_cell.NAME, INPUT, HIDDEN, 2), (x,), {"lengths": lengths}),
        "Stateful": (holdfast.Stateful(holdfast.GRU(INPUT, HIDDEN)), (x,), {}),
        "converted": (holdfast.convert(nn.LSTM(INPUT, HIDDEN)), (x,), {}),
        "LSTMCell": (holdfast.LSTMCell(INPUT, HIDDEN), (x[0],), {}),
    }
    found["LSTM"][0].keep = "recompute"
    found["Stateful"][0](x.flip(0))  # a state to carry on from
    return {name: (module.eval(), *call) for name, (module, *call) in found.items()}


def bits_of_torch():
    """What torch.nn makes of numbers like those of the files: on another processor it may round otherwise."""
    torch.manual_seed(1)
    x = torch.randn(T, B, INPUT)
    layers = [kind(INPUT, HIDDEN, 2, bidirectional=True) for kind in (nn.RNN, nn.GRU, nn.LSTM)]
    with torch.no_grad():
        return torch.cat([layer(x)[0].flatten() for layer in layers])


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = holdfast.LSTM(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x):
        return self.head(self.recurrent(x)[0])


def save(program, name):
    """Without the stack traces, which name the folders of the machine."""
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key in ("val", "from_node")}
    torch.export.save(program, HERE / name)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    calls = modules()
    torch.save(calls, HERE / "modules.pt")
    torch.save({name: calls[name][0].state_dict() for name in ("LSTM, options", "Stateful")}, HERE / "state_dicts.pt")
    results = {name: module(*args, **options) for name, (module, args, options) in calls.items()}
    tagger, x = Tagger().eval(), torch.randn(B, T, INPUT)
    torch.save(tagger.state_dict(), HERE / "tagger.pt")
    sizes = ({0: Dim("B", min=2), 1: Dim("T", min=2)},)
    with interpret(seed=0), holdfast.backend("triton"):
        program = torch.export.export(tagger, (x,), dynamic_shapes=sizes)
        assert [node.target for node in program.graph.nodes].count(torch.ops.holdfast.layer.default) == 2
        save(program, "kernels.pt2")
        results["kernels.pt2"] = tagger(x)
    with holdfast.backend("eager"):
        program = torch.export.export(tagger, (x,))
        save(program, "eager.pt2")
        torch.onnx.export(program, verbose=False).save(HERE / "eager.onnx")
        results["eager.pt2"] = results["eager.onnx"] = tagger(x)
    torch.save({"x": x, "results": results, "bits of torch": bits_of_torch()}, HERE / "results.pt")


if __name__ == "__main__":
    main()
