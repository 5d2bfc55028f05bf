"""All tasks by name."""

from __future__ import annotations

from .characters import Characters
from .co2 import Forecast, Horizon
from .digits import Digits
from .maze import Recall
from .task import Task
from .words import Words

TASKS: dict[str, type[Task]] = {task.name: task for task in (Characters, Digits, Forecast, Horizon, Words, Recall)}
