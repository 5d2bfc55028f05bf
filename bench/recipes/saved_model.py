"""Saving and loading: state_dicts go both ways; a whole module that is pickled needs holdfast to be read.

So what is to be read without holdfast is saved as a state_dict, or after `holdfast.to_torch(model)`. Frameworks that
build the model anew before they load weights (sb3's zip, darts, gluonts) build torch.nn's: load within
`with holdfast.patch()`, or convert what was loaded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ... import convert, to_torch
from .recipe import Recipe


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GRU(16, 32, batch_first=True))


def saved(thing: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def recipes(quick: bool) -> Iterator[Recipe]:
    """What a trained model answers after each way of saving and loading it."""
    torch.manual_seed(0)
    trained = model().eval()
    x = torch.randn(4, 20, 8)

    weights_of_torchs = convert(model()).eval()
    weights_of_torchs.load_state_dict(torch.load(saved(trained.state_dict()), weights_only=True))
    weights_of_ours = model().eval()
    weights_of_ours.load_state_dict(torch.load(saved(weights_of_torchs.state_dict()), weights_only=True))
    whole = torch.load(saved(weights_of_torchs), weights_only=False)  # needs holdfast
    without = torch.load(saved(to_torch(convert(model()))), weights_only=False)  # needs torch alone
    without.load_state_dict(trained.state_dict())

    def answer(reloaded: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                return reloaded(x)[0]

        return run

    ways = {
        "torch.nn": trained,
        "torch.nn's weights in holdfast": weights_of_torchs,
        "holdfast's weights in torch.nn": weights_of_ours,
        "pickled whole": whole,
        "pickled after to_torch": without.eval(),
    }
    yield Recipe("Saved and loaded", {name: answer(each) for name, each in ways.items()}, tolerance=0.0)
