"""FlashRNN's head-dim figure: B=16, T=1024, 768 units as heads times dim; with and without the input GEMM.

torch.nn has no heads: it gets the block-diagonal matrix of 768 units.
"""

from __future__ import annotations

import torch

from ..method.case import Case
from ..providers.flashrnn import BACKENDS, FlashRNN
from ..providers.holdfast import Holdfast
from ..providers.loops import PlainLoop
from ..providers.provider import Provider
from ..providers.torch_nn import TorchNN
from ..providers.variants import LoopAlone
from .entries import Entry, chosen
from .session import Session

HEAD_DIMS = (768, 64, 128, 256, 32)
SLSTM_HEAD_DIMS = (192, 64)
"""Four heads as xLSTM has them, and heads that one program holds."""


def entries(quick: bool) -> list[Entry]:
    backends = BACKENDS[:3] if quick else BACKENDS
    peers: list[Provider] = [FlashRNN(name, with_gemm=gemm) for name in backends for gemm in (True, False)]
    providers: tuple[Provider, ...] = (Holdfast(), LoopAlone(), TorchNN(), TorchNN(torch.float16), *peers)
    lstm = [Case("lstm", torch.bfloat16, dim, 16, 1024, heads=768 // dim) for dim in HEAD_DIMS]
    others = [Case(cell, torch.bfloat16, 768, 16, 1024) for cell in ("gru", "rnn_tanh")]
    # sLSTM has no cuDNN beside it; what is right is the plain loop's.
    slstm = [Case("slstm", torch.bfloat16, dim, 16, 1024, heads=768 // dim) for dim in SLSTM_HEAD_DIMS]
    without_torch: tuple[Provider, ...] = (Holdfast(), LoopAlone(), PlainLoop(), *peers)
    more = [Entry(case, providers) for case in others]
    more += [Entry(case, without_torch, baseline=PlainLoop.name) for case in slstm]
    return [*(Entry(case, providers) for case in lstm), *([] if quick else more)]


def run(session: Session) -> None:
    session.run(chosen(entries(session.options.few), session.options))
