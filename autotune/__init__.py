"""Which tiling a kernel runs with. Only `mode` and `current_mode` are imported here: it costs nothing."""

from .modes import current_mode, mode

__all__ = ["current_mode", "mode"]
