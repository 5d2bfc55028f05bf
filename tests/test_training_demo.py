"""A short real run: the demo's character models on the demo's text, through the kernels and through torch.nn."""

import copy

import pytest
import torch
from torch import nn

import holdfast
from holdfast.bench.demo.model import CharModel, detach
from holdfast.bench.demo.text import Vocabulary, chunks, python_docs, streams
from holdfast.kernels.interpreter import interpret

STREAMS, LENGTH, UPDATES, HIDDEN = 4, 16, 40, 16


def losses(model, text, dtype):
    """The loss of each update in `dtype`: the demo's way of training, the state carried from chunk to chunk."""
    model = copy.deepcopy(model).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    state, curve = None, []
    for inputs, targets in list(chunks(text, LENGTH))[:UPDATES]:
        logits, state = model(inputs, state)
        state = detach(state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    return torch.tensor(curve, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["save", "recompute"])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_loss_curves_agree_step_by_step(cell, keep, monkeypatch):
    """Each loss is as far from float64's as twice the farthest of torch.nn's so far, plus roundings of the loss itself.

    Errors grow from step to step in every dtype, so torch.nn's own growth is the measure.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    text = python_docs().train[: STREAMS * (LENGTH * UPDATES + 1)]
    vocabulary = Vocabulary(text)
    columns = streams(vocabulary.encode(text), STREAMS)
    torch.manual_seed(0)
    model = CharModel(cell, len(vocabulary), HIDDEN)
    model.recurrent.keep = keep
    with interpret(seed=0) as interpreter, holdfast.backend("triton"):
        ours = losses(model, columns, torch.float32)
    assert interpreter.launches == 2 * UPDATES
    with holdfast.backend("eager"):
        reference = holdfast.to_torch(copy.deepcopy(model))
        torchs, exact = losses(reference, columns, torch.float32), losses(reference, columns, torch.float64)
    allowed = 2 * (torchs - exact).abs().cummax(0).values + 2 * torch.finfo(torch.float32).eps * exact
    errors = (ours - exact).abs()
    assert (errors <= allowed).all(), (errors / allowed).max()
    assert ours[-5:].mean() < 0.85 * ours[0]
