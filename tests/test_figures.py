"""The figures of the lessons are drawn by the script beside them, and the plots show what they are given."""

import matplotlib
import numpy as np
from conftest import ROOT

from finetuning import plots
from finetuning.figures import draw

matplotlib.use("agg")


def test_committed_figures_are_what_the_script_draws(tmp_path):
    drawn = {path.name: path for path in draw(tmp_path)}
    assert set(drawn) == {path.name for path in (ROOT / "img").glob("*.svg")}
    for name, path in drawn.items():
        committed = (ROOT / "img" / name).read_text()
        # other versions of the drawing library may place letters a little differently: the size tells a stale figure
        assert abs(len(path.read_text()) - len(committed)) < 0.02 * len(committed), f"{name} is stale: run make figures"


def test_every_plot_has_labelled_axes():
    scores = np.array([[0.6, 0.7], [0.7, 0.8]])
    row = {"method": "m", "accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8}
    log = [{"loss": 1.0, "epoch": 0.5}, {"eval_loss": 1.0, "eval_accuracy": 0.7, "epoch": 1.0}]
    figures = [
        plots.plot_lengths(np.array([3, 4, 5]), 8),
        plots.plot_truncation([4, 8], np.array([0.5, 0]), np.array([0.1, 0]), 8),
        plots.plot_padding({"a": 20, "b": 12}, 10),
        plots.plot_words([("bad", -1.0)], [("good", 1.0)]),
        plots.plot_confusion([[3, 1], [2, 4]], ("negative", "positive"), "title"),
        plots.plot_learning_curve([10, 20], scores, 0.5),
        plots.plot_training({"a": log, "b": log}),
        plots.plot_results([row]),
    ]
    for fig in figures:
        assert fig.get_suptitle()
        for ax in fig.axes:
            assert ax.get_xlabel(), fig.get_suptitle()
