"""Which loads of a compiled kernel go through one of its arguments inside a loop: 0 proves resident weights."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from triton._C.libtriton import ir
from triton.compiler.compiler import make_backend

from .offline import CompiledReport, gpu_target

# Ops that compute or forward an address, and ops that read through one. An op in neither list that takes an address
# counts as both, so an op that a later Triton invents makes the check stricter, never blind.
_FORWARDING = re.compile(
    r"arith\.|ub\.|scf\.|cf\.|tt\.(addptr|splat|unsplat|broadcast|expand_dims|reshape|trans|bitcast|ptr_to_int|int_to_ptr"
    r"|join|split|cat|make_tensor_descriptor|make_tensor_ptr|advance|return|assert|print)$"
    r"|ttg\.(convert_layout|mask|warp_yield|warp_return)$"
    r"|ttng\.(tensormap_create|tensormap_fenceproxy_acquire|reinterpret_tensor_descriptor)$"
)
_LOADING = re.compile(
    r"tt\.(load|descriptor_load|descriptor_gather|atomic_rmw|atomic_cas|elementwise_inline_asm|call)$"
    r"|ttg\.async_copy_global_to_local$|ttng\.async_tma_(copy_global_to_local|gather)$|amdg(pu)?\.buffer_load(_to_local)?$"
)
_STORING = {"tt.store", "amdgpu.buffer_store", "amdg.buffer_store"}
_LOOPS = {"scf.for", "scf.while"}
_YIELDS = {"scf.yield", "scf.condition", "ttg.warp_yield", "tt.reduce.return"}


@dataclass(frozen=True)
class _Op:
    """One operation with its SSA values and regions as the ids of MLIR's own objects."""

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    regions: tuple[int, ...]
    region: int
    """The region the operation lies in."""


@dataclass(frozen=True)
class _Module:
    ops: list[_Op]
    kernel: int
    """The region that is the kernel's body."""
    arguments: dict[int, tuple[int, ...]]
    """Region -> its entry block's arguments."""
    all_arguments: dict[int, set[int]]
    """Region -> the arguments of all its blocks."""


def weight_loads_in_loop(report: CompiledReport, argument: str) -> int:
    """Number of loads in the kernel's loops whose address derives from the argument of this name, "layer.w_hh".

    0 proves that the weights are resident: see `loads_in_loop` for what counts. Raises ValueError where the
    kernel has no such argument at run time, or never loads through it.
    """
    positions = [position for position, name in enumerate(report.arguments) if name == argument]
    if not positions:
        raise ValueError(f"the kernel has no argument {argument!r}; it has {', '.join(report.arguments)}")
    return loads_in_loop(report.ttgir, positions)


def loads_in_loop(ttgir: str, positions: Collection[int]) -> int:
    """Number of loads inside any loop whose address derives from certain arguments of the kernel.

    ttgir:      `asm["ttgir"]` of a kernel, from the same Triton that reads it here.
    positions:  of the arguments among the kernel's run-time arguments, the elements of a tuple counting one by one.
                (The printed name is no guide: Triton renames an argument after a variable that it is assigned to.)

    Follows the arguments from definition to use through address arithmetic, branches and loop-carried values. Reads
    from shared memory are not loads of an argument. Code outside MLIR's sight counts as one load where it takes such
    an address: inline assembly if it stands in a loop, a `noinline` call anywhere.

    Raises ValueError where the kernel never loads through these arguments: the answer 0 would mean nothing.
    """
    module = _read(ttgir)
    reached = _reached_from({module.arguments[module.kernel][position] for position in positions}, module)
    owner = {region: op for op in module.ops for region in op.regions}
    loads = [op for op in module.ops if reached.intersection(op.operands) and _reads_memory(op)]
    if not loads:
        raise ValueError(f"the kernel never loads through argument {sorted(positions)}: nothing to check")
    return sum(_in_loop(op, owner) or op.name == "tt.call" for op in loads)


def _read(ttgir: str) -> _Module:
    target = re.search(r'ttg\.target = "(?:cuda|hip):(\w+)"', ttgir)
    if target is None:
        raise ValueError("not a TTGIR module: it has no ttg.target")
    context = ir.context()
    ir.load_dialects(context)
    name = target.group(1)
    make_backend(gpu_target(name if name.startswith("gfx") else f"sm_{name}")).load_dialects(context)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ttgir"
        path.write_text(ttgir)
        module = ir.parse_mlir_module(str(path), context)

    ops: list[_Op] = []
    kernels: list[int] = []
    entry: dict[int, tuple[int, ...]] = {}
    every: dict[int, set[int]] = defaultdict(set)

    def visit(op: ir.operation) -> None:
        block = op.get_block()
        region = 0
        if block is not None and block.get_parent() is not None:
            region = block.get_parent().id()
            arguments = tuple(block.arg(i).id() for i in range(block.get_num_arguments()))
            entry.setdefault(region, arguments)  # the walk meets a region's entry block first
            every[region].update(arguments)
        ops.append(
            _Op(
                op.get_name(),
                tuple(op.get_operand(i).id() for i in range(op.get_num_operands())),
                tuple(op.get_result(i).id() for i in range(op.get_num_results())),
                tuple(op.get_region(i).id() for i in range(op.get_num_regions())),
                region,
            )
        )
        if op.get_name() == "tt.func" and op.get_str_attr("sym_visibility") == "public":
            kernels.append(op.get_region(0).id())

    module.walk(visit)
    (kernel,) = kernels
    return _Module(ops, kernel, entry, every)


def _reached_from(values: set[int], module: _Module) -> set[int]:
    flows: dict[int, set[int]] = defaultdict(set)
    for source, sink in _flows(module):
        flows[source].add(sink)
    reached, frontier = set(values), list(values)
    while frontier:
        new = flows[frontier.pop()] - reached
        reached |= new
        frontier += new
    return reached


def _flows(module: _Module) -> list[tuple[int, int]]:
    """Every (value, value it may become) pair of the module."""
    yields: dict[int, _Op] = {op.region: op for op in module.ops if op.name in _YIELDS}
    flows: list[tuple[int, int]] = []

    def pairwise(sources: tuple[int, ...], *sinks: tuple[int, ...]) -> None:
        for sink in sinks:
            flows.extend(zip(sources, sink, strict=True))

    def all_to_all(sources: tuple[int, ...], sinks: tuple[int, ...] | set[int]) -> None:
        flows.extend((source, sink) for source in sources for sink in sinks)

    for op in module.ops:
        if op.name == "scf.for":
            carried = module.arguments[op.regions[0]][1:]
            pairwise(op.operands[3:], op.results, carried)
            pairwise(yields[op.regions[0]].operands, op.results, carried)
        elif op.name == "scf.while":
            before, after = op.regions
            pairwise(op.operands, module.arguments[before])
            pairwise(yields[before].operands[1:], op.results, module.arguments[after])
            pairwise(yields[after].operands, module.arguments[before])
        elif op.name == "scf.if":
            for region in op.regions:
                if region in yields:
                    pairwise(yields[region].operands, op.results)
        elif op.regions and op.name not in ("builtin.module", "tt.func"):
            for region in op.regions:
                all_to_all(op.operands, module.all_arguments[region])
                if region in yields:
                    all_to_all(yields[region].operands, op.results)
        elif op.name in ("cf.br", "cf.cond_br"):  # from an early `return`; Triton writes no loop this way
            all_to_all(op.operands, module.all_arguments[op.region])
        elif op.name == "ttng.tensormap_create":  # writes the address into the memory of its first operand
            all_to_all(op.operands[1:], op.operands[:1])
        elif not _LOADING.match(op.name):
            all_to_all(op.operands, op.results)
    return flows


def _reads_memory(op: _Op) -> bool:
    return not op.regions and not _FORWARDING.match(op.name) and op.name not in _STORING


def _in_loop(op: _Op, owner: dict[int, _Op]) -> bool:
    while op.region in owner:
        op = owner[op.region]
        if op.name in _LOOPS:
            return True
    return False
