"""The quick run's part of a product of parameters.

`@pytest.mark.sampled` over `parametrize`: the quick run takes a few of the combinations, in which every pair of two
parameters' values occurs at least once that occurs at all; the others are marked `thorough`. `sampled(1)`: every value
once. On a GPU, where a case takes a fraction of a second, nothing is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest


def covering(rows: Sequence[Mapping[str, Hashable]], strength: int = 2) -> list[int]:
    """Indices of a few rows that hold, between them, every `strength` values that stand together in any row.

    Greedy: the row with the most that is new; among equals the one whose values were taken least often.
    """
    together = [set(combinations(sorted(row.items()), min(strength, len(row)))) for row in rows]
    missing = set().union(*together)
    chosen: list[int] = []
    taken: Counter[tuple[str, Hashable]] = Counter()
    while missing:
        new = [len(found & missing) for found in together]
        worn = [sum(taken[value] for value in row.items()) for row in rows]
        best = max(range(len(rows)), key=lambda index: (new[index], -worn[index]))
        chosen.append(best)
        missing -= together[best]
        taken.update(rows[best].items())
    return chosen


def mark_the_rest(items: Sequence[pytest.Item]) -> None:
    """Mark `thorough` what a sampled test's covering sample leaves out, among the slow cases and among the others."""
    tests: dict[tuple[object, str, bool], list[pytest.Function]] = defaultdict(list)
    for item in items:
        elsewhere = {"gpu", "thorough"} & set(item.keywords)
        if isinstance(item, pytest.Function) and item.get_closest_marker("sampled") and not elsewhere:
            tests[item.parent, item.originalname, "slow" in item.keywords].append(item)
    for cases in tests.values():
        marker = cases[0].get_closest_marker("sampled")
        assert marker is not None
        # By their text: a parameter may be a dict or a dtype, which nothing hashes or orders.
        rows = [{name: repr(value) for name, value in case.callspec.params.items()} for case in cases]
        chosen = set(covering(rows, *marker.args))
        for index, case in enumerate(cases):
            if index not in chosen:
                case.add_marker(pytest.mark.thorough)
