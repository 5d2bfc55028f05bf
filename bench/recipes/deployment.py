"""Deployment: torch.export and ONNX take holdfast's modules as they are, TorchScript takes them after to_torch."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import convert, to_torch
from .recipe import Recipe


class Detector(nn.Module):
    """Frames [B, T, 40] to a score each, [B, T]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, hidden_size, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0]).squeeze(-1)


def recipes(quick: bool) -> Iterator[Recipe]:
    """Exported at one batch and length, run at others."""
    import onnxruntime

    H, (B, T) = (16, (2, 9)) if quick else (128, (3, 100))
    torch.manual_seed(0)
    model = Detector(H).eval()
    ours = convert(copy.deepcopy(model))
    example, x = torch.randn(4, 12, 40), torch.randn(B, T, 40)
    any_size = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)

    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        exported = torch.export.export(ours, (example,), dynamic_shapes=any_size).module()
        onnx = str(Path(folder, "detector.onnx"))
        torch.onnx.export(
            ours, (example,), onnx, dynamo=True, dynamic_shapes=any_size, input_names=["x"], verbose=False
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(onnx, options)
        script = torch.jit.script(to_torch(copy.deepcopy(ours)))

    @torch.no_grad()
    def run(module: nn.Module) -> Tensor:
        return module(x)

    yield Recipe(
        f"Deployment: B={B} T={T} H={H}",
        {
            "torch.nn": lambda: run(model),
            "torch.export": lambda: run(exported),
            "ONNX": lambda: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]),
            "to_torch, scripted": lambda: run(script),
        },
    )
