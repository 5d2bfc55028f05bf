"""One answer for all processes of a torch.distributed job: rank 0 finds it, the others wait for it.

Through the key-value store that the job was set up with, and not by a collective: ranks that meet their layers in
another order, or a layer that others never meet, do not block each other, and no stream of communication is disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

WAIT = timedelta(minutes=10)
"""For rank 0, which may be busy with other layers; then the waiting rank goes on without an answer."""


def in_a_job() -> bool:
    """Whether this process is one of several that torch.distributed holds together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def agree(name: str, find: Callable[[], str], wait: timedelta = WAIT) -> str:
    """What `find` returns on rank 0, on every rank; only rank 0 calls it.

    name:  of the question; a job answers each once.

    Raises what `find` raises on rank 0; the others then, and where rank 0 does not answer in time, get "".
    """
    store = dist.distributed_c10d._get_default_store()
    name = f"holdfast/{name}"
    if dist.get_rank() == 0:
        answer = ""
        try:
            answer = find()
        finally:
            store.set(name, answer)
        return answer
    try:
        store.wait([name], wait)
    except RuntimeError:  # DistStoreError, a RuntimeError, where the time is up
        return ""
    return store.get(name).decode()
