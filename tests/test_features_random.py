"""Random combinations of everything that a call may have equal a plain loop in float64, values and gradients."""

import random

import pytest
from plain_loop import ACTIVATIONS, compare, draw_case

from holdfast.cells.eager import activations

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.mark.parametrize("block", range(10))
def test_equals_a_plain_loop(block):  # the failing seed is in the message
    for _ in range(30):
        case = draw_case(random.randrange(2**31))
        try:
            compare(case)
        except Exception as error:
            raise AssertionError(f"draw_case({case.seed}): {case}") from error


def test_the_draws_reach_every_feature():
    cases = [draw_case(seed) for seed in range(400)]
    cells = {case.module.cell.partition("(")[0] for case in cases}
    assert cells == {"rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm", "lstm_peephole"}
    named = {getattr(case.module, "activation", "tanh") for case in cases}
    assert named == set(ACTIVATIONS) == set(activations.ACTIVATIONS)
    assert {case.form for case in cases} == {"batch", "unbatched", "packed"}
    for option in ("bidirectional", "batch_first", "proj_size", "dropout", "learn_initial_state"):
        assert any(getattr(case.module, option) for case in cases), option
    assert {case.module.num_heads for case in cases} == {1, 2, 4}
    for option in ("zoneout", "recurrent_dropout"):
        assert {case.module.training for case in cases if getattr(case.module, option)} == {True, False}, option
    for argument in ("hx", "lengths", "resets", "reset_state"):
        assert any(getattr(case, argument) is not None for case in cases), argument
    assert any(case.lengths is not None and case.resets is not None and 0 in list(case.lengths) for case in cases)
    assert {case.x.shape[0 if case.module.batch_first else 1] for case in cases} == {0, 1, 2, 3, 4}
