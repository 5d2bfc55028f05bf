"""Other people's packages with holdfast inside: what they compute is bitwise what they compute with torch.nn.

The packages are in the extra `recipes`; what is not installed is skipped.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import types
import warnings

import pytest
import torch
from torch import nn

import holdfast

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def recurrent(module):
    return [m for m in module.modules() if isinstance(m, nn.RNNBase)]


class TestTorchRL:
    @pytest.fixture
    def rollout(self):
        TensorDict = pytest.importorskip("tensordict").TensorDict
        is_init = torch.zeros(3, 7, 1, dtype=torch.bool)
        is_init[:, 0] = True
        is_init[1, 4] = is_init[2, 2] = True
        return TensorDict({"observation": torch.randn(3, 7, 5), "is_init": is_init}, [3, 7])

    @pytest.fixture(params=["LSTM", "GRU"])
    def module(self, request):
        modules = pytest.importorskip("torchrl.modules")
        keys = {"in_key": "observation", "out_key": "features"}
        return getattr(modules, f"{request.param}Module")(
            5, 8, default_recurrent_mode=True, recurrent_backend="pad", **keys
        )

    def test_keep_isinstance(self, module, rollout):
        expected = module(rollout.clone())["features"]
        holdfast.convert(module, keep_isinstance=True)
        assert torch.equal(module(rollout.clone())["features"], expected)

    def test_module_built_on_ours(self, rollout):
        modules = pytest.importorskip("torchrl.modules")
        lstm = nn.LSTM(5, 8, batch_first=True)
        keys = {"in_key": "observation", "out_key": "features", "default_recurrent_mode": True}
        expected = modules.LSTMModule(lstm=lstm, recurrent_backend="pad", **keys)(rollout.clone())["features"]
        ours = holdfast.convert(copy.deepcopy(lstm), keep_isinstance=True)
        computed = modules.LSTMModule(lstm=ours, recurrent_backend="pad", **keys)(rollout.clone())["features"]
        assert torch.equal(computed, expected)

    def test_one_call_with_resets_is_the_same(self, module, rollout):
        """Its padding of every episode, and our resets: is_init is [B, T, 1]."""
        expected = module(rollout.clone())["features"]
        (layer,) = recurrent(holdfast.convert(module))
        y, _ = layer(rollout["observation"], resets=rollout["is_init"].squeeze(-1))
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


def test_initialisation_of_transformers():
    modeling = pytest.importorskip("transformers")

    class Model(modeling.PreTrainedModel):
        config_class = modeling.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.lstm = nn.LSTM(4, 8)

    model = Model(modeling.PretrainedConfig())
    for keep, touched in ((False, False), (True, True)):
        converted = holdfast.convert(copy.deepcopy(model), keep_isinstance=keep)
        with torch.no_grad():
            converted.lstm.bias_ih_l0.fill_(3.0)
        converted._init_weights(converted.lstm)
        assert (converted.lstm.bias_ih_l0 == 0).all() == touched


def test_initialisation_of_recbole(monkeypatch):
    pytest.importorskip("recbole")
    if "torch.utils.tensorboard" not in sys.modules:  # it imports this to write logs
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=None))
    NARM = pytest.importorskip("recbole.model.sequential_recommender.narm").NARM
    xavier = []
    for keep in (False, True):
        gru = holdfast.convert(nn.GRU(4, 8), keep_isinstance=keep)
        model = types.SimpleNamespace()
        before = gru.weight_hh_l0.clone()
        NARM._init_weights(model, gru)
        xavier.append(not torch.equal(before, gru.weight_hh_l0))
    torch_gru = nn.GRU(4, 8)
    before = torch_gru.weight_hh_l0.clone()
    NARM._init_weights(types.SimpleNamespace(), torch_gru)
    assert xavier == [False, not torch.equal(before, torch_gru.weight_hh_l0)]


def test_thop_counts_as_for_torch():
    """It looks a class up by itself, not by isinstance, and counts 0 of what it does not know."""
    thop = pytest.importorskip("thop")
    x = torch.randn(5, 2, 8)
    expected, _ = thop.profile(nn.LSTM(8, 16), (x,), verbose=False)
    hooks = pytest.importorskip("thop.rnn_hooks")
    counted, _ = thop.profile(holdfast.LSTM(8, 16), (x,), verbose=False, custom_ops={holdfast.LSTM: hooks.count_lstm})
    assert counted == expected > 0


@pytest.mark.parametrize("keep", [False, True])
def test_opacus_says_what_to_do(keep):
    opacus = pytest.importorskip("opacus")
    with pytest.raises(NotImplementedError, match=r"opacus has no .* holdfast\.to_torch\(model\), then opacus"):
        opacus.GradSampleModule(holdfast.convert(nn.LSTM(4, 8, batch_first=True), keep_isinstance=keep))
    model = holdfast.to_torch(holdfast.convert(nn.Sequential(nn.LSTM(4, 8, batch_first=True)), keep_isinstance=keep))
    assert opacus.validators.ModuleValidator.validate(opacus.validators.ModuleValidator.fix(model)) == []


def both_ways(train):
    """What `train()` returns with torch.nn and, from the same seed, in a patched block."""
    torch.manual_seed(5)
    expected = train()
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="(?!holdfast)")
        with holdfast.patch():
            computed = train()
    return expected, computed


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_darts(cell, tmp_path):
    """It takes the class by name from torch.nn within fit."""
    pytest.importorskip("darts")
    import numpy as np
    from darts import TimeSeries
    from darts.models import RNNModel

    series = TimeSeries.from_values(np.sin(np.arange(60, dtype=np.float32) / 4))

    def train():
        trainer = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        model = RNNModel(
            12,
            cell,
            hidden_dim=8,
            training_length=20,
            n_epochs=2,
            random_state=0,
            pl_trainer_kwargs=trainer,
            work_dir=str(tmp_path),
        )
        model.fit(series)
        return model, model.predict(5).values()

    (theirs, expected), (ours, computed) = both_ways(train)
    assert type(ours.model.rnn) is getattr(holdfast, cell)
    assert type(theirs.model.rnn) is getattr(nn, cell)
    assert (computed == expected).all()

    ours.save(str(tmp_path / "model.pt"))
    for block, kind in ((contextlib.nullcontext(), nn), (holdfast.patch(), holdfast)):
        with block:
            loaded = RNNModel.load(str(tmp_path / "model.pt"), pl_trainer_kwargs={"enable_progress_bar": False})
        assert type(loaded.model.rnn) is getattr(kind, cell)
        assert (loaded.predict(5).values() == expected).all()


def test_gluonts(tmp_path):
    pytest.importorskip("gluonts.torch")
    import numpy as np
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator

    values = np.sin(np.arange(80) / 4).astype(np.float32)
    data = ListDataset([{"start": "2020-01-01", "target": values}], freq="D")

    def train():
        trainer = {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "logger": False,
            "default_root_dir": str(tmp_path),
            "enable_model_summary": False,
        }
        estimator = DeepAREstimator(
            "D", 5, hidden_size=8, batch_size=4, num_batches_per_epoch=2, trainer_kwargs=trainer
        )
        np.random.seed(5)
        return estimator.train(data)

    predictors = both_ways(train)
    theirs, ours = (predictor.prediction_net.model for predictor in predictors)
    assert type(ours.rnn) is holdfast.LSTM
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))

    predictors[1].serialize(tmp_path)
    for block, kind in ((contextlib.nullcontext(), nn.LSTM), (holdfast.patch(), holdfast.LSTM)):
        with block:
            loaded = type(predictors[1]).deserialize(tmp_path)
        assert type(loaded.prediction_net.model.rnn) is kind


class TestPytorchForecasting:
    """Its LSTM and GRU are subclasses of torch.nn's that compute through super().forward."""

    @pytest.mark.parametrize("cell", ["LSTM", "GRU"])
    def test_its_layers(self, cell):
        theirs = getattr(pytest.importorskip("pytorch_forecasting.models.nn.rnn"), cell)
        torch.manual_seed(1)
        layer = theirs(3, 8, batch_first=True)
        x, lengths = torch.randn(4, 6, 3), torch.tensor([6, 4, 0, 1])
        expected = layer(x, lengths=lengths, enforce_sorted=False)
        with pytest.warns(UserWarning, match=rf"swapped nothing.*subclasses=\[{cell}\]"):
            holdfast.convert(layer)
        holdfast.convert(layer, subclasses=[theirs])
        assert isinstance(layer, theirs)
        assert isinstance(layer, getattr(holdfast, cell))
        torch.testing.assert_close(layer(x, lengths=lengths, enforce_sorted=False), expected, rtol=0, atol=0)
        assert holdfast.to_torch(layer) is layer
        assert type(layer) is theirs

    def test_a_whole_model(self):
        tft = pytest.importorskip("pytorch_forecasting").TemporalFusionTransformer
        theirs = pytest.importorskip("pytorch_forecasting.models.nn.rnn").LSTM
        with holdfast.patch(subclasses=[theirs]):
            model = tft(hidden_size=4, lstm_layers=1, x_reals=["a"], time_varying_reals_encoder=["a"])
        assert len(holdfast.conversion_report(model).left) == 0
        assert len(recurrent(model)) == 2
