"""Random calls of the modules on the kernels equal a plain loop in float64, values and gradients."""

import random

import pytest
import torch
from plain_loop import compare, draw_case

import holdfast
from holdfast.autotune.pin import pinned
from holdfast.kernels.config import Config

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.usefixtures("products_in_float32"),
]

CONFIGS = {
    "single_cta": Config("single_cta", 16, 16, 16),
    "dataflow": Config("cooperative", 16, 16, 16, exchange="dataflow"),
    "barrier": Config("cooperative", 16, 16, 16, exchange="barrier"),
}


@pytest.fixture
def products_in_float32():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def assert_equal(seed, device, config):
    case = draw_case(seed)
    try:
        with holdfast.backend("triton"), pinned(config):  # a kernel or an error
            compare(case, device, torch.float32)
    except Exception as error:
        raise AssertionError(f"draw_case({seed}) with {config}: {case}") from error


@pytest.mark.sampled(1)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("block", range(4))
def test_equals_a_plain_loop(block, config, device):
    for seed in range(10 * block, 10 * block + 10):
        assert_equal(seed, device, config)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    ("device", "draws"),
    [("interpreted", 300), ("compiled", 30), pytest.param("cuda", 300, marks=pytest.mark.gpu)],
    indirect=["device"],
)
def test_many_draws_equal_a_plain_loop(config, device, draws):
    for _ in range(draws):
        assert_equal(random.randrange(2**31), device, config)
