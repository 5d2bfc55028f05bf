"""PyTorch's rule for cuDNN's algorithm, as its source and the issue tracker state it."""

from __future__ import annotations

import pytest
import torch

from holdfast.autotune.cudnn import Stack, cudnn_algorithm

H100 = {"capability": (9, 0), "num_sms": 132, "cudnn": 91500}
HOME = {"cell": "lstm", "dtype": torch.float16, "hidden_size": 768, "batch_size": 16, "length": 1024, "inputs": 768}


def algorithm(backward: bool = False, gpu=H100, **change) -> str:
    return cudnn_algorithm(Stack(**(HOME | change)), backward=backward, **gpu)


def test_the_home_ground():
    for batch in range(8, 129, 8):
        for hidden in range(256, 1025, 128):
            assert algorithm(batch_size=batch, hidden_size=hidden) == "persist_static"
            assert algorithm(batch_size=batch, hidden_size=hidden, backward=True) == "persist_static"


@pytest.mark.parametrize(
    "change",
    [
        {"cell": "gru"},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float32},
        {"batch_size": 12},
        {"batch_size": 136},
        {"hidden_size": 800},
        {"hidden_size": 1152},
        {"inputs": 100},
        {"directions": 2},
        {"layers": 2},
        {"packed": True},
        {"projected": True},
        {"gpu": H100 | {"num_sms": 84}},
        {"gpu": H100 | {"capability": (8, 6)}},
        {"gpu": H100 | {"capability": (7, 5)}},
    ],
    ids=str,
)
def test_a_step_away_from_home_is_standard(change):
    assert algorithm(**change) == "standard"


@pytest.mark.parametrize(
    ("cell", "forward", "backward"), [("rnn_tanh", 384, 256), ("gru", 192, 128), ("lstm", 192, 128)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_small_hidden_sizes(cell, forward, backward, dtype):
    for limit, phase in ((forward, False), (backward, True)):
        # One more is no multiple of 128 either, so no other persistent kernel takes it.
        found = [algorithm(backward=phase, cell=cell, dtype=dtype, hidden_size=limit + more) for more in (0, 1)]
        assert found == ["persist_static_small_h", "standard"]


def test_large_batches_of_large_plain_rnns_are_standard():
    assert algorithm(cell="rnn_tanh", hidden_size=896, batch_size=96) == "standard"
    assert algorithm(cell="rnn_tanh", hidden_size=768, batch_size=96) == "persist_static"
    assert algorithm(cell="rnn_tanh", hidden_size=896, batch_size=88) == "persist_static"


def test_volta_looks_at_batch_and_length():
    volta = H100 | {"capability": (7, 0), "num_sms": 80}
    assert algorithm(gpu=volta) == "persist_static"
    assert algorithm(gpu=volta, batch_size=80) == "standard"
    assert algorithm(gpu=volta, length=10, batch_size=64) == "standard"
    assert algorithm(gpu=volta, length=10, batch_size=32) == "persist_static"


def test_an_old_cudnn_has_no_bfloat16():
    assert algorithm(gpu=H100 | {"cudnn": 91200}, dtype=torch.bfloat16) == "no cuDNN"
    assert algorithm(gpu=H100 | {"cudnn": 91200}) == "persist_static"
