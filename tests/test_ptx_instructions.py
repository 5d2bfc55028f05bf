"""Instructions of PTX lane by lane, against their definitions in NVIDIA's PTX ISA, in Python's own integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from holdfast.kernels.ptx import bits
from holdfast.kernels.ptx.atomics import ATOMIC
from holdfast.kernels.ptx.instructions import LANEWISE

LANES = 4096
EDGES = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


@pytest.fixture
def numbers():
    return np.random.default_rng(int(torch.randint(1 << 30, ())))


def lanes(numbers, dtype, count=LANES):
    """Random bits, small numbers and edges of a register type."""
    if dtype is np.bool_:
        return numbers.random(count) < 0.5
    width = 8 * np.dtype(dtype).itemsize
    drawn = numbers.integers(0, 1 << 64, count, np.uint64) >> (numbers.integers(0, width, count) + 64 - width).astype(
        np.uint64
    )
    edges = numbers.choice(np.array([edge % (1 << width) for edge in [*EDGES, -1, -2]], np.uint64), count)
    return np.where(numbers.random(count) < 0.25, edges, drawn).astype(dtype)


def run(opcode, *sources):
    """With the inputs kept as they were."""
    before = [source.copy() for source in sources]
    with np.errstate(all="ignore"):
        result = LANEWISE[opcode].run(*sources)
    assert all((a == b).all() for a, b in zip(before, sources, strict=True))
    return result


def signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def towards_zero(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "mul.hi": lambda a, b: a * b,  # the upper half
    "mul.wide": lambda a, b: a * b,
    "mad.lo": lambda a, b, c: a * b + c,
    "mad.wide": lambda a, b, c: a * b + c,
    "div": towards_zero,
    "rem": lambda a, b: a - towards_zero(a, b) * b,
    "min": min,
    "max": max,
    "neg": lambda a: -a,
    "abs": abs,
}


def integer_opcodes():
    return [
        f"{name}.{kind}"
        for name in INTEGER
        for kind in ("u16", "s16", "u32", "s32", "u64", "s64")
        if f"{name}.{kind}" in LANEWISE
    ]


@pytest.mark.parametrize("opcode", integer_opcodes())
def test_integers_wrap_around_as_their_type_does(opcode, numbers):
    name, kind = opcode.rsplit(".", 1)
    sources = [lanes(numbers, dtype, 500) for dtype in LANEWISE[opcode].sources]
    result = run(opcode, *sources)
    width = 8 * result.itemsize
    read = (lambda x: signed(int(x), 8 * x.itemsize)) if kind[0] == "s" else int
    exact = [INTEGER[name](*map(read, operands)) for operands in zip(*sources, strict=True)]
    expected = [(number >> width if name == "mul.hi" else number) % (1 << width) for number in exact]
    assert width == int(kind[1:]) * (2 if "wide" in name else 1)
    assert [int(x) for x in result] == expected


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("kind", ["u16", "s16"])
def test_pairs_of_integers_are_two_numbers(name, kind, numbers):
    a, b = lanes(numbers, np.uint32), lanes(numbers, np.uint32)
    low, high = (
        run(f"{name}.{kind}", x(a), x(b))
        for x in (lambda w: w.astype(np.uint16), lambda w: (w >> 16).astype(np.uint16))
    )
    assert (run(f"{name}.{kind}x2", a, b) == (high.astype(np.uint32) << 16 | low)).all()


@pytest.mark.parametrize("width", [16, 32, 64])
def test_shifts_beyond_the_width_leave_zeros_or_the_sign(width, numbers):
    register = {16: np.uint16, 32: np.uint32, 64: np.uint64}[width]
    value, amount = lanes(numbers, register), numbers.choice([0, 1, 7, 15, 16, 31, 32, 33, 63, 64, 65, 2**31], LANES)
    amount = amount.astype(np.uint32)
    both = [(int(v), int(n)) for v, n in zip(value, amount, strict=True)]
    assert [int(x) for x in run(f"shl.b{width}", value, amount)] == [
        v << min(n, 64) & (1 << width) - 1 for v, n in both
    ]
    assert [int(x) for x in run(f"shr.u{width}", value, amount)] == [v >> min(n, 64) for v, n in both]
    expected = [(signed(v, width) >> min(n, 64)) % (1 << width) for v, n in both]
    assert [int(x) for x in run(f"shr.s{width}", value, amount)] == expected


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_bit_field_extract(kind, numbers):
    a = lanes(numbers, np.uint32)
    b, c = (numbers.integers(0, 64, LANES).astype(np.uint32) | np.uint32(0x300) for _ in range(2))

    def definition(a: int, b: int, c: int) -> int:
        msb, position, length = 31, b & 0xFF, c & 0xFF
        sign = 0 if kind == "u32" or length == 0 else a >> min(position + length - 1, msb) & 1
        bits = [a >> position + i & 1 if i < length and position + i <= msb else sign for i in range(32)]
        return sum(bit << i for i, bit in enumerate(bits))

    expected = [definition(int(x), int(y), int(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert run(f"bfe.{kind}", a, b, c).tolist() == expected


def test_permute_bytes(numbers):
    a, b, c = (lanes(numbers, np.uint32) for _ in range(3))

    def definition(a: int, b: int, c: int) -> int:
        source = a.to_bytes(4, "little") + b.to_bytes(4, "little")
        nibbles = [c >> 4 * i & 15 for i in range(4)]
        chosen = [source[n & 7] if n < 8 else 0xFF * (source[n & 7] >> 7) for n in nibbles]
        return int.from_bytes(bytes(chosen), "little")

    expected = [definition(int(x), int(y), int(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert run("prmt.b32", a, b, c).tolist() == expected


def test_logic_and_selection(numbers):
    a, b, p = lanes(numbers, np.uint32), lanes(numbers, np.uint32), lanes(numbers, np.bool_)
    q = lanes(numbers, np.bool_)
    assert (run("and.b32", a, b) == (a & b)).all()
    assert (run("or.b32", a, b) == (a | b)).all()
    assert (run("xor.b32", a, b) == (a ^ b)).all()
    assert (run("not.b32", a) == ~a).all()
    assert (run("and.pred", p, q) == (p & q)).all()
    assert (run("or.pred", p, q) == (p | q)).all()
    assert (run("xor.pred", p, q) == (p ^ q)).all()
    assert (run("not.pred", p) == ~p).all()
    assert [int(x) for x in run("selp.b32", a, b, p)] == [int(x if r else y) for x, y, r in zip(a, b, p, strict=True)]


def test_registers_are_packed_lowest_part_first(numbers):
    low, high = lanes(numbers, np.uint16), lanes(numbers, np.uint16)
    word = bits.pack((low, high))
    assert (word == (high.astype(np.uint32) << 16 | low)).all()
    assert all((a == b).all() for a, b in zip(bits.unpack(word, 2), (low, high), strict=True))
    four = bits.unpack(lanes(numbers, np.uint64), 4)
    assert all((a == b).all() for a, b in zip(bits.unpack(bits.pack(four), 4), four, strict=True))


# Floating point: exact rational numbers, rounded by hand.

MANTISSA = {"f32": 24, "f16": 11, "bf16": 8}
SMALLEST = {"f32": -149, "f16": -24, "bf16": -133}
LARGEST = {kind: Fraction(2) ** exponent for kind, exponent in (("f32", 128), ("f16", 16), ("bf16", 128))}
REGISTER = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}
NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF, "bf16": 0x7FFF}


def value(pattern: int, kind: str) -> float:
    if kind == "f16":
        return float(np.uint16(pattern).view(np.float16))
    return float(np.uint32(pattern << 16 if kind == "bf16" else pattern).view(np.float32))


def nearest(exact: Fraction, kind: str) -> float:
    """To nearest even; to infinity from half a unit above the largest number."""
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent += abs(exact) >= Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - MANTISSA[kind], SMALLEST[kind])
    rounded = round(exact / unit) * unit  # Python's round is to even
    return math.copysign(math.inf if abs(rounded) >= LARGEST[kind] else float(abs(rounded)), exact)


def expected_bits(exact: Fraction | float, kind: str) -> int:
    """exact: a Fraction, or what is no number of one."""
    number = nearest(exact, kind) if isinstance(exact, Fraction) else exact
    if math.isnan(number):
        return NAN[kind]
    if kind == "f16":
        return int(np.float16(number).view(np.uint16))
    pattern = int(np.float32(number).view(np.uint32))
    return pattern >> 16 if kind == "bf16" else pattern


ARITHMETIC = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "fma.rn": lambda x, y, z: x * y + z,
}


def exact_result(name: str, operands: list[float]) -> Fraction | float:
    """IEEE's results where an operand is no number or the result a zero, from Python's float64."""
    if all(map(math.isfinite, operands)):
        result = ARITHMETIC[name](*map(Fraction, operands))
        if result != 0:
            return result
    return ARITHMETIC[name](*operands)


def float_lanes(numbers, kind, count):
    """Random bits, numbers of similar size, so that sums cancel, and edges."""
    near_one = numbers.integers(0x3E800000, 0x40800000, count).astype(np.uint32) | (
        numbers.integers(0, 2, count).astype(np.uint32) << 31
    )
    near_one = near_one if kind == "f32" else (near_one >> 16).astype(np.uint16)
    if kind == "f16":
        near_one = numbers.normal(size=count).astype(np.float16).view(np.uint16)
    whole = lanes(numbers, REGISTER[kind], count)
    chosen = np.where(numbers.random(count) < 0.5, near_one, whole).astype(REGISTER[kind])
    inf = {"f32": 0x7F800000, "f16": 0x7C00, "bf16": 0x7F80}[kind]
    top = 1 << (8 * np.dtype(REGISTER[kind]).itemsize - 1)
    edges = [0, top, inf, top | inf, inf - 1, 1, top | 1, NAN[kind], top | NAN[kind]]
    return np.where(numbers.random(count) < 0.2, numbers.choice(edges, count), chosen).astype(REGISTER[kind])


@pytest.mark.parametrize("kind", MANTISSA)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_rounded_once(name, kind, numbers):
    opcode = f"{name}.{kind}"
    count = 3000
    sources = [float_lanes(numbers, kind, count) for _ in LANEWISE[opcode].sources]
    # Products that almost are a sum: what a second rounding would get wrong.
    sources[-1][::4] = run(f"mul.{kind}", sources[0], sources[1])[::4] ^ REGISTER[kind](1)
    operands = [[value(int(x), kind) for x in lane] for lane in zip(*sources, strict=True)]
    expected = [expected_bits(exact_result(name, lane), kind) for lane in operands]
    assert [int(x) for x in run(opcode, *sources)] == expected
    if kind != "f32":
        pairs = [np.ascontiguousarray(source).view(np.uint32) for source in sources]
        assert run(f"{opcode}x2", *pairs).view(np.uint16).tolist() == expected


def test_fused_multiply_add_rounds_what_two_roundings_get_wrong():
    # In float64 the sum is a tie of float32, which the last bit of c decides.
    a, b, c = (np.array([x], np.float32).view(np.uint32) for x in (1 + 2**-12, 1 + 2**-12, 2**-60))
    exact = (1 + Fraction(1, 2**12)) ** 2 + Fraction(1, 2**60)
    assert run("fma.rn.f32", a, b, c)[0] == expected_bits(exact, "f32")
    assert run("fma.rn.f32", a, b, c ^ np.uint32(1 << 31))[0] == run("fma.rn.f32", a, b, c)[0] - 1


@pytest.mark.parametrize("name", ARITHMETIC)
def test_subnormal_numbers_are_flushed_where_asked(name, numbers):
    def flushed(bits):
        return np.where(np.abs(bits.view(np.float32)) < 2.0**-126, bits & np.uint32(1 << 31), bits)

    sources = [float_lanes(numbers, "f32", LANES) >> numbers.choice([0, 1, 9], LANES).astype(np.uint32)
               for _ in LANEWISE[f"{name}.f32"].sources]  # fmt: skip
    expected = flushed(run(f"{name}.f32", *map(flushed, sources)))
    assert (expected != run(f"{name}.f32", *sources)).any()
    assert (run(f"{name}.ftz.f32", *sources) == expected).all()


@pytest.mark.parametrize("kind", MANTISSA)
def test_extremes_pass_over_a_nan_and_know_the_sign_of_zero(kind, numbers):
    a, b = float_lanes(numbers, kind, LANES), float_lanes(numbers, kind, LANES)
    top = 1 << (8 * a.itemsize - 1)

    def of(name: str, x: int, y: int) -> int:
        p, q = value(x, kind), value(y, kind)
        if math.isnan(p) and math.isnan(q):
            return NAN[kind]
        if math.isnan(p) or math.isnan(q):
            return y if math.isnan(p) else x
        if p == q == 0:
            zeros = {x & top, y & top}
            return min(zeros) if name == "max" else max(zeros)
        return (x if p >= q else y) if name == "max" else (x if p <= q else y)

    for name in ("min", "max"):
        expected = [of(name, int(x), int(y)) for x, y in zip(a, b, strict=True)]
        assert run(f"{name}.{kind}", a, b).tolist() == expected
        nan = np.isnan([value(int(x), kind) for x in a]) | np.isnan([value(int(y), kind) for y in b])
        assert nan.any()
        assert run(f"{name}.NaN.{kind}", a, b).tolist() == np.where(nan, NAN[kind], expected).tolist()
        if kind != "f32":
            assert run(f"{name}.{kind}x2", a.view(np.uint32), b.view(np.uint32)).view(np.uint16).tolist() == expected
    assert (run(f"abs.{kind}", a) == (a & ~a.dtype.type(top))).all()
    assert (run(f"neg.{kind}", a) == (a ^ a.dtype.type(top))).all()


# Conversions.

EVERY_16 = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
TORCH = {"f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("kind", TORCH)
def test_every_16_bit_number_is_the_same_in_32_bits(kind):
    expected = torch.from_numpy(EVERY_16.view(np.int16)).view(TORCH[kind]).float().numpy()
    found = run(f"cvt.f32.{kind}", EVERY_16).view(np.float32)
    assert ((found == expected) | (np.isnan(found) & np.isnan(expected))).all()


@pytest.mark.parametrize("kind", TORCH)
def test_rounding_to_16_bits(kind, numbers):
    """Every number of 16 bits, what lies half-way between two and beside it, and random bits."""
    every = run(f"cvt.f32.{kind}", EVERY_16)
    between = every + np.uint32(0x8000 if kind == "bf16" else 0x1000)
    single = np.concatenate([every, between, between + np.uint32(1), between - np.uint32(1), lanes(numbers, np.uint32)])
    rounded = torch.from_numpy(single.view(np.float32)).to(TORCH[kind])
    expected = rounded.view(torch.int16).numpy().view(np.uint16)
    expected = np.where(np.isnan(single.view(np.float32)), 0x7FFF, expected)
    assert (run(f"cvt.rn.{kind}.f32", single) == expected).all()
    other = numbers.permutation(single)
    packed = run(f"cvt.rn.{kind}x2.f32", other, single)
    assert (packed >> 16 == run(f"cvt.rn.{kind}.f32", other)).all()  # the first operand is the upper half
    assert (packed & np.uint32(0xFFFF) == expected).all()


def test_rounding_to_tf32_is_away_from_zero(numbers):
    single = float_lanes(numbers, "f32", LANES)

    def definition(pattern: int) -> int:
        number = value(pattern, "f32")
        if math.isnan(number):
            return 0x7FFFFFFF
        if math.isinf(number):
            return pattern
        magnitude = Fraction(abs(number))
        unit = Fraction(2) ** (max(pattern >> 23 & 0xFF, 1) - 127 - 10)
        rounded = math.floor(magnitude / unit + Fraction(1, 2)) * unit
        single = math.inf if rounded >= LARGEST["f32"] else float(rounded)
        return int(np.float32(single).view(np.uint32)) | pattern & 0x80000000

    assert run("cvt.rna.tf32.f32", single).tolist() == [definition(int(x)) for x in single]


@pytest.mark.parametrize(
    ("opcode", "given", "expected"),
    [
        ("cvt.s32.s16", 0xFFFE, 0xFFFFFFFE),
        ("cvt.u32.u16", 0xFFFE, 0xFFFE),
        ("cvt.s64.s32", 0x80000000, 0xFFFFFFFF80000000),
        ("cvt.u64.u32", 0x80000000, 0x80000000),
        ("cvt.u16.u32", 0x12345678, 0x5678),
        ("cvt.u32.u64", 0x123456789ABCDEF0, 0x9ABCDEF0),
        ("cvt.s16.s8", 0x80, 0xFF80),
        ("cvt.rn.f32.u32", 0xFFFFFFFF, 0x4F800000),
        ("cvt.rn.f32.u32", (1 << 24) + 1, 0x4B800000),
        ("cvt.rn.f32.s32", 0xFFFFFFFF, 0xBF800000),
    ],
)
def test_integers_are_extended_or_cut(opcode, given, expected):
    assert int(run(opcode, np.array([given], LANEWISE[opcode].sources[0]))[0]) == expected


# Approximations.

INF, NEG, NAN_32, ONE, TINY = 0x7F800000, 0x80000000, 0x7FFFFFFF, 0x3F800000, 0x00000001


@pytest.mark.parametrize(
    ("opcode", "given", "expected"),
    [
        ("ex2.approx.ftz.f32", [NEG | INF, NEG, 0, TINY, INF, NAN_32], [0, ONE, ONE, ONE, INF, NAN_32]),
        ("ex2.approx.ftz.f32", [0xC2FE0000, 0x43000000], [0, INF]),  # 2**-127 is subnormal, 2**128 too large
        ("rcp.approx.ftz.f32", [INF, NEG | INF, 0, NEG, TINY, NAN_32], [0, NEG, INF, NEG | INF, INF, NAN_32]),
        ("lg2.approx.ftz.f32", [INF, 0, NEG, ONE, NEG | ONE, TINY], [INF, NEG | INF, NEG | INF, 0, NAN_32, NEG | INF]),
        ("sqrt.approx.ftz.f32", [INF, 0, NEG, NEG | ONE], [INF, 0, NEG, NAN_32]),
        ("rsqrt.approx.ftz.f32", [INF, 0, NEG, NEG | ONE], [0, INF, NEG | INF, NAN_32]),
        ("tanh.approx.f32", [INF, NEG | INF, 0, NEG, NAN_32], [ONE, NEG | ONE, 0, NEG, NAN_32]),
    ],
)
def test_approximations_of_what_is_no_ordinary_number(opcode, given, expected):
    assert run(opcode, np.array(given, np.uint32)).tolist() == expected


@pytest.mark.parametrize(
    ("opcode", "function", "error"),
    [
        ("ex2.approx.ftz.f32", torch.exp2, 2**-22),
        ("rcp.approx.ftz.f32", torch.reciprocal, 2**-23),
        ("sqrt.approx.ftz.f32", torch.sqrt, 2**-22.9),
        ("rsqrt.approx.ftz.f32", torch.rsqrt, 2**-22.9),
        ("tanh.approx.f32", torch.tanh, 2**-11),
    ],
)
def test_approximations_within_their_stated_error(opcode, function, error, numbers):
    single = numbers.uniform(0.01, 50, LANES).astype(np.float32)
    expected = function(torch.from_numpy(single).double()).numpy()
    found = run(opcode, single.view(np.uint32)).view(np.float32)
    assert (np.abs(found - expected) <= error * np.abs(expected)).all()


@pytest.mark.parametrize("opcode", ["div.full.f32", "div.approx.f32", "div.approx.ftz.f32"])
def test_division_within_two_units(opcode, numbers):
    a, b = (np.exp2(numbers.uniform(-60, 60, LANES)).astype(np.float32) for _ in range(2))
    found = run(opcode, a.view(np.uint32), b.view(np.uint32)).view(np.float32)
    exact = a.astype(np.float64) / b
    assert (np.abs(found - exact) <= 2 * np.spacing(found)).all()


def test_what_div_approx_makes_of_a_large_divisor():
    """Table of div.approx in the PTX ISA: zero, and NaN of infinity; a divisor that is infinite is a divisor."""
    a = np.array([1, -3e38, np.inf, 1, 1] * LANES, np.float32)[:LANES]
    b = np.array([1e38, 2e38, 3e38, np.inf, 8e37] * LANES, np.float32)[:LANES]
    found = run("div.approx.f32", a.view(np.uint32), b.view(np.uint32)).view(np.float32)[:5]
    assert (found[:2] == 0).all()
    assert np.isnan(found[2])
    assert found[3] == 0
    assert abs(found[4] * 8e37 - 1) < 1e-6


# Comparisons.

ORDERED = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
}


@pytest.mark.parametrize(("name", "pick"), [("min", min), ("max", max)])
def test_relu_of_integers_is_no_less_than_zero(name, pick, numbers):
    a, b = (lanes(numbers, np.uint32, 300) for _ in range(2))
    expected = [max(pick(signed(int(x), 32), signed(int(y), 32)), 0) for x, y in zip(a, b, strict=True)]
    assert run(f"{name}.relu.s32", a, b).tolist() == expected


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"])
def test_comparisons_of_integers(kind, numbers):
    width = int(kind[1:])
    a, b = (lanes(numbers, LANEWISE[f"setp.eq.{kind}"].sources[0], 300) for _ in range(2))
    b[::3] = a[::3]
    c = lanes(numbers, np.bool_, 300)
    read = (lambda x: signed(int(x), width)) if kind[0] == "s" else int
    names = ["eq", "ne"] if kind[0] == "b" else list(ORDERED)
    for name in names:
        expected = np.array([ORDERED[name](read(x), read(y)) for x, y in zip(a, b, strict=True)])
        assert (run(f"setp.{name}.{kind}", a, b) == expected).all()
        p, q = run(f"setp.{name}.{kind}|", a, b)
        assert (p == expected).all()
        assert (q == ~expected).all()
        for word, combine in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
            assert (run(f"setp.{name}.{word}.{kind}", a, b, c) == combine(expected, c)).all()
            p, q = run(f"setp.{name}.{word}.{kind}|", a, b, c)
            assert (p == combine(expected, c)).all()
            assert (q == combine(~expected, c)).all()
    if kind[0] == "u":
        for name, same in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
            assert (run(f"setp.{name}.{kind}", a, b) == run(f"setp.{same}.{kind}", a, b)).all()


@pytest.mark.parametrize("kind", MANTISSA)
def test_a_nan_fails_every_ordered_comparison_and_passes_every_unordered_one(kind, numbers):
    a, b = float_lanes(numbers, kind, 600), float_lanes(numbers, kind, 600)
    b[::3] = a[::3]
    pairs = [(value(int(x), kind), value(int(y), kind)) for x, y in zip(a, b, strict=True)]
    nan = np.array([math.isnan(x) or math.isnan(y) for x, y in pairs])
    for name, compare in ORDERED.items():
        expected = np.array([compare(x, y) for x, y in pairs])
        assert (run(f"setp.{name}.{kind}", a, b) == (expected & ~nan)).all()
        assert (run(f"setp.{name}u.{kind}", a, b) == (expected | nan)).all()
        if kind != "f32":  # two numbers at once, and a predicate for each half
            low, high = run(f"setp.{name}.{kind}x2|", a.view(np.uint32), b.view(np.uint32))
            assert (low == (expected & ~nan)[0::2]).all()
            assert (high == (expected & ~nan)[1::2]).all()
    assert (run(f"setp.nan.{kind}", a, b) == nan).all()
    assert (run(f"setp.num.{kind}", a, b) == ~nan).all()


# Atomics.


def test_what_an_atomic_leaves(numbers):
    old, new, expected = (lanes(numbers, np.uint32) for _ in range(3))
    expected[::2] = old[::2]

    def atomic(key, *sources):
        return ATOMIC[key].run(*sources)

    assert (atomic("add.u32", old, new) == old + new).all()
    assert (atomic("exch.b32", old, new) == new).all()
    assert (atomic("cas.b32", old, expected, new) == np.where(old == expected, new, old)).all()
    assert (atomic("max.s32", old, new).view(np.int32) == np.maximum(old.view(np.int32), new.view(np.int32))).all()
    assert (atomic("min.u32", old, new) == np.minimum(old, new)).all()
    single = [x.view(np.uint32) for x in numbers.normal(size=(2, LANES)).astype(np.float32)]
    assert (
        atomic("add.f32", *single).view(np.float32) == single[0].view(np.float32) + single[1].view(np.float32)
    ).all()
