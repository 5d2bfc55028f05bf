"""Tune one key into the user's cache: what mode "tune-on-miss" starts. People call `holdfast tune`.

python -m holdfast.autotune.tune_key '{"cell": "lstm", ...}' 60 cuda:0     the fields of a Key, seconds, device
"""

from __future__ import annotations

import json
import sys

import torch

from ..kernels.resources import from_device
from .folders import user_cache
from .key import Key, problem_of
from .measure import Children, MeasurementRefusedError, require_gpu
from .store import Store
from .tune import tune

REFUSED = 3
"""Exit status where nothing can be timed; standard error says why."""


def main(fields: str, budget: str, device_name: str) -> int:
    content = json.loads(fields)
    key = Key(**content | {"features": tuple(content["features"])})
    device = torch.device(device_name)
    try:
        require_gpu(device)
    except MeasurementRefusedError as error:
        print(error, file=sys.stderr)
        return REFUSED
    cache = Store(user_cache())
    limits, problem = from_device(device), problem_of(key)
    with Children() as children:
        tune(
            problem,
            limits,
            store=cache,
            device=device,
            length=key.length,
            budget_s=float(budget),
            children=children,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
