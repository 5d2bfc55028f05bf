"""holdfast.RNNCell, GRUCell and LSTMCell: one step, which is one op of torch.

A kernel that keeps weights on chip gains nothing from a single step, since nothing is left to keep them for. So these
are torch.nn's cells with `explain()` and holdfast.backend: with "triton" they raise, as every call without a kernel.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import Proxy

from ..kernels.plan import Plan, Reason
from ..kernels.problem import Problem
from .backend import current_backend
from .call.decision import refusal
from .interop import Interop

SINGLE_STEP = Reason(
    "single_step", "a cell is one step and one op of torch: no later step could reuse resident weights"
)
BACKEND_EAGER = Reason("backend_eager", 'holdfast.backend is "eager"')


class _StepCell(nn.RNNCellBase, Interop):
    kind: ClassVar[str]

    def explain(self, x: Tensor, hx: Any = None) -> Plan:
        """The path that `forward(x, hx)` takes: eager, always. Nothing is run."""
        problem = Problem(
            cell=self._cell_name(),
            dtype=x.dtype,
            hidden_size=self.hidden_size,
            batch_size=x.size(0) if x.dim() == 2 else 1,
        )
        eager = (BACKEND_EAGER,) if current_backend() == "eager" else ()
        return Plan(problem, "eager", reasons=(*eager, SINGLE_STEP))

    def _cell_name(self) -> str:
        return self.kind

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """torch.nn's own forward. RuntimeError where holdfast.backend is "triton"."""
        if isinstance(input, Proxy):
            return self._as_one_node(input, hx, {})
        if current_backend() == "triton":
            raise RuntimeError(refusal(type(self).__name__, self.explain(input, hx).reasons))
        return super().forward(input, hx)


class RNNCell(_StepCell, nn.RNNCell):
    """torch.nn.RNNCell with `explain()`: same arguments, parameters, results and errors, and the same op underneath.

    forward(input [B, input_size], hx [B, hidden_size] or None) -> [B, hidden_size]; all three also without B.
    """

    def _cell_name(self) -> str:
        return f"rnn_{self.nonlinearity}"


class GRUCell(_StepCell, nn.GRUCell):
    """torch.nn.GRUCell with `explain()`: same arguments, parameters, results and errors, and the same op underneath.

    forward(input [B, input_size], hx [B, hidden_size] or None) -> [B, hidden_size]; all three also without B.
    """

    kind = "gru"


class LSTMCell(_StepCell, nn.LSTMCell):
    """torch.nn.LSTMCell with `explain()`: same arguments, parameters, results and errors, and the same op underneath.

    forward(input [B, input_size], hx (h, c) of [B, hidden_size] each, or None) -> (h, c); all also without B.
    """

    kind = "lstm"
