"""Labels, metrics, baselines, profiles and workspace."""

import json
import subprocess
import sys
from dataclasses import fields

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOKS
from IPython.core.interactiveshell import InteractiveShell
from scipy.stats import binom
from sklearn.metrics import f1_score

from finetuning import plots
from finetuning.baselines import learning_curve, telling_words, tfidf_classifier
from finetuning.batching import length_sorted_batches
from finetuning.errors import CourseError
from finetuning.labels import LABEL_WORDS, label_ids, score_labels
from finetuning.machine import this_machine
from finetuning.metrics import classification_metrics, measure, wilson_interval
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import PROFILES, choose, fitting_profiles
from finetuning.results import ResultRow, caption, results_table, verdict
from finetuning.workspace import Workspace


@pytest.fixture
def tiny(tiny_model):
    settings = choose(base_model=str(tiny_model))
    return load_model(settings), load_tokenizer(settings)


@pytest.mark.alone
def test_importing_the_package_is_quick_and_light():
    code = "import sys, time; t = time.perf_counter(); import finetuning; "
    code += "print(time.perf_counter() - t, 'torch' in sys.modules)"
    seconds, torch = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 0.3 and torch == "False"


def test_label_scores_are_those_of_each_review_alone(tiny, monkeypatch):
    import torch

    monkeypatch.setattr("finetuning.labels.CPU_TOKENS", 30)  # two batches

    model, tokenizer = tiny
    texts = ["short", "a somewhat longer review, really", "a b c d e f g h i j k l m n"]
    scores, speed = score_labels(model, tokenizer, texts, prompt="sentiment: {text}", max_length=32)
    assert scores.shape == (3, 2) and np.allclose(scores.sum(axis=1), 1) and speed > 0
    for text, row in zip(texts, scores, strict=True):
        inputs = tokenizer("sentiment: " + text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs, decoder_input_ids=torch.tensor([[0]])).logits[0, 0, label_ids(tokenizer)]
        assert np.allclose(row, logits.softmax(-1).numpy(), atol=1e-5)


def test_batches_are_sorted_by_length_and_complete():
    batches = length_sorted_batches([3, 9, 1, 4], 3)
    assert [batch.tolist() for batch in batches] == [[1, 3, 0], [2]]


def test_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, given = rng.integers(2, size=200), rng.integers(2, size=200)
    scores = classification_metrics().compute(predictions=given, references=truth)
    assert scores["accuracy"] == np.mean(truth == given)
    assert np.isclose(scores["f1"], f1_score(truth, given))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.8, 0.99])
def test_the_interval_of_an_accuracy_covers_the_truth_about_as_often_as_it_says(share):
    n, counts = 400, np.arange(401)
    bounds = np.array([wilson_interval(np.arange(n) < k) for k in counts])
    inside = (bounds[:, 0] <= share) & (share <= bounds[:, 1])
    assert 0.93 <= binom.pmf(counts, n, share)[inside].sum() <= 0.97


@pytest.mark.parametrize("n", [1, 2, 10, 80, 1500])
def test_the_interval_stays_right_where_all_answers_agree(n):
    """For 0 of n the formula reduces to (0, z² / (n + z²)); for n of n to its mirror image."""
    z = 1.959964
    assert np.allclose(wilson_interval(np.zeros(n)), (0, z**2 / (n + z**2)), atol=1e-6)
    assert np.allclose(wilson_interval(np.ones(n)), (n / (n + z**2), 1), atol=1e-6)
    for k in range(min(n, 5) + 1):
        low, high = wilson_interval(np.arange(n) < k)
        assert 0 <= low <= k / n <= high <= 1 and high - low > 0


def test_wilson_interval_of_nine_in_ten():
    assert np.allclose(wilson_interval([1] * 9 + [0]), (0.5958, 0.9821), atol=1e-4)


def test_measure_and_verdict():
    truth = np.array([0, 1] * 100)
    good, bad = measure("01", "good", truth, truth), measure("01", "bad", 1 - truth, truth)
    near = measure("01", "near", np.where(np.arange(200) < 2, 1 - truth, truth), truth)
    assert good.accuracy == good.accuracy_high == 1 and good.n_test == 200
    assert bad.accuracy == bad.accuracy_low == 0
    assert "good (1.000) is better than bad (0.000)" in verdict(bad, good)
    assert "overlap" in verdict(near, measure("01", "nearly", np.where(np.arange(200) < 4, 1 - truth, truth), truth))


def test_tfidf_learns_and_shows_its_words():
    from datasets import Dataset

    texts = [f"{'great' if i % 2 else 'awful'} thing {i % 7}" for i in range(80)]
    split = Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(80)]})
    told = telling_words(tfidf_classifier().fit(texts, split["label"]), LABEL_WORDS, 3)
    assert "awful" in dict(told["negative"]) and "great" in dict(told["positive"])
    curve = learning_curve(split, split, [20, 40, 80], repeats=2)
    assert np.nanmin(curve) == 1.0
    assert np.isnan(curve).tolist() == [[False, False], [False, False], [False, True]]  # of all reviews one sample


def test_profiles():
    assert choose("small").model_revision and choose("small").reviews_revision
    assert choose("small", base_model="org/other").model_revision is None
    for profile in PROFILES.values():
        assert "{text}" in profile.prompt
    fits = fitting_profiles({**this_machine(), "gpus": 0, "gpu_memory_bytes": None})
    assert fits["pocket"][0] and not fits["small"][0]
    assert fitting_profiles({**this_machine(), "gpus": 1, "gpu_memory_bytes": 16 * 2**30})["small"][0]


def test_rows_replace_and_sort_and_are_complete(runs):
    workspace = Workspace("mine", choose())
    truth = np.array([0, 1])
    workspace.add_rows(measure("03", "trainer", truth, truth), measure("02", "tfidf", truth, truth))
    workspace.add_rows(measure("03", "trainer", 1 - truth, truth, train_seconds=2.0))
    results = json.loads((runs / "mine" / "results.json").read_text())
    assert results["schema"] == 1
    assert [(row["method"], row["accuracy"], row["train_seconds"]) for row in results["rows"]] == [
        ("tfidf", 1, None),
        ("trainer", 0, 2.0),
    ]
    assert set(results["rows"][0]) == {field.name for field in fields(ResultRow)}
    assert {"profile", "model", "dataset", "seed", "started", "seconds", "hardware", "versions"} <= set(results["run"])
    assert len(results_table(workspace.results())) == 2


@pytest.mark.parametrize("path", NOTEBOOKS[2:5], ids=lambda path: path.stem)
def test_a_lesson_opened_after_a_whole_run_shows_no_row_of_a_later_one(path, runs):
    workspace = Workspace("mine", choose())
    for lesson, method in (("02", "tfidf"), ("03", "trainer"), ("04", "trainer_short"), ("07", "later")):
        workspace.add_rows(measure(lesson, method, [0, 1], [0, 1]))
    shell = InteractiveShell()
    shell.user_ns |= {"workspace": workspace, "caption": caption, "results_table": results_table, "plots": plots}
    shown = [
        shell.run_cell(cell.source).result
        for cell in nbformat.read(path, as_version=4).cells
        if cell.id.endswith(("results-table", "results-plot", "verdict-table"))
    ]
    methods = ["tfidf", "trainer", "trainer_short"][: int(path.stem[:2]) - 1]
    assert list(shown[0]["method"]) == methods
    for plot in shown[1:]:
        assert [label.get_text() for label in plot.axes[0].get_yticklabels()] == methods


def test_a_damaged_results_file_is_named_and_kept(runs):
    workspace = Workspace("mine", choose())
    workspace.add_rows(measure("02", "tfidf", [0, 1], [0, 1]))
    for damage in ("{", "[]", '{"schema": 2}'):
        workspace.results_file.write_text(damage)
        with pytest.raises(CourseError, match=r"results\.json is damaged"):
            Workspace("mine", choose())
        assert workspace.results_file.read_text() == damage


def test_a_full_disk_leaves_the_old_results(runs, monkeypatch):
    workspace = Workspace("mine", choose())
    workspace.add_rows(measure("02", "tfidf", [0, 1], [0, 1]))
    before = workspace.results_file.read_text()

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    with pytest.raises(CourseError, match="No space left on device; free some space"):
        workspace.add_rows(measure("02", "majority", [0, 1], [0, 1]))
    assert workspace.results_file.read_text() == before


def test_course_errors_show_one_line_in_jupyter():
    assert CourseError("Do this.")._render_traceback_() == ["CourseError: Do this."]


def test_label_words_are_in_the_order_of_the_labels():
    assert LABEL_WORDS == ("negative", "positive")
