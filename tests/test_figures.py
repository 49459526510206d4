"""The figures of the lessons are drawn by the script beside them, and the plots show what they are given."""

import re
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from conftest import ROOT

from authoring.figures import draw, zero_stages
from authoring.readme import PICTURES
from finetuning import plots
from finetuning.results import ResultRow
from finetuning.trainer import COIN_TOSS

matplotlib.use("agg")


def content(svg):
    """What a figure consists of: its shapes in their order, and its words, in comments beside the letters."""
    return re.findall(r"<(\w+)|<!-- (.*?) -->", svg)


def test_committed_figures_are_what_the_script_draws(tmp_path):
    drawn = {path.name: path for path in draw(tmp_path)}
    assert set(drawn) == {path.name for path in (ROOT / "img").glob("*.svg")} - {*PICTURES}  # those show a run
    for name, path in drawn.items():
        assert content(path.read_text()) == content((ROOT / "img" / name).read_text()), (
            f"{name} is stale: run make figures"
        )


def test_every_plot_has_labelled_axes():
    scores = np.array([[0.6, 0.7], [0.7, 0.8]])
    row = ResultRow("02", "m", 0.7, 0.6, 0.8, f1=0.7, n_test=100)
    log = [{"loss": 1.0, "epoch": 0.5}, {"eval_loss": 1.0, "eval_accuracy": 0.7, "epoch": 1.0}]
    figures = [
        plots.plot_lengths(np.array([3, 4, 5]), 8),
        plots.plot_truncation([4, 8], np.array([0.5, 0]), np.array([0.1, 0]), 8),
        plots.plot_padding({"a": 20, "b": 12}, 10),
        plots.plot_words({"negative": [("bad", 1.0)], "positive": [("good", 1.0)]}),
        plots.plot_words({word: [("the", 1.0), (word, 2.0)] for word in "abc"}),
        plots.plot_confusion(np.eye(20, dtype=int), [f"label {i}" for i in range(20)], "title"),
        plots.plot_confusion([[3, 1], [2, 4]], ("negative", "positive"), "title"),
        plots.plot_learning_curve([10, 20], scores, 0.5),
        plots.plot_by_labels([10, 20], {"a": [0.6, 0.7], "b": [0.5, 0.8]}),
        plots.plot_training({"a": log, "b": log}),
        plots.plot_results([row]),
    ]
    for fig in figures:
        assert fig.get_suptitle()
        for ax in fig.axes:
            assert ax.get_xlabel(), fig.get_suptitle()
    plots.plot_confusion(np.eye(3, dtype=int), ("$", "$$", "$_$"), "my $$.csv").canvas.draw()  # no formulas


@pytest.mark.parametrize("words", [("negative", "positive"), ("Comedy", "Documentary", "Science Fiction"), "12345"])
def test_the_words_below_a_confusion_matrix_do_not_meet(words):
    fig = plots.plot_confusion(np.eye(len(words), dtype=int), words, "title")
    fig.canvas.draw()
    boxes = [label.get_window_extent() for label in fig.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_learning_curve_has_no_band_where_there_is_one_sample():
    scores = np.array([[0.6, 0.7], [0.7, 0.8], [0.75, 0.75]])
    band = plots.plot_learning_curve([10, 20, 40], scores, 0.5).axes[0].collections[0]
    ends = band.get_paths()[0].vertices
    assert ends[:, 0].max() == 20 and ends[:, 1].max() == 0.8


def test_the_chart_of_a_training_shows_the_part_that_matters():
    first_steps = [{"loss": 9.0, "epoch": 0.1}, {"loss": 0.5, "epoch": 0.9}]
    log = [*first_steps, {"eval_loss": 0.6, "eval_accuracy": 0.5, "epoch": 1.0}]
    left = plots.plot_training({"random weights": log}).axes[0]
    assert 0.6 < left.get_ylim()[1] < 1
    assert any(set(line.get_ydata()) == {COIN_TOSS} for line in left.lines)


def test_each_part_of_the_memory_has_one_colour_in_figure_and_chart():
    figure = zero_stages().axes[0]
    chart = plots.plot_rank_memory({"bf16": {"0": dict.fromkeys(plots.PARTS, 1)}}).axes[0]
    bars, names = chart.get_legend_handles_labels()
    drawn = {name: bar[0].get_facecolor() for name, bar in zip(names, bars, strict=True)}
    for part in ("parameters", "gradients", "master copy", "moments"):
        (left,) = (text.get_position()[0] for text in figure.texts if text.get_text() == part)
        (mark,) = (patch for patch in figure.patches if np.allclose(patch.get_xy(), (left - 0.38, 0.25)))
        assert mark.get_facecolor() == drawn[part], part


def test_the_family_plot_labels_each_way_beside_its_line():
    needed = {
        1: {"plain": {10**8: 2e9, 10**9: 2e10}},
        8: {w: {10**8: 1e9, 10**9: 1e10} for w in ("plain", "zero1", "zero2_offload")},
    }
    fig = plots.plot_family_memory(needed, ("t5-small", "t5-large"), cards=(16, 80))
    for ax, lines in zip(fig.axes, needed.values(), strict=True):
        said = [text.get_text() for text in ax.texts]
        assert said == ["16 GB", "80 GB", *(way.replace("_", " ") for way in lines)]
        heights = [text.get_position()[1] for text in ax.texts[2:]]
        assert all(high >= 1.4 * low for low, high in pairwise(heights))  # none on another
        assert ax.get_xscale() == ax.get_yscale() == "log" and ax.get_xlabel()
