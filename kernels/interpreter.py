"""The concurrent interpreter: cooperative kernels on the CPU, and a race finder.

Triton's own interpreter runs the programs of a grid one after another, so programs that wait for
each other never return. Here every program is a coroutine that gives up its turn at every access to
memory (`schedule`), and a seeded scheduler picks who runs next (`schedulers`). Memory is a GPU's and
not a plain array (`weak_memory`): a store reaches the others late, in pieces and out of order until
a release and an acquire order it; a plain load of memory that another program writes is an error,
because it may be served from a stale L1 line; so is an access to what is no element of the launch's tensors.

It also repairs what Triton's interpreter gets wrong on bfloat16: the dot (it multiplies the raw
16-bit integers) and the conversion from float32 (it truncates). A tf32 dot rounds its operands.

    with interpret(seed=3):
        y, h_n = lstm(x)         # CPU tensors, through the kernels
"""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter as base
from triton.runtime.interpreter import TensorHandle

from .executor import DeadlockError, executing_on
from .resources import TOO_LARGE
from .schedulers import SCHEDULERS
from .weak_memory import PIECES, Memory, OutOfBoundsError, RaceError

if TYPE_CHECKING:
    from .schedule import Coroutines, Range


class Interpreter:
    """An `Executor` for CPU tensors.

    seed:               of the schedule and of what loads miss; the same seed gives the same interleaving.
    scheduler:          who has the next turn, a name of `SCHEDULERS`.
    stalled:            programs that never start, as if the GPU had no room for them; or a dict of programs and after
                        how many turns each is killed.
    late:               programs that start when all others have ended.
    raise_on_deadlock:  raise DeadlockError when all programs wait; False lets them spend their
                        polls and end by themselves, as on a GPU.
    most_turns:         of a launch; one more is a DeadlockError. None for any number.
    raise_on_race:      raise RaceError; False lets a race have its effect.
    pieces:             parts of a store that become visible on their own; 0: every element.
    resident_programs:  how many programs the imagined GPU holds at once, by its own formula.
    admitted_programs:  how many of a cooperative grid its driver admits; None for any number.

    Whatever a launch raises says which seed and scheduler replay it.
    """

    arch: tuple[str, int | str] = ("interpreter", 0)

    def __init__(
        self,
        seed: int = 0,
        *,
        scheduler: str = "random",
        stalled: Collection[int] | Mapping[int, int] = (),
        late: Collection[int] = (),
        raise_on_deadlock: bool = True,
        most_turns: int | None = None,
        raise_on_race: bool = True,
        pieces: int = PIECES,
        resident_programs: int = 132,
        admitted_programs: int | None = None,
    ) -> None:
        self.seed = seed
        self.scheduler = scheduler
        self.turns = stalled if isinstance(stalled, Mapping) else dict.fromkeys(stalled, 0)
        self.late = frozenset(late)
        self.raise_on_deadlock = raise_on_deadlock
        self.most_turns = most_turns
        self.raise_on_race = raise_on_race
        self.pieces = pieces
        self.resident_programs = resident_programs
        self.admitted_programs = admitted_programs
        self.spin_limit = 1000
        self.launches = 0
        self.trace: list[int] = []
        """Who had each turn, over all launches."""

    @property
    def replay(self) -> str:
        """How to get this schedule again."""
        return f"interpret(seed={self.seed}, scheduler={self.scheduler!r})"

    def run(self, kernel: triton.JITFunction, grid: int, arguments: Mapping[str, object], **options: object) -> None:
        from .schedule import Coroutines  # needs greenlet, which a machine with a GPU may lack

        team: Any = arguments.get("team")
        cooperative = team is not None and team.status is not None
        if cooperative and self.admitted_programs is not None and grid > self.admitted_programs:
            raise RuntimeError(TOO_LARGE)
        seed = self.seed + self.launches
        self.launches += 1
        launch = self.launches
        scheduler = SCHEDULERS[self.scheduler](random.Random(seed))
        coroutines = Coroutines(scheduler, raise_on_deadlock=self.raise_on_deadlock, most_turns=self.most_turns)
        memory = Memory(
            _tensors(arguments.values()),
            grid,
            seed,
            unchecked=team.status if cooperative else None,
            pieces=self.pieces,
            raise_on_race=self.raise_on_race,
        )
        function = _rewritten(kernel)
        with _interpreted_language(_Builder.over(coroutines, memory, grid)):
            bound = {
                name: value if parameter.is_constexpr else base._implicit_cvt(value)
                for parameter, (name, value) in zip(kernel.params, arguments.items(), strict=True)
            }

            def body() -> None:
                with np.errstate(all="ignore"):
                    function(**bound)

            try:
                coroutines.run([(index, body) for index in range(grid)], self.turns, self.late)
            except (RaceError, OutOfBoundsError, DeadlockError) as error:
                raise type(error)(f"{error}; launch {launch} of {self.replay}") from error
            finally:
                self.trace += coroutines.trace


@contextmanager
def interpret(seed: int = 0, **options: Any) -> Iterator[Interpreter]:
    """Run the kernels on CPU tensors in this block. Options are those of `Interpreter`."""
    executor = Interpreter(seed, **options)
    with executing_on(executor):
        yield executor


_rewrites: dict[Callable[..., Any], Callable[..., Any]] = {}


def _rewritten(function: triton.JITFunction) -> Callable[..., Any]:
    """The Python function behind a jitted one, its assignments turned into tensors as Triton's interpreter does.

    Raises RuntimeError where its file was edited after it was imported: the source is read now, at the lines of then.
    """
    if function.fn not in _rewrites:
        if inspect.getsourcelines(function.fn)[0] != function.raw_src:
            raise RuntimeError(f"{function.fn.__module__}, where {function.__name__} is, was edited since its import")
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
    scope.set_attr(base, "_get_np_dtype", _numpy_dtype)
    scope.set_attr(tl.block_type, "__init__", _block_type)
    scope.set_attr(tl.tensor, "__init__", _tensor)
    base.interpreter_builder.__class__ = _Builder
    base.interpreter_builder.__dict__.update(builder.__dict__)
    try:
        yield
    finally:
        base.interpreter_builder.__class__ = original_class
        base.interpreter_builder.__dict__.clear()
        base.interpreter_builder.__dict__.update(original_state)
        scope.restore()


def _numpy_dtype(dtype: tl.dtype) -> np.dtype:
    """What Triton's interpreter looks up in a dict that it makes anew each time."""
    scalar = dtype.scalar
    if isinstance(scalar, tl.pointer_type):
        return np.dtype(np.uint64)
    return _numpy_dtype_of(scalar)


_numpy_dtype_of = cache(base._get_np_dtype)


# A program makes thousands of tensors of a few types, and Triton checks and describes each anew: a third of its time.
_make_block_type, _make_tensor = tl.block_type.__init__, tl.tensor.__init__
_block_types: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
_tensors_of: dict[str, dict[str, Any]] = {}


def _block_type(self: tl.block_type, element_ty: tl.dtype, shape: Iterable[int | tl.constexpr]) -> None:
    key = element_ty.name, tuple([size if isinstance(size, int) else size.value for size in shape])
    if key not in _block_types:
        _make_block_type(self, element_ty, [*key[1]])
        _block_types[key] = self.__dict__.copy()
    self.__dict__.update(_block_types[key])


def _tensor(self: tl.tensor, handle: TensorHandle, type: tl.dtype) -> None:
    if type.name not in _tensors_of:
        _make_tensor(self, handle, type)
        _tensors_of[type.name] = self.__dict__.copy()
    self.__dict__.update(_tensors_of[type.name], handle=handle)


class _Builder(base.InterpreterBuilder):
    """Evaluates the language's operations; memory goes through the scheduler."""

    coroutines: Coroutines
    memory: Memory

    @classmethod
    def over(cls, coroutines: Coroutines, memory: Memory, grid: int) -> _Builder:
        builder = cls()
        # Eight operations after every integer one, whose verdict is for debug builds: half of a schedule's time.
        builder.options = replace(builder.options, sanitize_overflow=False)
        builder.coroutines = coroutines
        builder.memory = memory
        builder.grid_dim = (grid, 1, 1)
        return builder

    @property
    def grid_idx(self) -> tuple[int, int, int]:
        return (self.coroutines.running().index, 0, 0)

    def create_masked_load(self, ptrs, mask, other, *policy):
        me = self.coroutines.running().index
        live = np.broadcast_to(mask.data, ptrs.data.shape).astype(bool)
        mask = TensorHandle(live, tl.int1)
        addresses = ptrs.data[live]
        if not addresses.size:
            return super().create_masked_load(ptrs, mask, other, *policy)
        cells = self.memory.cells(me, addresses, _itemsize(ptrs))
        is_volatile = policy[-1]
        if is_volatile:
            self.coroutines.before_poll(_range(addresses, ptrs))
        else:
            self.coroutines.give_up_turn()
        loaded = super().create_masked_load(ptrs, mask, other, *policy)
        newest = loaded.data[live]
        found, again = self.memory.load(me, cells, newest, strong=is_volatile)
        if again:
            self.coroutines.may_learn_more()
        if found is not newest:
            loaded.data[live] = found
        return loaded

    def create_masked_store(self, ptrs, value, mask, *policy):
        me = self.coroutines.running().index
        shape = ptrs.data.shape
        live = np.broadcast_to(mask.data, shape).astype(bool)
        if not live.any():
            return
        addresses, new = ptrs.data[live], np.broadcast_to(value.data, shape)[live]
        self.coroutines.may_learn_more()
        cells = self.memory.cells(me, addresses, _itemsize(ptrs))
        old = base._interpreter.load(addresses, np.ones(new.shape, bool), np.zeros_like(new), new.dtype)
        self.memory.store(me, cells, addresses, old, new)
        super().create_masked_store(ptrs, value, TensorHandle(live, tl.int1), *policy)
        self.coroutines.after_write(_range(addresses, ptrs))
        self.coroutines.give_up_turn()

    def create_atomic_rmw(self, rmwOp, ptr, val, mask, sem, scope):
        me = self.coroutines.running().index
        where = _range(ptr.data, ptr)
        self.memory.cells(me, ptr.data.reshape(-1), _itemsize(ptr))
        # Adding zero is how a kernel reads a counter with acquire.
        is_read = rmwOp == ir.ATOMIC_OP.ADD and not val.data.any()
        if is_read:
            self.coroutines.before_poll(where)
        else:
            self.coroutines.give_up_turn()
        if sem in (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE):
            self.memory.release(me, where[0])
        if sem in (ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE):
            self.memory.acquire(me, where[0])
        old = super().create_atomic_rmw(rmwOp, ptr, val, mask, sem, scope)
        if not is_read:
            self.coroutines.after_write(where)
        return old

    def create_barrier(self):
        self.memory.barrier(self.coroutines.running().index)

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


def _tensors(arguments: Iterable[object]) -> list[torch.Tensor]:
    """All tensors among the arguments, groups of them included."""
    return [leaf for argument in arguments for leaf in _leaves(argument) if isinstance(leaf, torch.Tensor)]


def _leaves(argument: object) -> Iterator[object]:
    """What an argument, a tuple or a tuple of tuples consists of."""
    if isinstance(argument, tuple):
        for element in argument:
            yield from _leaves(element)
    else:
        yield argument


def _itemsize(ptrs: TensorHandle) -> int:
    return max(1, ptrs.get_element_ty().primitive_bitwidth // 8)


def _range(addresses: np.ndarray, ptrs: TensorHandle) -> Range:
    return int(addresses.min()), int(addresses.max()) + _itemsize(ptrs) - 1


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
