"""The bench: its arithmetic, that fast prediction computes what slow prediction does, and one quick run."""

import copy
import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5ForConditionalGeneration

from authoring.bench import growth
from authoring.bench.flops import forward_flops
from authoring.bench.processes import in_own_process
from finetuning import batching, labels
from finetuning.errors import CourseError
from finetuning.speed import contenders, int8, packing, prediction, recipes

WORDS, ANSWERS = [11, 12], [[11, 1], [12, 1]]
RNG = np.random.default_rng(1)
ROWS = [[*RNG.integers(20, 190, n - 1).tolist(), 1] for n in (40, 7, 33, 64, 12, 25, 64, 3)]
LABELS = [0, 1, 0, 1, 1, 0, 1, 0]


@pytest.fixture
def model():
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=200, d_model=64, d_kv=8, d_ff=96, num_layers=3, num_decoder_layers=2, num_heads=6,
        decoder_start_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize(("tokens", "answer_tokens"), [(48, 2), (200, 1)])
def test_operations_are_those_that_torch_counts(model, tokens, answer_tokens):
    ids = torch.randint(20, 190, (3, tokens))
    with FlopCounterMode(display=False) as counted:
        logits = model(input_ids=ids, decoder_input_ids=torch.zeros(3, answer_tokens, dtype=torch.long)).logits
    mine = 3 * forward_flops(model.config, tokens, answer_tokens)
    assert mine == pytest.approx(counted.get_total_flops(), rel=0.01)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert 2 * mine == pytest.approx(backward.get_total_flops(), rel=0.01)


def losses(model, recipe, steps=4):
    training = recipes.Training(copy.deepcopy(model), recipe, ANSWERS, 64, steps=20)
    return [training.step(ROWS, LABELS) for _ in range(steps)]


def test_every_change_but_rounding_and_dropout_leaves_the_losses_as_they_were(model):
    slow = losses(model, recipes.Recipe(dropout=0.0))
    fast = losses(model, recipes.Recipe(grouped=True, dropout=0.0, fused=True, keep_memory=True))
    assert fast == pytest.approx(slow, abs=1e-4)
    assert slow[-1] < slow[0]


def test_the_last_recipe_learns_and_the_usual_one_drops_out(model):
    ladder = recipes.training_recipes()
    ours = losses(model, list(ladder.values())[-1], steps=40)
    assert ours[-1] < 0.5 * ours[0]
    for recipe, alike in ((ladder["usual recipe"], False), (ladder["no dropout"], True)):
        training = recipes.Training(copy.deepcopy(model), recipe, ANSWERS, 64, learning_rate=0.0)
        assert (training.step(ROWS, LABELS) == training.step(ROWS, LABELS)) is alike


def test_each_recipe_makes_one_change():
    ladder = [vars(recipe) for recipe in recipes.training_recipes().values()]
    assert all(len(set(a.items()) ^ set(b.items())) == 2 for a, b in itertools.pairwise(ladder))


def test_every_way_gives_the_scores_of_the_first_step_of_generate(model):
    slow, _ = prediction.predict(prediction.by_generate(model, WORDS, 64), ROWS, np.array_split(np.arange(8), 3))
    packs = batching.token_batches([len(row) for row in ROWS], 80)
    assert len(packs) > 3
    for answer in (labels.by_one_step(model, WORDS), packing.by_packing(model, WORDS, 64)):
        fast, _ = prediction.predict(answer, ROWS, packs)
        assert np.allclose(fast, slow, atol=1e-4)


@pytest.mark.skipif(not int8.has_int8(), reason="no right 8-bit products of oneDNN here")
def test_eight_bits_stay_close(model):
    packs = batching.token_batches([len(row) for row in ROWS], 80)
    low = copy.deepcopy(model).bfloat16()
    exact, _ = prediction.predict(packing.by_packing(model, WORDS, 64), ROWS, packs)
    eight, _ = prediction.predict(packing.by_packing(low, WORDS, 64, int8=True), ROWS, packs)
    assert np.abs(eight - exact).max() < 0.05 * exact.std() + 0.05 * np.abs(exact).max()


@pytest.mark.skipif(not int8.has_int8(), reason="no right 8-bit products of oneDNN here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_in_8_bits_leaves_its_input_as_it_is(model, dtype):
    """The residual stream goes on past it; rounded in place it would be lost."""
    block = copy.deepcopy(model.encoder.block[0]).to(dtype)
    x = torch.randn(40, model.config.d_model, generator=torch.Generator().manual_seed(1)).to(dtype)
    before, norm, weight = x.clone(), block.layer[0].layer_norm, block.layer[0].SelfAttention.q.weight
    product = int8.int8_projection(weight, norm)(x)
    assert torch.equal(x, before)
    exact = torch.nn.functional.linear(norm(x), weight)
    assert (product - exact).norm() < 0.03 * exact.norm()


@pytest.mark.skipif(not int8.has_int8(), reason="no right 8-bit products of oneDNN here")
def test_what_exceeds_the_last_step_is_cut():
    weights = torch.rand(8, 16, generator=torch.Generator().manual_seed(1)) + torch.arange(8)[:, None] / 8
    ones = torch.full((3, 16), 200, dtype=torch.uint8)
    product = int8.multiply_int8(ones, 0.1, 128, int8.packed_int8(weights), torch.uint8, "relu", 0.5)
    wanted = (7.2 * weights.sum(1) / 0.5).round().clamp(max=255)
    assert (product.int() - wanted.int()).abs().max() <= 1
    assert 0 < (product == 255).float().mean() < 1


def test_gated_layers_are_refused_in_a_sentence(model):
    model.config.is_gated_act = True
    with pytest.raises(CourseError, match="gated"):
        packing.by_packing(model, WORDS, 64)


def test_batches_hold_every_review_once():
    lengths = RNG.integers(1, 300, 500)
    packs = batching.token_batches(lengths, 256)
    assert sorted(np.concatenate(packs)) == list(range(500))
    assert all(len(pack) == 1 or lengths[pack].sum() <= 256 for pack in packs)
    for grouped in (False, True):
        batches = batching.epoch_batches(lengths, 16, grouped, 1)
        assert sorted(np.concatenate(batches)) == list(range(500))
    spans = [np.ptp(lengths[batch]) for batch in batches]
    assert np.mean(spans) < 30
    assert not np.array_equal(batches[0], batching.epoch_batches(lengths, 16, True, 2)[0])


def test_the_steps_of_a_waterfall_multiply_to_the_whole():
    rows = contenders.factors(
        {"a": [1.0, 2.0, 1.5], "b": [3.0, 4.1, 4.0], "c": [9.0, 9.5, 11.0], "d": [8.0, 9.0, 12.0]}
    )
    assert np.prod([row["step"] for row in rows]) == pytest.approx(rows[-1]["times"]["median"])
    assert rows[-1]["times"] == {"median": 8.0, "low": 4.5, "high": 8.0, "rounds": 3}


def test_exponents_are_found():
    fit = growth.growth_exponent([10, 20, 40, 80], [3 * size**1.5 for size in (10, 20, 40, 80)])
    assert fit["exponent"] == pytest.approx(1.5)
    assert fit["standard_error"] < 1e-9


def test_too_few_reviews_are_told():
    with pytest.raises(CourseError, match="takes 16 reviews, and there are 9"):
        contenders.sample_batches(np.arange(9), 16, 4)


@pytest.mark.slow
def test_a_wrong_number_of_rounds_is_told():
    ended = subprocess.run(
        [sys.executable, "-m", "authoring", "bench", "--rounds", "0"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr == "--rounds must be at least 1.\n"


@pytest.mark.slow
def test_each_measurement_has_a_process_of_its_own():
    assert len({os.getpid(), in_own_process(os.getpid), in_own_process(os.getpid)}) == 3


def test_a_killed_measurement_is_told():
    with pytest.raises(CourseError, match="process was killed"):
        in_own_process(os._exit, 9)


def test_ways_to_predict_make_one_change_each(model):
    recipes_of_prediction = [vars(recipe) for recipe in prediction.prediction_recipes(model.config).values()]
    assert all(len(set(a.items()) ^ set(b.items())) == 2 for a, b in itertools.pairwise(recipes_of_prediction))
    model.config.is_gated_act = True
    assert not any(recipe.packed for recipe in prediction.prediction_recipes(model.config).values())


@pytest.mark.soak
def test_a_quick_run_measures_everything_and_training_gains(tmp_path):
    """The bench's quick run: every part is measured within two minutes, the changes gain, the answers stay the same."""
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "authoring", "bench", "--quick"],
        cwd=ROOT, env={**os.environ, "FINETUNING_RUNS": str(tmp_path)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    assert time.perf_counter() - began < 120  # 35 seconds on two quiet cores
    found = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert {"peak", "training", "prediction", "front_door", "growth", "data", "start_up", "course"} <= set(found)
    for part in ("training", "prediction"):  # one round on a machine that may be busy: that it gains, not how much
        assert found[part]["factors"][-1]["times"]["median"] > 1, part
    assert {"usual: generate", "predict"} <= set(found["front_door"])
    assert found["front_door"]["predict"]["same_answers"] == 1
    same = found["prediction"]["same_answers"]
    assert same["one decoder step"] == same["sorted by length"] == 1
    assert min(same.values()) > 0.85  # of 32 reviews the roundings may turn those that lie on the border
    assert all(abs(sum(shares.values()) - 1) < 1e-6 for shares in found["training"]["profile"].values())
    assert (tmp_path / "bench" / "bench.md").read_text() in ended.stdout
    assert {"training.png", "prediction.svg", "growth.png"} <= {file.name for file in (tmp_path / "bench").iterdir()}
