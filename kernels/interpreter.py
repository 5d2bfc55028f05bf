"""The concurrent interpreter: cooperative kernels on the CPU, and a race finder.

Triton's own interpreter runs the programs of a grid one after another, so programs that wait for
each other never return. Here every program is a coroutine and a seeded scheduler picks who runs
next (`schedule`). Memory is weaker than a plain array: a store reaches the others in pieces, at
random times, in random order, until a release; a plain load of memory that another program writes
is an error, because on a GPU it may be served from a stale L1 line; so is an access outside every
tensor of the launch.

It also repairs what Triton's interpreter gets wrong on bfloat16: the dot (it multiplies the raw
16-bit integers) and the conversion from float32 (it truncates). A tf32 dot rounds its operands.

    with interpret(seed=3):
        y, h_n = lstm(x)         # CPU tensors, through the kernels
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter as base
from triton.runtime.interpreter import TensorHandle

from .executor import executing_on
from .resources import TOO_LARGE

if TYPE_CHECKING:
    from .schedule import Range, Scheduler


class RaceError(RuntimeError):
    """Two programs touch the same memory in a way that a GPU gives no order to."""


class OutOfBoundsError(IndexError):
    """A program touches memory that belongs to none of its launch's tensors."""


class Interpreter:
    """An `Executor` for CPU tensors.

    seed:               of the schedule; the same seed gives the same interleaving.
    stalled:            programs that never start, as if the GPU had no room for them.
    raise_on_deadlock:  raise DeadlockError when all programs wait; False lets them spend their
                        polls and end by themselves, as on a GPU.
    resident_programs:  how many programs the imagined GPU holds at once, by its own formula.
    admitted_programs:  how many of a cooperative grid its driver admits; None for any number.
    """

    arch: tuple[str, int | str] = ("interpreter", 0)

    def __init__(
        self,
        seed: int = 0,
        *,
        stalled: Collection[int] = (),
        raise_on_deadlock: bool = True,
        resident_programs: int = 132,
        admitted_programs: int | None = None,
    ) -> None:
        self.seed = seed
        self.stalled = frozenset(stalled)
        self.raise_on_deadlock = raise_on_deadlock
        self.resident_programs = resident_programs
        self.admitted_programs = admitted_programs
        self.spin_limit = 1000
        self.launches = 0
        self.trace: list[int] = []
        """Who had each turn, over all launches."""

    def run(self, kernel: triton.JITFunction, grid: int, arguments: Mapping[str, object], **options: object) -> None:
        from .schedule import Scheduler  # needs greenlet, which a machine with a GPU may lack

        team: Any = arguments.get("team")
        cooperative = team is not None and team.status is not None
        if cooperative and self.admitted_programs is not None and grid > self.admitted_programs:
            raise RuntimeError(TOO_LARGE)
        scheduler = Scheduler(self.seed + self.launches, raise_on_deadlock=self.raise_on_deadlock)
        self.launches += 1
        function = _rewritten(kernel)
        with _interpreted_language(_Builder.over(scheduler, grid, _storages(arguments.values()))):
            bound = {
                name: value if parameter.is_constexpr else base._implicit_cvt(value)
                for parameter, (name, value) in zip(kernel.params, arguments.items(), strict=True)
            }

            def body() -> None:
                with np.errstate(all="ignore"):
                    function(**bound)

            try:
                scheduler.run([(index, body) for index in range(grid) if index not in self.stalled])
            finally:
                self.trace += scheduler.trace


@contextmanager
def interpret(seed: int = 0, **options: Any) -> Iterator[Interpreter]:
    """Run the kernels on CPU tensors in this block. Options are those of `Interpreter`."""
    executor = Interpreter(seed, **options)
    with executing_on(executor):
        yield executor


_rewrites: dict[Callable[..., Any], Callable[..., Any]] = {}


def _rewritten(function: triton.JITFunction) -> Callable[..., Any]:
    """The Python function behind a jitted one, its assignments turned into tensors as Triton's interpreter does."""
    if function.fn not in _rewrites:
        _rewrites[function.fn] = base.FunctionRewriter(function.fn).rewrite_ast()
    return _rewrites[function.fn]


_language = threading.RLock()
"""There is one triton.language in a process: launches of several threads run one after the other, and what another
thread compiles meanwhile would fail."""


@contextmanager
def _interpreted_language(builder: _Builder) -> Iterator[None]:
    """triton.language evaluates eagerly, on `builder`, and jitted functions can be called."""
    with _language, _patched_language(builder):
        yield


@contextmanager
def _patched_language(builder: _Builder) -> Iterator[None]:
    original_class, original_state = base.interpreter_builder.__class__, dict(base.interpreter_builder.__dict__)
    scope = base._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    # Triton 3.6.0 converts a one-element array with int(), which NumPy 2.4 refuses.
    scope.set_attr(tl.tensor, "__index__", lambda self: self.handle.data.item())
    scope.set_attr(triton.JITFunction, "__call__", lambda self, *args, **kwargs: _rewritten(self)(*args, **kwargs))
    base.interpreter_builder.__class__ = _Builder
    base.interpreter_builder.__dict__.update(builder.__dict__)
    try:
        yield
    finally:
        base.interpreter_builder.__class__ = original_class
        base.interpreter_builder.__dict__.clear()
        base.interpreter_builder.__dict__.update(original_state)
        scope.restore()


class _Builder(base.InterpreterBuilder):
    """Evaluates the language's operations; memory goes through the scheduler."""

    scheduler: Scheduler
    storages: np.ndarray
    """First address of each storage that the launch may touch and the one after its last, [2, storages]."""

    writers: dict[int, tuple[int, int]]
    """Byte address of every element stored in this launch -> the program that stored it first, and the bits."""

    @classmethod
    def over(cls, scheduler: Scheduler, grid: int, storages: np.ndarray) -> _Builder:
        builder = cls()
        builder.scheduler = scheduler
        builder.storages = storages
        builder.writers = {}
        builder.grid_dim = (grid, 1, 1)
        return builder

    @property
    def grid_idx(self) -> tuple[int, int, int]:
        return (self.scheduler.running().index, 0, 0)

    def create_masked_load(self, ptrs, mask, other, *policy):
        program = self.scheduler.running()
        self.scheduler.drain(program)
        mask = TensorHandle(np.broadcast_to(mask.data, ptrs.data.shape).astype(bool), tl.int1)
        addresses = ptrs.data[mask.data]
        if addresses.size:
            self._check_bounds(addresses)
            is_volatile = policy[-1]
            if is_volatile:
                self.scheduler.before_poll(_range(addresses, ptrs))
            else:
                self._check_plain_load(addresses)
                self.scheduler.give_up_turn()
        return super().create_masked_load(ptrs, mask, other, *policy)

    def create_masked_store(self, ptrs, value, mask, *policy):
        scheduler, program = self.scheduler, self.scheduler.running()
        shape = ptrs.data.shape
        live = np.broadcast_to(mask.data, shape).astype(bool)
        if not live.any():
            return
        scheduler.after_own_store()
        self._check_bounds(ptrs.data[live])
        self._claim(ptrs.data[live], np.broadcast_to(value.data, shape)[live])
        early = np.array([scheduler.random.random() < 0.5 for _ in range(live.size)]).reshape(shape)
        for part in (live & early, live & ~early):
            program.store_buffer.append(self._pending_store(ptrs, value, part, policy))
        scheduler.give_up_turn()

    def create_atomic_rmw(self, rmwOp, ptr, val, mask, sem, scope):
        scheduler, program = self.scheduler, self.scheduler.running()
        if sem in (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE):
            scheduler.drain(program)
        where = _range(ptr.data, ptr)
        # Adding zero is how a kernel reads a counter with acquire.
        is_read = rmwOp == ir.ATOMIC_OP.ADD and not val.data.any()
        if is_read:
            scheduler.before_poll(where)
        else:
            scheduler.give_up_turn()
        old = super().create_atomic_rmw(rmwOp, ptr, val, mask, sem, scope)
        if not is_read:
            scheduler.after_write(where)
        return old

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        operands = [_as_float32(operand) for operand in (a, b)]
        if a.dtype.scalar == tl.float32 and input_precision == ir.INPUT_PRECISION.TF32:
            operands = [_round_to_tf32(operand) for operand in operands]
        return TensorHandle(np.matmul(*operands, dtype=np.float32) + d.data, d.dtype.scalar)

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if tl.bfloat16 not in (source, target) or source == target:
            return super().cast_impl(src, dst_type)
        if source == tl.bfloat16:
            return super().cast_impl(TensorHandle(_as_float32(src), tl.float32), dst_type)
        return TensorHandle(_round_to_bfloat16(src.data.astype(np.float32)), tl.bfloat16)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        return self.cast_impl(src, dst_type)

    def _pending_store(self, ptrs, value, part, policy) -> Callable[[], Range | None]:
        def apply() -> Range | None:
            if not part.any():
                return None
            super(_Builder, self).create_masked_store(ptrs, value, TensorHandle(part, tl.int1), *policy)
            return _range(ptrs.data[part], ptrs)

        return apply

    def _check_bounds(self, addresses: np.ndarray) -> None:
        first, end = self.storages[:, :, None]
        inside = ((first <= addresses) & (addresses < end)).any(axis=0)
        if not inside.all():
            me = self.scheduler.running().index
            raise OutOfBoundsError(
                f"program {me} touches {(~inside).sum()} elements outside every tensor of its launch"
            )

    def _check_plain_load(self, addresses: np.ndarray) -> None:
        me = self.scheduler.running().index
        for address in addresses.tolist():
            writer, _ = self.writers.get(address, (me, None))
            if writer != me:
                raise RaceError(f"program {me} loads, not volatile, what program {writer} stores in the same launch")

    def _claim(self, addresses: np.ndarray, values: np.ndarray) -> None:
        me = self.scheduler.running().index
        bits = values.view(f"u{values.itemsize}").tolist()
        for address, value in zip(addresses.tolist(), bits, strict=True):
            writer, stored = self.writers.get(address, (me, value))
            if writer != me and stored != value:
                raise RaceError(f"programs {writer} and {me} store different values to the same address")
            self.writers[address] = (writer, value)


def _storages(arguments: Iterable[object]) -> np.ndarray:
    """The storages of all tensors among the arguments, groups of them included, as `_Builder.storages`."""
    tensors = [leaf for argument in arguments for leaf in _leaves(argument) if isinstance(leaf, torch.Tensor)]
    spans = [
        (storage.data_ptr(), storage.data_ptr() + storage.nbytes())
        for storage in (t.untyped_storage() for t in tensors)
    ]
    return np.array(spans, dtype=np.uint64).reshape(-1, 2).T


def _leaves(argument: object) -> Iterator[object]:
    """What an argument, a tuple or a tuple of tuples consists of."""
    if isinstance(argument, tuple):
        for element in argument:
            yield from _leaves(element)
    else:
        yield argument


def _range(addresses: np.ndarray, ptrs: TensorHandle) -> Range:
    itemsize = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
    return int(addresses.min()), int(addresses.max()) + itemsize - 1


def _as_float32(handle: TensorHandle) -> np.ndarray:
    """Values of a float tile; Triton's interpreter holds bfloat16 as its 16 bits."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data.astype(np.float32)


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even. A NaN keeps its sign and upper payload, as on AMD."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _round_to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 with 10 bits of mantissa, to nearest with ties away from zero (PTX cvt.rna.tf32.f32)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)
