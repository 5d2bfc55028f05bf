"""What the quick run takes of a product has every pair of values in it, and is small."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
from sample import covering


@pytest.mark.parametrize("sizes", [(6, 3), (6, 3, 3), (6, 2, 4, 4), (2,), (1, 5)], ids=str)
@pytest.mark.parametrize("strength", [1, 2, 3])
def test_every_pair_of_values_occurs(sizes, strength):
    values = {name: range(size) for name, size in zip("abcd", sizes, strict=False)}
    rows = [dict(zip(values, row, strict=True)) for row in product(*values.values())]
    chosen = [rows[index] for index in covering(rows, strength)]
    strength = min(strength, len(sizes))
    for names in combinations(values, strength):
        found = {tuple(row[name] for name in names) for row in chosen}
        assert found == set(product(*(values[name] for name in names)))
    assert len(chosen) <= 1.5 * math.prod(sorted(sizes)[-strength:])


def test_pairs_that_the_product_lacks_are_not_missed():
    rows = [{"cell": "gru", "regime": "a"}, {"cell": "gru", "regime": "b"}, {"cell": "lstm", "regime": "a"}]
    assert sorted(covering(rows)) == [0, 1, 2]
