"""The demo's pieces: text that is split honestly, streams that lose nothing, models that learn."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from holdfast.bench.demo.model import CELLS, CharModel, detach, hidden_size_for, parameter_count, sample
from holdfast.bench.demo.report import results_table, write_report
from holdfast.bench.demo.text import (
    Corpus,
    Vocabulary,
    chunks,
    in_blocks,
    python_docs,
    streams,
    unigram_bits,
    without_repeats,
    xz_bits,
)
from holdfast.bench.demo.through_kernels import through_kernels
from holdfast.bench.demo.train import Recipe, batches, bits_per_character, train
from holdfast.bench.output.tables import to_markdown

cells = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return python_docs()


@pytest.fixture(scope="module")
def vocabulary(corpus) -> Vocabulary:
    return Vocabulary(corpus.train)


def tiny(vocabulary: Vocabulary, cell: str = "GRU", hidden_size: int = 24) -> CharModel:
    torch.manual_seed(0)
    return CharModel(cell, len(vocabulary), hidden_size)


def test_no_held_out_paragraph_is_in_the_training_text(corpus):
    learnt = {tuple(paragraph.split()) for paragraph in corpus.train.split("\n\n")}
    assert not [p for p in corpus.held_out.split("\n\n") if p.split() and tuple(p.split()) in learnt]
    assert len(corpus.train) > 200_000
    assert 0.05 < len(corpus.held_out) / len(corpus.train) < 0.2


def test_repeats_are_dropped_whatever_their_line_breaks():
    assert list(without_repeats(["a b", "c", "  a\n  b", "", "c"])) == ["a b", "c"]


def test_blocks_keep_every_paragraph_in_order():
    paragraphs = [str(i) * 7 for i in range(10)]
    blocks = list(in_blocks(paragraphs, 20))
    assert "\n\n".join(blocks).split("\n\n") == paragraphs
    assert all(len(block) >= 20 for block in blocks[:-1])


def test_vocabulary_round_trip(corpus, vocabulary):
    text = corpus.train[:5000]
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.decode(vocabulary.encode("a\N{SNOWMAN}b")) == f"a{Vocabulary.UNKNOWN}b"


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("length", [1, 7, 1000])
def test_chunks_cover_every_stream_once(batch_size, length):
    numbers = torch.arange(100)
    columns = streams(numbers, batch_size)
    inputs, targets = (torch.cat(parts) for parts in zip(*chunks(columns, length), strict=True))
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, columns[:-1])
    assert columns.t().flatten().tolist() == list(range(100 // batch_size * batch_size))


def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="5 characters are too few for 4 streams"):
        streams(torch.arange(5), 4)


def test_batches_are_the_same_for_every_model_and_as_many_as_asked():
    text = streams(torch.arange(1000), 4)
    recipe = Recipe(length=16, batch_size=4)
    once, again = (list(batches(text, recipe, 40)) for _ in range(2))
    assert len(once) == 40
    assert all(torch.equal(a[0], b[0]) and a[2] == b[2] for a, b in zip(once, again, strict=True))
    assert sum(first for *_, first in once) >= 2


def test_baselines(corpus):
    even = Corpus("ab" * 500, "ba" * 500)
    assert unigram_bits(even) == pytest.approx(1.0, abs=0.01)
    assert xz_bits(corpus) < unigram_bits(corpus) < math.log2(len(set(corpus.train)))


@cells
def test_hidden_sizes_give_about_the_same_number_of_parameters(cell, vocabulary):
    hidden_size = hidden_size_for(cell, len(vocabulary), 120_000)
    assert parameter_count(CharModel(cell, len(vocabulary), hidden_size)) == pytest.approx(120_000, rel=0.03)


@cells
def test_a_text_in_chunks_scores_as_the_whole(cell, corpus, vocabulary):
    model = tiny(vocabulary, cell)
    text = streams(vocabulary.encode(corpus.held_out[:2000]), 4)
    assert bits_per_character(model, text, 13) == pytest.approx(bits_per_character(model, text, 10_000), abs=1e-4)


@cells
def test_detached_state_carries_no_graph(cell, vocabulary):
    _, state = tiny(vocabulary, cell)(torch.zeros(3, 2, dtype=torch.int64))
    parts = detach(state) if isinstance(state, tuple) else (detach(state),)
    assert not any(part.requires_grad for part in parts)


def test_models_learn_and_report(corpus, vocabulary, tmp_path):
    """A few seconds of training bring every model below the unigram entropy of its text."""
    part = Corpus(corpus.train[:40_000], corpus.held_out[:4_000])
    models = {cell: tiny(vocabulary, cell, 48) for cell in CELLS}
    recipe = Recipe(epochs=2.0, evaluations=4)
    seen = []
    learners = train(
        models,
        vocabulary.encode(part.train),
        vocabulary.encode(part.held_out),
        recipe,
        on_update=lambda done, _: seen.append(done),
    )
    for learner in learners:
        first, last = learner.curve[0], learner.curve[-1]
        assert last.held_out_bits < min(first.held_out_bits, unigram_bits(part)) - 0.3
        assert last.epoch == pytest.approx(2.0, rel=0.05)
    assert len({learner.curve[-1].update for learner in learners}) == 1
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    paths = write_report(learners, {"unigram": unigram_bits(part)}, tmp_path / "report")
    assert all(path.stat().st_size > 100 for path in paths)
    assert list(pd.read_csv(paths[0])["model"]) == list(CELLS)
    assert to_markdown(results_table(learners)).count("\n") == 2 + len(CELLS)


def test_models_score_the_same_through_the_kernels(corpus, vocabulary):
    """Real text, a whole model, the kernels in the interpreter."""
    numbers = vocabulary.encode(corpus.train[:10_000])
    learners = train({cell: tiny(vocabulary, cell) for cell in CELLS}, numbers, numbers[:1000], Recipe(epochs=0.1))
    table = through_kernels(learners, vocabulary.encode(corpus.held_out))
    assert set(table["regime"]) <= {"single_cta", "cooperative"}
    assert table["error of the kernels"].astype(float).abs().max() < 1e-4


def test_time_limit_stops_all_models_at_the_same_update(corpus, vocabulary):
    models = {cell: tiny(vocabulary, cell) for cell in CELLS}
    numbers = vocabulary.encode(corpus.train[:40_000])
    learners = train(models, numbers, numbers[:2000], Recipe(epochs=1000.0, seconds=1.0))
    assert len({learner.curve[-1].update for learner in learners}) == 1
    assert 0 < learners[0].curve[-1].epoch < 1000


def test_samples_repeat_with_their_seed(vocabulary):
    model = tiny(vocabulary)
    one, same, other = (sample(model, vocabulary, "The ", 30, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert len(one) == 34
    assert one.startswith("The ")
    assert Vocabulary.UNKNOWN not in one


@pytest.mark.parametrize(("options", "message"), [({"prompt": ""}, "prompt"), ({"temperature": 0.0}, "temperature")])
def test_sample_refuses(vocabulary, options, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny(vocabulary), vocabulary, **{"prompt": "a", "length": 3, **options})


def test_training_repeats_with_its_seed(corpus, vocabulary):
    numbers = vocabulary.encode(corpus.train[:10_000])

    def bits(seed: int) -> float:
        recipe = replace(Recipe(epochs=0.5, evaluations=1), seed=seed)
        (learner,) = train({"LSTM": tiny(vocabulary, "LSTM")}, numbers, numbers[:1000], recipe)
        return learner.curve[-1].held_out_bits

    assert bits(0) == bits(0) != bits(1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_demo(tmp_path):
    from holdfast.bench.demo.run import run_demo

    learners = run_demo(tmp_path, minutes=4.0)
    assert all(learner.curve[-1].held_out_bits < 2.6 for learner in learners)
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png"}
