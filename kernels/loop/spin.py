"""A wait for the team's numbers that every thread does for itself: PTX for `tl.inline_asm_elementwise`.

The portable poll (`exchange.read_when_written`) asks all threads of the program whether one of them still misses a
number: three block barriers a poll. Here a thread tests the words that it has read itself, and reads again what is
missing: no barrier, no shuffle, and a thread whose numbers are there leaves L2 alone.

A block of PTX sees a thread's own words, in the layout that Triton has given them. `poll` reads VECTOR words at a
pointer, so they must have the layout of the `tl.load` before it, in which VECTOR words of a thread lie side by side in
memory: `layouts.check_layouts` reads that from every kernel that is compiled.

Helpers are constexpr_functions all, because Triton hashes what such a function calls.
"""

from __future__ import annotations

import triton

from ..stall import LAST_TEAM, STEP_BITS

CLOCK_POLLS = 256
"""Polls between two looks at the clock and at the status word, which lies in the host's memory: near 100 us."""


@triton.constexpr_function
def words_of_thread(rows, columns, num_warps):
    """How many words of a tile a thread has. In a smaller tile than there are threads, several have the same one."""
    return max(1, rows * columns // (32 * num_warps))


@triton.constexpr_function
def vector_words(head_size, numbers_in_word, words):
    """How many words are read at once: all columns that a row may begin or end at are multiples of `head_size`
    numbers or of 16, and a thread has no more than `words` of a chunk."""
    row = head_size // numbers_in_word
    return min(words, 4 if row % 4 == 0 else 2 if row % 2 == 0 else 1)


@triton.constexpr_function
def same_types(dtype, count):
    return (dtype,) * count


@triton.constexpr_function
def poll_constraints(chunks, words):
    """LLVM's constraints of `poll`: out the words of all chunks; in the words, masks, pointers of chunk 0, limit,
    status, step."""
    given = ["r"] * (2 * chunks * words) + ["l"] * words + ["r"] * words + ["l"] * words + ["r"] * words
    return ",".join(["=&r"] * (chunks * words) + given)


@triton.constexpr_function
def poll(chunks, words, vector, chunk_bytes, numbers_in_word, pairs, members):
    """PTX that returns with all words written. A thread has `words` words of each chunk, `vector` at an address.

    chunk_bytes:      from an address in one chunk to the same in the next: an immediate offset. All chunks are in one
                      block, because three waits in a row are three round trips.
    numbers_in_word:  1 of 32 bits or 2 of 16.
    pairs:            whether the target compares two 16-bit numbers with one instruction (sm_90 and later).
    members:          programs of a team.

    A limit of 0 waits for nothing: h_0 is the caller's and may hold any bits. Where the limit is over, or another
    program's was, status is not 0 and what is missing is the sentinel still, a NaN that the product carries on.
    """
    total = chunks * words
    word = [[f"${c * words + w}" for w in range(words)] for c in range(chunks)]
    mask = [[f"${2 * total + c * words + w}" for w in range(words)] for c in range(chunks)]
    pointer = [f"${3 * total + w}" for w in range(words)]
    limit, status, step = (f"${3 * total + at * words}" for at in (1, 2, 3))
    lines = [
        "{",
        ".reg .pred any, go, m, " + ", ".join(f"p{c}" for c in range(chunks)) + ";",
        ".reg .b32 polls, u, v, " + ", ".join(f"t{c}" for c in range(chunks)) + ";",
        ".reg .b64 now, end;",
    ]
    lines += [f"mov.b32 ${i}, ${total + i};" for i in range(total)]
    lines += ["mov.b32 polls, 0;", "mov.b64 end, 0;", "TEST:"]
    # A chain of tests for each chunk: the first ones run while the later chunks' words are on their way. One look at
    # all of them decides; which chunk misses words is asked of those that do alone. LSTM bf16 768 takes 1,148 issue
    # cycles so, and 1,152 with a look at each chunk before the jump.
    for c in range(chunks):
        lines += _tested(word[c], f"t{c}", "u", numbers_in_word, pairs)
    lines += ["mov.b32 u, t0;"] + [f"{_both(numbers_in_word, pairs)} u, u, t{c};" for c in range(1, chunks)]
    lines += [*_found("u", "any", numbers_in_word, pairs), "@!any bra DONE;"]
    for c in range(chunks):
        lines += _found(f"t{c}", f"p{c}", numbers_in_word, pairs)
    lines += _go_on_or_give_up(limit, status, step, members, [])
    # All loads before the next test. What is masked is zero from the first load on, and is never read.
    for c in range(chunks):
        for w in range(0, words, vector):
            kind, registers = "b32", word[c][w]
            if vector > 1:
                kind, registers = f"v{vector}.b32", "{" + ", ".join(word[c][w : w + vector]) + "}"
            lines += [
                f"setp.ne.u32 m, {mask[c][w]}, 0;",
                f"and.pred m, m, p{c};",
                f"@m ld.relaxed.gpu.global.{kind} {registers}, [{pointer[w]}+{c * chunk_bytes}];",
            ]
    return "\n".join([*lines, "bra TEST;", "DONE:", "}"])


@triton.constexpr_function
def _tested(words, t, u, numbers_in_word, pairs):
    """Sets t to what tells `_found` whether one of the words holds the sentinel; u is a register to work in.

    The sentinel is the largest unsigned number, so a maximum finds it, and nothing but it: on sm_90 one instruction for
    two words. A sum by FMA, which carries any NaN, is as short, but takes an exact test behind it that every failing
    poll goes through: for LSTM H=768 180 instructions a poll and not 81, on sm_80 548 issue cycles and not 289.
    """
    if numbers_in_word == 1 or pairs:
        largest = _both(numbers_in_word, pairs)
        return [f"mov.b32 {t}, {words[0]};"] + [f"{largest} {t}, {t}, {word};" for word in words[1:]]
    # (~w - 0x10001) & w has the top bit of a half set where that half is all ones, for a borrow above it too (Mycroft).
    lines = [f"mov.b32 {t}, 0;"]
    for word in words:
        lines += [f"sub.u32 {u}, 0xFFFEFFFE, {word};", f"and.b32 {u}, {u}, {word};", f"or.b32 {t}, {t}, {u};"]
    return lines


@triton.constexpr_function
def _both(numbers_in_word, pairs):
    """The instruction that makes one of two results of `_tested`."""
    return "max.u32" if numbers_in_word == 1 else "max.u16x2" if pairs else "or.b32"


@triton.constexpr_function
def _found(t, found, numbers_in_word, pairs):
    """Sets the predicate `found` if t, of `_tested`, says that a word holds the sentinel; works in the register v."""
    if numbers_in_word == 1:
        return [f"setp.eq.u32 {found}, {t}, 0xFFFFFFFF;"]
    lines = [f"sub.u32 v, 0xFFFEFFFE, {t};", f"and.b32 v, {t}, v;"] if pairs else [f"mov.b32 v, {t};"]
    return [*lines, "and.b32 v, v, 0x80008000;", f"setp.ne.u32 {found}, v, 0;"]


@triton.constexpr_function
def _go_on_or_give_up(limit, status, step, members, poison):
    """After a test that failed: falls through to the next poll, or jumps to DONE with `poison` done.

    The limit, in 1,024 ns, is counted from the first look at the clock: a wait that ends soon never reads it.
    """
    return [
        f"setp.eq.s32 go, {limit}, 0;",
        "@go bra DONE;",
        "add.u32 polls, polls, 1;",
        f"and.b32 u, polls, {CLOCK_POLLS - 1};",
        "setp.ne.u32 go, u, 0;",
        "@go bra AGAIN;",
        # Whoever has given up tells everybody.
        f"ld.relaxed.sys.global.b32 u, [{status}];",
        "setp.ne.u32 go, u, 0;",
        "@go bra GIVEUP;",
        "mov.u64 now, %globaltimer;",
        f"setp.ne.u32 go, polls, {CLOCK_POLLS};",
        "@go bra CLOCK;",
        f"cvt.u64.u32 end, {limit};",
        "shl.b64 end, end, 10;",
        "add.u64 end, end, now;",
        "CLOCK:",
        "setp.lt.u64 go, now, end;",
        "@go bra AGAIN;",
        "mov.u32 u, %ctaid.x;",
        f"div.u32 u, u, {members};",
        f"min.u32 u, u, {LAST_TEAM};",
        "add.u32 u, u, 1;",
        f"shl.b32 u, u, {STEP_BITS};",
        f"min.u32 polls, {step}, {(1 << STEP_BITS) - 1};",
        "or.b32 u, u, polls;",
        f"st.relaxed.sys.global.b32 [{status}], u;",
        "GIVEUP:",
        *poison,
        "bra DONE;",
        "AGAIN:",
    ]


@triton.constexpr_function
def parts_constraints(parts, words):
    """Of `parts_poll`: out the words of all parts; in the words, their pointers, the round's bit, limit, status,
    step."""
    total = parts * words
    given = ["r"] * total + ["l"] * total + ["r"] * (2 * words) + ["l"] * words + ["r"] * words
    return ",".join(["=&r"] * total + given)


@triton.constexpr_function
def parts_poll(parts, words, members):
    """As `poll` for partial sums (see `split_k`): a word is written once its lowest bit is the round's. One pointer a
    word; where the limit is over, all of them are NaN."""
    total = parts * words
    round_bit, limit, status, step = (f"${3 * total + at * words}" for at in range(4))
    lines = ["{", ".reg .pred go, stale;", ".reg .b32 polls, u, t;", ".reg .b64 now, end;"]
    lines += [f"mov.b32 ${i}, ${total + i};" for i in range(total)]
    lines += ["mov.b32 polls, 0;", "mov.b64 end, 0;", "TEST:", "mov.b32 t, 0;"]
    for i in range(total):
        lines += [f"xor.b32 u, ${i}, {round_bit};", "or.b32 t, t, u;"]
    lines += ["and.b32 t, t, 1;", "setp.ne.u32 stale, t, 0;", "@!stale bra DONE;"]
    lines += _go_on_or_give_up(limit, status, step, members, [f"mov.b32 ${i}, 0x7FFFFFFF;" for i in range(total)])
    lines += [f"ld.relaxed.gpu.global.b32 ${i}, [${2 * total + i}];" for i in range(total)]
    return "\n".join([*lines, "bra TEST;", "DONE:", "}"])


@triton.constexpr_function
def read_once():
    """PTX that loads 32 bits at $1 into $0 where $2 is not 0, else 0: .cs is evict-first in L1 and L2, as `tl.load`'s
    policy is, which needs a descriptor made for every load. LSTM bf16 768 B=16, sm_90: 19 issue cycles a step."""
    lines = ["{", ".reg .pred m;", "setp.ne.u32 m, $2, 0;", "mov.b32 $0, 0;", "@m ld.global.cs.b32 $0, [$1];", "}"]
    return "\n".join(lines)


@triton.constexpr_function
def name_of(dtype):
    return dtype.name


@triton.constexpr_function
def publish_word(dtype, pairs):
    """PTX that stores a word of float32 numbers in their dtype: $1, for 16 bits $1 and $2, to the address in the
    operand after them, where the one after that is not 0. $0 is a result because a block must have one.

    Strong, because strong loads of other programs meet it: a weak store and a strong load are a race in PTX's memory
    model, which promises no eventual visibility. The sentinel becomes the next smaller bit pattern, another NaN.
    """
    lines = ["{", ".reg .pred m;", ".reg .b32 w;"]
    if dtype == "fp32":
        lines += ["min.u32 w, $1, 0xFFFFFFFE;", "setp.ne.u32 m, $3, 0;", "@m st.relaxed.gpu.global.b32 [$2], w;"]
        return "\n".join([*lines, "mov.b32 $0, 0;", "}"])
    # One instruction for both: converted one by one, ptxas takes two of the slow kind and one to put them together.
    lines += [f"cvt.rn.{ {'bf16': 'bf16x2', 'fp16': 'f16x2'}[dtype] }.f32 w, $2, $1;"]
    lines += [".reg .b32 u;"]
    if pairs:
        lines += ["mov.b32 u, 0xFFFEFFFE;", "min.u16x2 w, w, u;"]
    else:
        lines += [
            "setp.ge.u32 m, w, 0xFFFF0000;",
            "@m sub.u32 w, w, 0x10000;",
            "and.b32 u, w, 0xFFFF;",
            "setp.eq.u32 m, u, 0xFFFF;",
            "@m sub.u32 w, w, 1;",
        ]
    lines += ["setp.ne.u32 m, $4, 0;", "@m st.relaxed.gpu.global.b32 [$3], w;"]
    return "\n".join([*lines, "mov.b32 $0, 0;", "}"])


@triton.constexpr_function
def publish_number():
    """As `publish_word` for a single number of 16 bits, the low half of $1, which is not the sentinel."""
    lines = ["{", ".reg .pred m;", ".reg .b16 h;", "setp.ne.u32 m, $3, 0;", "cvt.u16.u32 h, $1;"]
    return "\n".join([*lines, "@m st.relaxed.gpu.global.b16 [$2], h;", "mov.b32 $0, 0;", "}"])
