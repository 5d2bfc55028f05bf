"""Which backend a jitted function is being compiled for: the few places where one needs another instruction ask it."""

from __future__ import annotations

from typing import Any

from triton.language import core


def compiled_for(_semantic: Any = None) -> Any:
    """ "cuda", "hip" or "interpreter", inside a jitted function; known when it is compiled.

    Not `tl.target_info`, which answers for the GPU in this machine and not for the one that is compiled for.
    """
    return "interpreter" if _semantic is None else core.constexpr(_semantic.builder.options.backend_name)


def lanes_of_warp(_semantic: Any = None) -> Any:
    """Threads of a warp, inside a jitted function: 32 on CUDA, 64 on gfx942; 0 in the interpreter, which has none."""
    return 0 if _semantic is None else core.constexpr(_semantic.builder.options.warp_size)


# The code generator hands over `_semantic` then, the interpreter none.
for _asked in (compiled_for, lanes_of_warp):
    setattr(_asked, core.TRITON_BUILTIN, True)
