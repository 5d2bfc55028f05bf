"""Every instruction by its whole opcode, where it stands for itself: memory, barriers and jumps are the machine's.

An opcode with "|" behind it has two results: `setp.lt.s32 p|q`, `shfl.sync.bfly.b32 r|p`.
"""

from __future__ import annotations

from .approximate import APPROXIMATE
from .bits import BITS
from .compare import COMPARE
from .convert import CONVERT
from .floats import FLOATS
from .integers import INTEGERS
from .matrix import MMA
from .operation import Operation
from .shuffle import SHUFFLE

LANEWISE: dict[str, Operation] = {**BITS, **INTEGERS, **FLOATS, **APPROXIMATE, **CONVERT, **COMPARE}
"""`run(*sources)`: each lane for itself, the inactive ones too."""

COLLECTIVE: dict[str, Operation] = {**SHUFFLE, **MMA}
"""`run(active, *sources)`: [warps, 32] each. The active lanes of a warp have come to the instruction together."""
