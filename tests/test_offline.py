"""Offline compilation reports what the machine code says, and the residency check can fail."""

import pytest
import triton
import triton.language as tl

from holdfast.autotune.offline import TARGETS, CompiledReport, compile_offline, gpu_target
from holdfast.autotune.ttgir import loads_in_loop, weight_loads_in_loop

H, B = 64, 16


@triton.jit
def relu(a):
    return tl.maximum(a, 0.0)


@triton.jit
def tile(p, rows: tl.constexpr, columns: tl.constexpr):
    """Pointers of a row-major [rows, columns] tile."""
    return p + tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :]


@triton.jit
def resident(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    w = tl.load(tile(w_hh, H, H))
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        h = step(tl.dot(w, h)).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def resident_in_chunks(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    w = ()
    for k in tl.static_range(2):
        w = w + (tl.load(tile(w_hh + k * H * H, H, H)),)  # noqa: RUF005 (Triton has no unpacking)
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        a = tl.zeros((H, B), tl.float32)
        for k in tl.static_range(2):
            a += tl.dot(w[k], h)
        h = step(a).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def loaded_every_step(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        w = tl.load(tile(w_hh, H, H))
        h = step(tl.dot(w, h)).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def pointer_carried_by_the_loop(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    h = tl.load(tile(h0, H, B))
    p = tile(w_hh, H, H)
    for t in range(T):
        w = tl.load(p)
        p += T  # changes every step: no compiler can hoist the load
        h = step(tl.dot(w, h)).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def pointer_chosen_by_a_branch(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        if t % 2 == 0:  # noqa: SIM108 (a branch is what is tested)
            p = w_hh
        else:
            p = w_hh + T
        w = tl.load(tile(p, H, H))
        h = step(tl.dot(w, h)).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def loaded_in_a_while_loop(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    h = tl.load(tile(h0, H, B))
    p = w_hh
    t = 0
    while t < T:
        w = tl.load(tile(p, H, H))
        p += T
        t += 1
        h = step(tl.dot(w, h)).to(h.dtype)
    tl.store(tile(y, H, B), h)


@triton.jit
def one_of_two_chunks_loaded_every_step(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    w = tl.load(tile(w_hh, H, H))
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        a = tl.dot(w, h)
        a += tl.dot(tl.load(tile(w_hh + H * H, H, H)), h)
        h = step(a).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def loaded_through_a_descriptor(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    h = tl.load(tile(h0, H, B))
    descriptor = tl.make_tensor_descriptor(w_hh, shape=[H, H], strides=[H, 1], block_shape=[H, H])
    for t in range(T):
        h = step(tl.dot(descriptor.load([0, 0]), h)).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def in_full_precision(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr):
    w = tl.load(tile(w_hh, H, H))
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        h = tl.dot(w, h, input_precision="ieee")
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def one_of_a_tuple(w_hh, h0, y, T, direction, H: tl.constexpr, B: tl.constexpr):
    w = tl.load(tile(tl.where(direction == 0, w_hh[0], w_hh[1]), H, H))
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        h = tl.dot(w, h).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def one_of_a_tuple_every_step(w_hh, h0, y, T, direction, H: tl.constexpr, B: tl.constexpr):
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        w = tl.load(tile(tl.where(t == direction, w_hh[0], w_hh[1]), H, H))
        h = tl.dot(w, h).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit(noinline=True)
def out_of_line(w_hh, H: tl.constexpr):
    return tl.sum(tl.load(w_hh + tl.arange(0, H)))


@triton.jit
def loaded_out_of_line(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        h = step(h.to(tl.float32) * out_of_line(w_hh, H)).to(h.dtype)
        tl.store(tile(y + t * H * B, H, B), h)


@triton.jit
def never_loads_weights(w_hh, h0, y, T, H: tl.constexpr, B: tl.constexpr, step: tl.constexpr):
    h = tl.load(tile(h0, H, B))
    for t in range(T):
        tl.store(tile(y + t * H * B, H, B), step(h))


def compiled(fn: triton.JITFunction, target: str, num_stages: int = 1, hidden: int = H) -> CompiledReport:
    signature = {"w_hh": "*bf16", "h0": "*bf16", "y": "*bf16", "T": "i32"}
    constexprs = {"H": hidden, "B": B, "step": relu}
    attrs = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    return compile_offline(fn, signature, constexprs, attrs, target, num_warps=4, num_stages=num_stages)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fn", [resident, resident_in_chunks], ids=lambda fn: fn.__name__)
def test_weights_loaded_before_the_loop_count_as_resident(fn, target):
    assert weight_loads_in_loop(compiled(fn, target), "w_hh") == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "fn",
    [
        loaded_every_step,
        pointer_carried_by_the_loop,
        pointer_chosen_by_a_branch,
        loaded_in_a_while_loop,
        one_of_two_chunks_loaded_every_step,
        loaded_out_of_line,
    ],
    ids=lambda fn: fn.__name__,
)
def test_weights_loaded_in_the_loop_are_found(fn, target):
    report = compiled(fn, target)
    assert weight_loads_in_loop(report, "w_hh") == 1
    assert weight_loads_in_loop(report, "h0") == 0  # the initial state is read once, before the loop


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_a_descriptor_load_in_the_loop_is_found(target):
    assert weight_loads_in_loop(compiled(loaded_through_a_descriptor, target), "w_hh") == 1


def test_pipelined_copies_in_the_loop_are_found():
    """With stages the load becomes an asynchronous copy to shared memory, partly ahead of the loop."""
    report = compiled(loaded_every_step, "sm_80", num_stages=3)
    assert "async_copy_global_to_local" in report.ttgir
    assert weight_loads_in_loop(report, "w_hh") == 1


def test_an_empty_answer_is_refused():
    report = compiled(never_loads_weights, "sm_90")
    with pytest.raises(ValueError, match="never loads through argument"):
        weight_loads_in_loop(report, "w_hh")
    with pytest.raises(ValueError, match="no argument 'w_ih'; it has w_hh, h0, y, T"):
        weight_loads_in_loop(report, "w_ih")
    with pytest.raises(ValueError, match="not a TTGIR module"):
        loads_in_loop("tt.func", [0])


@pytest.mark.parametrize(("fn", "loads"), [(one_of_a_tuple, 0), (one_of_a_tuple_every_step, 1)])
def test_a_tuple_argument_is_followed_by_its_elements(fn, loads):
    signature = {"w_hh": ("*bf16", "*bf16"), "h0": "*bf16", "y": "*bf16", "T": "i32", "direction": "i32"}
    report = compile_offline(fn, signature, {"H": H, "B": B}, None, "sm_90", num_warps=4, num_stages=1)
    assert report.arguments == ("w_hh", "w_hh", "h0", "y", "T", "direction")
    assert weight_loads_in_loop(report, "w_hh") == loads
    assert weight_loads_in_loop(report, "h0") == 0


@pytest.mark.parametrize(
    ("target", "family"), [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA"), ("gfx942", "MFMA")]
)
def test_report_of_a_small_kernel(target, family):
    report = compiled(resident, target)
    assert report.target == target
    assert report.matrix_family == family
    assert report.matrix_instructions > 0
    assert 16 <= report.registers <= 255
    assert report.spill_bytes == 0
    assert 2 * H * B <= report.shared_bytes <= 64 * 1024
    assert report.barriers > 0
    assert (report.step is None) == (target == "gfx942")
    if report.step is not None:
        assert report.step.counts.issue_cycles == sum(report.step.parts) > report.step.counts.instructions
        assert 0 < report.step.counts.barriers <= report.barriers
        assert report.step.polls == ()
        assert (report.step.poll_round_trips, report.step.gathered_words) == (0, 0)
        assert report.step.drained_groups == (target != "sm_80")
    assert "tt.func" not in repr(report)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])  # one of each vendor: each tells of them in its own words
def test_spills_are_seen(target):
    """256 × 256 weights in the registers of four warps, with an address of its own for each: far too much."""
    assert compiled(pointer_carried_by_the_loop, target, hidden=256).spill_bytes > 0


def test_options_reach_the_backend():
    """Left alone, ptxas aims at several programs per SM; a resident kernel is alone there, and caps it itself."""
    capped = compile_offline(
        resident,
        {"w_hh": "*bf16", "h0": "*bf16", "y": "*bf16", "T": "i32"},
        {"H": 128, "B": B, "step": relu},
        None,
        "sm_80",
        num_warps=4,
        num_stages=1,
        maxnreg=64,
    )
    assert capped.registers <= 64 < compiled(resident, "sm_80", hidden=128).registers


def test_only_the_matrix_unit_counts_as_matrix_instructions():
    """A float32 product without TF32 runs on the ordinary units; HFMA2.MMA, which may turn up, is one of those."""
    signature = {"w_hh": "*fp32", "h0": "*fp32", "y": "*fp32", "T": "i32"}
    report = compile_offline(in_full_precision, signature, {"H": H, "B": B}, None, "sm_90", num_warps=4, num_stages=1)
    assert report.matrix_instructions == 0
    assert report.matrix_family == ""


def test_targets_by_name():
    assert (gpu_target("sm_89").backend, gpu_target("sm_89").arch, gpu_target("sm_89").warp_size) == ("cuda", 89, 32)
    assert (gpu_target("gfx950").backend, gpu_target("gfx950").warp_size) == ("hip", 64)
    for wrong in ("", "sm90", "H100", "gfx1100"):
        with pytest.raises(ValueError, match="unknown target"):
            gpu_target(wrong)
