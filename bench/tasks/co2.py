"""Weekly CO2 at Mauna Loa, 1958 to 2001 (from statsmodels): one value ahead, and a whole year ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .models import Decoder, LastStep, Recurrent, batches_of
from .task import Task

STEP = 4  # weeks between two values that a model reads, or that it forecasts
YEAR = 13  # steps
WINDOW = 2 * YEAR + 1  # values: two years, so that those of the same week a year ago are among them
SPLIT = "1990-01-01"


@dataclass(frozen=True)
class Windows:
    """Windows of a series and what follows them, in the series' unit.

    past:    [WINDOW, N], STEP weeks apart, the last of them the newest; a missing week repeats the one before.
    future:  [steps, N], STEP weeks apart, the first STEP weeks after the newest of past; NaN where nobody measured.
    """

    past: np.ndarray
    future: np.ndarray


def weekly_co2() -> tuple[np.ndarray, np.ndarray]:
    """The weekly series, in ppm with NaN for missing weeks, up to SPLIT and from then on."""
    from statsmodels.datasets import co2

    series = co2.load_pandas().data["co2"]
    before = series.index < SPLIT
    return series[before].to_numpy(), series[~before].to_numpy()


def windows(series: np.ndarray, steps: int) -> Windows:
    """Every window of a weekly series [weeks] with the `steps` values after it.

    Raises ValueError where the series is shorter than one window and its future.
    """
    offsets = STEP * np.arange(WINDOW + steps)
    starts = np.arange(len(series) - offsets[-1])
    if not len(starts):
        raise ValueError(f"a window and its future span {offsets[-1] + 1} weeks, the series has {len(series)}")
    where = offsets[:, None] + starts
    # Only the past fills a gap: an interpolated input would know the value after it, which may be the one asked for.
    return Windows(last_known(series)[where[:WINDOW]], series[where[WINDOW:]])


def last_known(series: np.ndarray) -> np.ndarray:
    """The series with each missing value replaced by the newest before it (the first by the first known)."""
    known = np.flatnonzero(~np.isnan(series))
    newest = np.searchsorted(known, np.arange(len(series)), side="right") - 1
    return series[known[newest.clip(0)]]


def persistence(past: np.ndarray, steps: int) -> np.ndarray:
    """[steps, N]: the newest value for ever."""
    return np.broadcast_to(past[-1], (steps, past.shape[1]))


def seasonal(past: np.ndarray, steps: int) -> np.ndarray:
    """[steps, N]: what was measured a year before; up to YEAR steps."""
    return past[-YEAR:][:steps]


def seasonal_growth(past: np.ndarray, steps: int) -> np.ndarray:
    """[steps, N]: what was measured a year before, plus last year's growth; up to YEAR steps."""
    return seasonal(past, steps) + past[-1] - past[-1 - YEAR]


NAIVE = {"persistence": persistence, "seasonal": seasonal, "seasonal + growth": seasonal_growth}


def rmse(forecasts: np.ndarray, measured: np.ndarray) -> float:
    """Root mean square error over what was measured."""
    return float(np.sqrt(np.nanmean((forecasts - measured) ** 2)))


class Co2Task(Task):
    """Forecasts of `steps` values by a model that sees, and answers, differences to the newest value."""

    metric = "held-out RMSE, ppm"
    higher_is_better = False
    batch_size = 64
    steps: int

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.train, self.held_out = (self.asked(windows(series, self.steps)) for series in weekly_co2())
        self.scale = float(np.nanstd(self.train.future - self.train.past[-1]))
        self.train_x, self.train_y = self.standardised(self.train)
        self.held_out_x, _ = self.standardised(self.held_out)
        self.updates_per_epoch = self.train_x.shape[1] // self.batch_size

    def asked(self, all_steps: Windows) -> Windows:
        """The part of the future that the task asks for."""
        return all_steps

    def answers(self, model: nn.Module, x: Tensor) -> Tensor:
        """The model's forecasts in its own scale, shaped as `Windows.future`."""
        return model(x)

    def naive(self, past: np.ndarray) -> dict[str, np.ndarray]:
        return {name: forecast(past, self.steps) for name, forecast in NAIVE.items()}

    def standardised(self, part: Windows) -> tuple[Tensor, Tensor]:
        """What a model reads, [WINDOW, N, 1], and should answer, as `Windows.future`."""
        x, y = (
            torch.tensor((values - part.past[-1]) / self.scale, dtype=torch.float32, device=self.device)
            for values in (part.past, part.future)
        )
        return x.unsqueeze(-1), y

    def losses(self, model: nn.Module, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for batch in batches_of(self.train_x.shape[1], self.batch_size, generator).to(self.device):
                measured = self.train_y[:, batch]
                known = ~measured.isnan()
                yield (self.answers(model, self.train_x[:, batch])[known] - measured[known]).square().mean()

    @torch.no_grad()
    def quality(self, model: nn.Module) -> float:
        answers = self.answers(model, self.held_out_x).double().cpu().numpy()
        return rmse(self.held_out.past[-1] + self.scale * answers, self.held_out.future)

    def baselines(self) -> dict[str, float]:
        return {name: rmse(forecast, self.held_out.future) for name, forecast in self.naive(self.held_out.past).items()}


class Forecast(Co2Task):
    """One value, 24 weeks after the newest: near the other end of the season."""

    name = "forecast"
    title = "CO2 at Mauna Loa (statsmodels), the value 24 weeks ahead, many-to-one"
    parameters = 3_000
    epochs = 20.0
    quick_epochs = 10.0
    epoch_seconds = 1.0
    learning_rates: ClassVar = {"RNN": 5e-3, "GRU": 2e-2, "GRU reset_after=False": 2e-2, "LSTM": 2e-2}
    steps = 6

    def asked(self, all_steps: Windows) -> Windows:
        return Windows(all_steps.past, all_steps.future[-1:])

    def model(self, recurrent: Recurrent, hidden_size: int) -> LastStep:
        return LastStep(recurrent, 1, hidden_size, 1)

    def answers(self, model: nn.Module, x: Tensor) -> Tensor:
        return model(x).t()

    def naive(self, past: np.ndarray) -> dict[str, np.ndarray]:
        return {name: forecast[-1:] for name, forecast in super().naive(past).items()}


class Horizon(Co2Task):
    """A whole year in steps of four weeks, decoded from the state that two years leave behind."""

    name = "horizon"
    title = "CO2 at Mauna Loa, the whole year ahead in 13 steps, one-to-many"
    parameters = 6_000
    epochs = 20.0
    quick_epochs = 10.0
    epoch_seconds = 1.5
    learning_rates: ClassVar = {"RNN": 5e-3, "GRU": 2e-2, "GRU reset_after=False": 2e-2, "LSTM": 2e-2}
    steps = YEAR

    def model(self, recurrent: Recurrent, hidden_size: int) -> Decoder:
        return Decoder(recurrent, 1, hidden_size, self.steps)
