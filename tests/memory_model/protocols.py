"""How a team hands on h_t (kernels/README.md, "The life of h_t"), as programs of the memory model.

A thread's last poll is in the program, and that it found what it waited for is a condition on the execution; an earlier
poll stands in it where its answer matters. `SENTINEL` is what memory holds before: all ones.
"""

from __future__ import annotations

from collections.abc import Callable

from .program import Operation, Program, Thread, add, barrier, load, store, volatile

SENTINEL = -1

Publish = Callable[..., Operation]


def strong(name: str, location: str, value, after: tuple[str, ...] = ()) -> Operation:
    """As `spin.publish_word`: st.relaxed.gpu."""
    return store(name, location, value, "relaxed", "gpu", after)


def weak(name: str, location: str, value, after: tuple[str, ...] = ()) -> Operation:
    """As `tl.store`."""
    return store(name, location, value, after=after)


def poll(name: str, location: str, after: tuple[str, ...] = ()) -> Operation:
    """As `spin.poll` reads again: ld.relaxed.gpu."""
    return load(name, location, "relaxed", "gpu", after)


def cached(name: str, location: str, after: tuple[str, ...] = ()) -> Operation:
    """A load without `volatile`."""
    return load(name, location, after=after)


def publish_and_poll(publish: Publish = strong, first_poll: Callable[..., Operation] = volatile) -> Program:
    """One word of h, 5; polled twice. A second word, 6, published before it."""
    return Program(
        [
            Thread(0, [publish("other", "h'", 6), publish("word", "h", 5)]),
            Thread(1, [first_poll("first", "h"), poll("second", "h"), poll("neighbour", "h'")]),
        ],
        {"h": SENTINEL, "h'": SENTINEL},
    )


def two_steps(publish: Publish = strong) -> Program:
    """Two members, a unit each: h_t of one is made of h_{t-1} of both. Memory of its own for every step.

    A: 1, then 10 + B's first; B: 2, then 20 + A's first. Each then reads the other's second.
    """
    sentinels = dict.fromkeys(("a1", "b1", "a2", "b2"), SENTINEL)
    return Program(
        [
            Thread(
                0,
                [
                    publish("A1", "a1", 1),
                    volatile("A reads b1", "b1"),
                    publish("A2", "a2", lambda read: 10 + read["A reads b1"]),
                    volatile("A reads b2", "b2", after=("A reads b1",)),
                ],
            ),
            Thread(
                1,
                [
                    publish("B1", "b1", 2),
                    volatile("B reads a1", "a1"),
                    publish("B2", "b2", lambda read: 20 + read["B reads a1"]),
                    volatile("B reads a2", "a2", after=("B reads a1",)),
                ],
            ),
        ],
        sentinels,
    )


def bit_of(turn: int, slots: int = 2) -> int:
    """The round's bit (see `split_k`): 0 at the first use of each slot, then 1, then 0 again."""
    return (turn // slots) & 1


def part_of(turn: int, slots: int = 2) -> int:
    """What a program's part of this product is here: even or odd by the round's bit."""
    return 2 * (50 + turn) + bit_of(turn, slots)


def three_rounds(publish: Publish = strong, slots: int = 2, waits: bool = True) -> Program:
    """Two programs that share three products: in each both publish a part and read the other's.

    A part is made of what was read in the round before. In the last round "A reads 2" is the poll that ends the wait;
    B polls A's first part once more than it needs to ("B early").
    waits: whether a part depends on the round before.
    """

    def rounds(me: str, other: str) -> list[Operation]:
        ops: list[Operation] = []
        for turn in range(3):
            seen = (f"{me} reads {turn - 1}",) if turn and waits else ()
            ops.append(publish(f"{me} part {turn}", f"{me}{turn % slots}", part_of(turn, slots), after=seen))
            if turn == 0 and me == "B":
                ops.append(volatile("B early", f"{other}0"))
            ops.append(volatile(f"{me} reads {turn}", f"{other}{turn % slots}"))
        return ops

    slots_of_both = [f"{who}{slot}" for who in "AB" for slot in range(slots)]
    return Program([Thread(0, rounds("A", "B")), Thread(1, rounds("B", "A"))], dict.fromkeys(slots_of_both, SENTINEL))


def barrier_exchange(
    release: str = "release", acquire: str = "acquire", bar_before: bool = True, bar_after: bool = True
) -> Program:
    """ "barrier": a member's threads store h weakly, a `bar.sync`, one thread adds to the counter; a member that waits
    has one thread read the counter, a `bar.sync` hands the answer to all, and they load.

    Two steps: member 0 publishes h = 5, member 1 reads it and publishes 7 + h, which member 0 reads. The thread that
    stores or loads is never the one that counts.
    """

    def stored(member: int, work: list[Operation]) -> list[Thread]:
        """The thread that stores, and the one that arrives."""
        place = f"{member} stored"
        here, there = (barrier(f"{place}, {who}", of=place) if bar_before else () for who in ("stores", "counts"))
        return [Thread(member, [*work, *here]), Thread(member, [*there, add(f"arrive {member}", "count", 1, release)])]

    def waited(member: int, work: list[Operation]) -> list[Thread]:
        """The thread that asks, and the one that goes on."""
        place = f"{member} waited"
        here, there = (barrier(f"{place}, {who}", of=place) if bar_after else () for who in ("asks", "loads"))
        return [Thread(member, [add(f"wait {member}", "count", 0, acquire), *here]), Thread(member, [*there, *work])]

    seven_more = store("h2", "h2", lambda read: 7 + read["1 reads h"])
    asks, goes_on = waited(1, [volatile("1 reads h", "h"), seven_more])
    counts = stored(1, [])
    goes_on = Thread(1, [*goes_on.operations, *counts[0].operations])
    return Program(
        [
            *stored(0, [store("h", "h", 5)]),
            asks,
            goes_on,
            counts[1],
            *waited(0, [volatile("0 reads h2", "h2")]),
        ]
    )
