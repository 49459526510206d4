"""Lesson 07: paired comparison, calibration, slices, behaviour under changes, and which words carried a decision."""

import math
import re

import matplotlib
import numpy as np
import pytest
from datasets import Dataset

from finetuning import plots
from finetuning.errors import CourseError
from finetuning.evaluation.behaviour import (
    MarkedText,
    called,
    difference,
    failure_table,
    negation_verdict,
    not_less,
    occlusion,
    same_verdict,
    with_typo,
)
from finetuning.evaluation.calibration import (
    calibration_error,
    calibration_verdict,
    coverage_curve,
    error_of_the_calibrated,
    fit_temperature,
    log_loss,
    reliability,
    threshold_for,
    with_temperature,
)
from finetuning.evaluation.pairs import (
    candidates,
    holm,
    is_settled,
    kept_answers,
    paired,
    paired_verdict,
    reviews_needed,
)
from finetuning.evaluation.slices import SMALL, slice_lines, slice_table, slices
from finetuning.metrics import measure, wilson_interval
from finetuning.profiles import choose
from finetuning.results import ResultRow, results_table, verdict
from finetuning.workspace import Workspace

matplotlib.use("agg")
EDGES = np.linspace(0.5, 1, 11)


def answers(both, only_first, only_second, neither):
    """Two models' right and wrong answers with so many reviews of each kind."""
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    return np.array(first, dtype=bool), np.array(second, dtype=bool)


def draw(rng, n, only_first, only_second):
    """Two models' answers on n reviews drawn with these probabilities of exactly one being right."""
    kind = rng.choice(3, n, p=[only_first, only_second, 1 - only_first - only_second])
    return kind != 1, kind != 0


# Two models on the same reviews


def test_mcnemar_is_the_exact_binomial_test_of_the_differing_reviews():
    pair = paired(*answers(50, 12, 3, 35))
    tail = sum(math.comb(15, k) for k in range(12, 16)) / 2**15
    assert math.isclose(pair.p, 2 * tail)
    assert (pair.n, pair.only_first, pair.only_second, pair.difference) == (100, 12, 3, 0.09)
    assert paired(*answers(900, 12, 3, 0)).p == pair.p  # reviews on which both agree do not count


def test_paired_interval_is_that_of_resampling_review_by_review():
    first, second = answers(300, 60, 30, 110)
    pair = paired(first, second)
    rng = np.random.default_rng(0)
    rows = rng.integers(500, size=(4000, 500))
    low, high = np.quantile((first.astype(int) - second)[rows].mean(axis=1), [0.025, 0.975])
    assert np.allclose((pair.low, pair.high), (low, high), atol=0.004)


def test_a_comparison_cries_wolf_no_more_often_than_it_says():
    rng = np.random.default_rng(1)
    wolf = sum(is_settled(paired(*draw(rng, 400, 0.1, 0.1), resamples=1000, seed=i)) for i in range(400)) / 400
    assert wolf <= 0.07


def test_so_many_reviews_as_needed_show_the_difference_as_often_as_promised():
    pair = paired(*answers(700, 110, 90, 100))
    needed = reviews_needed(pair)
    assert needed == math.ceil((1.959964 * 0.2**0.5 + 0.841621 * (0.2 - 0.02**2) ** 0.5) ** 2 / 0.02**2)
    rng = np.random.default_rng(2)
    seen = sum(paired(*draw(rng, needed, 0.11, 0.09), resamples=10).p < 0.05 for _ in range(400)) / 400
    assert 0.74 <= seen <= 0.85


def test_the_sentence_says_better_only_where_the_data_do():
    clear = paired_verdict("a", "b", paired(*answers(300, 60, 20, 20)))
    assert clear.startswith("a is better than b: by 10.0 points")
    turned_round = paired_verdict("a", "b", paired(*answers(300, 20, 60, 20)))
    assert turned_round.startswith("b is better than a: by 10.0 points")
    low, high = map(float, re.search(r"\((.*) to (.*)\)", turned_round).groups())
    assert 0 < low < 10 < high
    close = paired_verdict("a", "b", paired(*answers(300, 45, 40, 15)))
    assert "cannot be told apart on 400 reviews" in close and re.search(r"about [\d,]+ would be needed", close)
    assert "equally many right" in paired_verdict("a", "b", paired(*answers(300, 40, 40, 20)))
    alike = paired(*answers(300, 0, 0, 20))
    assert "the same reviews right" in paired_verdict("a", "b", alike)
    assert alike.p == 1 and not is_settled(alike) and reviews_needed(alike) is None


def test_never_fewer_needed_than_there_were():
    said = paired_verdict("a", "b", paired(*answers(0, 5, 0, 0)))
    assert int(re.search(r"about (\d+) would", said).group(1)) > 5


def test_holm_is_the_stepwise_correction():
    assert np.allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).max() == 1


def test_kept_answers_and_candidates(runs):
    workspace, truth = Workspace("mine", choose()), np.array([0, 1] * 100)
    good, slow, bad = truth.copy(), truth.copy(), truth.copy()
    good[:10], slow[10:19], bad[:80] = 1 - good[:10], 1 - slow[10:19], 1 - bad[:80]
    for name, given, speed in (("good", good, 900), ("slow", slow, 9), ("bad", bad, 9000), ("gone", truth, 1)):
        workspace.add_rows(measure("03", name, given, truth, predict_reviews_per_second=speed))
        if name != "gone":
            workspace.keep_scores(name, test=np.eye(2)[given])
    right = kept_answers(workspace, truth)
    assert {name: int(mine.sum()) for name, mine in right.items()} == {"good": 190, "slow": 191, "bad": 120}
    assert candidates(workspace.results().rows, right) == ["good", "slow"]
    with pytest.raises(CourseError, match="200 test reviews, and there are 199 now"):
        kept_answers(workspace, truth[1:])


def test_methods_of_the_same_accuracy_are_level():
    half, more = (measure("03", name, [0] * right + [1] * (9 - right), [0] * 9) for name, right in (("a", 4), ("b", 5)))
    assert "a (0.444) is level with a (0.444) on these 9 test reviews" in verdict(half, half)
    assert "b (0.556) is ahead of a (0.444) on these 9 test reviews" in verdict(half, more)


def test_the_table_prices_a_thousand_reviews(runs):
    workspace = Workspace("mine", choose())
    workspace.add_rows(measure("03", "a", [0, 1], [0, 1], predict_reviews_per_second=50.0, peak_rss_bytes=2**30))
    workspace.add_rows(measure("03", "b", [0, 1], [0, 1]))
    table = results_table(workspace.results(), price_per_hour=1.8)
    assert table["cost per 1,000"].tolist() == ["0.01", "-"]  # 20 s of an hour at 1.80
    assert table["peak memory"].tolist() == ["1,024 MiB", "-"]
    assert results_table(workspace.results(), price_per_hour=0.0018)["cost per 1,000"].iloc[0] == "0.00001"
    assert "peak memory" not in results_table(workspace.results())


# Calibration and coverage


def test_reliability_and_calibration_error_by_hand():
    confidence, right = np.array([0.5, 0.6, 0.6, 0.6, 0.9, 1.0]), np.array([0, 1, 1, 0, 1, 1])
    table = reliability(confidence, right, [0.5, 0.75, 1.0])
    assert table["reviews"].tolist() == [4, 2]
    assert np.allclose(table["confidence"], [0.575, 0.95]) and np.allclose(table["accuracy"], [0.5, 1])
    assert math.isclose(calibration_error(confidence, right, [0.5, 0.75, 1.0]), 4 / 6 * 0.075 + 2 / 6 * 0.05)
    assert math.isclose(
        calibration_error(confidence, right, [0.0, 0.5, 0.75, 1.0]), (0.5 + 3 * abs(0.6 - 2 / 3) + 0.1) / 6
    )


def test_a_bin_of_few_reviews_has_a_wide_interval():
    right = np.array([0, 1, 1, 0, 1, 1])
    table = reliability(np.array([0.5, 0.6, 0.6, 0.6, 0.9, 1.0]), right, [0.5, 0.75, 1.0])
    assert np.allclose(table[["low", "high"]], [wilson_interval(right[:4]), wilson_interval(right[4:])])


def test_even_a_calibrated_model_shows_an_error_of_about_what_chance_makes():
    """One bin of n answers at 0.8: the mean gap is that of a binomial share, sqrt(2 / pi * 0.8 * 0.2 / n)."""
    for n in (50, 5000):
        error = error_of_the_calibrated(np.full(n, 0.8), np.array([0.5, 1.0]))
        assert math.isclose(error, (2 / math.pi * 0.16 / n) ** 0.5, rel_tol=0.2)


def test_a_temperature_that_was_put_in_is_found_again():
    rng = np.random.default_rng(3)
    positive = rng.uniform(0.05, 0.95, 20_000)
    truth = (rng.random(20_000) < positive).astype(int)
    honest = np.column_stack([1 - positive, positive])
    too_sure = with_temperature(honest, 0.5)
    assert math.isclose(fit_temperature(too_sure, truth), 2, rel_tol=0.05)
    assert np.allclose(with_temperature(too_sure, 2), honest, atol=1e-6)
    assert np.array_equal(too_sure.argmax(axis=1), honest.argmax(axis=1))
    assert "of 2.00 helped" in calibration_verdict(too_sure, 2.0, truth, EDGES)
    assert "of 2.00 did harm" in calibration_verdict(honest, 2.0, truth, EDGES)
    assert "made no difference" in calibration_verdict(honest[:50], 1.0, truth[:50], EDGES)


def test_certain_scores_stay_finite():
    scores = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(log_loss(scores, np.array([1, 1]))).all()
    assert np.allclose(with_temperature(scores, 3.0).sum(axis=1), 1)


def test_coverage_answers_equal_confidences_together():
    coverage, accuracy = coverage_curve(np.array([0.9, 0.7, 0.7, 0.6]), np.array([1, 0, 1, 0]))
    assert np.allclose(coverage, [0.25, 0.75, 1]) and np.allclose(accuracy, [1, 2 / 3, 0.5])


def test_the_threshold_is_the_smallest_that_keeps_the_promise():
    confidence, right = np.array([0.6, 0.9, 0.8, 0.7, 0.7]), np.array([0, 1, 1, 0, 1])
    assert threshold_for(confidence, right, 0.75) == 0.7 and threshold_for(confidence, right, 0.9) == 0.8
    assert threshold_for(confidence, right, 0.6) == 0.6
    assert threshold_for(confidence, 1 - right, 0.9) == np.inf


# Slices


def test_wilson_interval_of_nine_in_ten():
    assert np.allclose(wilson_interval([1] * 9 + [0]), (0.5958, 0.9821), atol=1e-4)


def test_wilson_of_all_right_or_none_is_no_point():
    """With z = 1.96 the open end is z^2 / (n + z^2) away (Wilson 1927): about 0.046 for 80 reviews."""
    away = 1.959964**2 / (80 + 1.959964**2)
    assert np.allclose(wilson_interval([1] * 80), (1 - away, 1)) and np.allclose(wilson_interval([0] * 80), (0, away))


def test_wilson_covers_the_truth_as_often_as_it_says_also_near_one():
    rng = np.random.default_rng(2)
    for share in (0.5, 0.9, 0.98):
        intervals = [wilson_interval(rng.random(80) < share) for _ in range(400)]
        assert 0.9 < np.mean([low <= share <= high for low, high in intervals]) < 0.99, share


def test_slices_by_length_hold_the_lengths_that_they_name():
    lengths = np.array([1, 2, 3, 4, 5, 9, 9, 20])
    for n in (5, 6, 8):
        found, _ = slices(Dataset.from_dict({"text": ["word " * length for length in lengths[:n]], "label": [0] * n}))
        for name, rows in found.items():
            named = [int(number) for number in re.findall(r"\d+", name)]
            low, high = {"up": (0, named[0]), "over": (named[0] + 1, 99)}.get(name.split()[0], (named[0], named[-1]))
            assert rows.tolist() == [low <= length <= high for length in lengths[:n]], name
        assert len(found) == 3


def test_slices_ask_only_what_the_reviews_can_answer():
    texts = ["one two", "one two three", "a b c d e f", "a b c d e f g"]
    plain = Dataset.from_dict({"text": texts, "label": [0, 1, 0, 1]})
    found, missing = slices(plain)
    assert sum(rows.sum() for rows in found.values()) == 4 and len(missing) == 2
    rich = plain.add_column("traits", [["irony"], [], ["irony", "contrast"], ["plain"]]).add_column(
        "rating", [1, 9, 1, 9]
    )
    found, missing = slices(rich)
    assert found["irony"].tolist() == [True, False, True, False] and found["rating 9"].sum() == 2 and not missing


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("traits", ["irony"] * 4),  # of a CSV: text, no lists
        ("traits", [["irony"], None, ["irony"], []]),
        ("traits", [[], [], [], []]),
        ("traits", [[None], [None], [], []]),
        ("rating", ["1", None, "9", "1"]),
        ("rating", [[1], [9], [1], [9]]),
    ],
)
def test_columns_that_only_share_a_name_are_no_slices(column, values):
    split = Dataset.from_dict({"text": ["one", "one two", "a b c", "a b c d"], "label": [0, 1, 0, 1], column: values})
    found, missing = slices(split)
    assert len(missing) == 2 and all("words" in name for name in found)


def test_slice_table_counts_warns_and_corrects():
    better, worse = answers(100, 40, 5, 55)
    rows = {"all": np.ones(200, dtype=bool), "few": np.arange(200) < 20}
    table = slice_table(rows, {"a": better, "b": worse})
    assert table["only a"].tolist() == [40, 0] and table["reviews"].tolist() == [200, 20]
    assert table["note"].tolist() == ["", f"small: under {SMALL} reviews"]
    assert table["p of all"][0] == 2 * table["p"][0] and table["a low"][0] < table["a"][0] < table["a high"][0]
    said = slice_lines(table)
    assert re.fullmatch(r"a is better than b: all \(0\.70 against 0\.5[23]\)\.", said[0])  # 0.525
    assert [line.split(": ")[1] for line in said[1:4]] == ["nowhere."] * 3
    assert said[4].endswith("these remain: all.")


# Behaviour


def test_a_typo_swaps_two_inner_letters_of_one_word():
    rng = np.random.default_rng(0)
    text = "A film without any faults, seriously."
    for _ in range(50):
        typo = with_typo(text, rng)
        changed = [(old, new) for old, new in zip(text.split(), typo.split(), strict=True) if old != new]
        ((old, new),) = changed
        assert sorted(old) == sorted(new) and (old[0], old[-1]) == (new[0], new[-1])
    assert with_typo("So bad, no fun at all", rng) is None
    assert with_typo("aaaaaa", rng) is None


def test_a_pair_is_shown_where_it_parts():
    first, second = difference("x" * 100 + "good" + "y" * 100, "x" * 100 + "bad" + "y" * 100, 30)
    assert "xgood" in first and "xbad" in second and first.startswith("...") and len(second) == 36
    assert difference("The end", "The end. Good.") == ("The end", "The end. Good.")


def test_failures_are_counted_as_each_expectation_says():
    def by_word(texts):
        positive = np.array([0.9 if "good" in text else 0.4 if "fine" in text else 0.2 for text in texts])
        return np.column_stack([1 - positive, positive])

    tests = {
        "same": ([("good", "good film"), ("good", "bad")], same_verdict),
        "not less positive": ([("good", "fine"), ("fine", "good"), ("bad", "bad")], not_less(1)),
        "not less negative": ([("bad", "fine"), ("fine", "fine")], not_less(0)),
        "first positive": ([("good", "bad"), ("good", "not good"), ("bad", "bad"), ("good", "dull")], called(0, 1)),
        "second negative": ([("good", "bad"), ("good", "not good"), ("bad", "bad"), ("good", "dull")], called(1, 0)),
        "none": ([], same_verdict),
    }
    table = failure_table(tests, {"by word": by_word})
    assert table["pairs"].to_dict() == {"same": 2, "not less positive": 3, "not less negative": 2,
                                         "first positive": 4, "second negative": 4}  # fmt: skip
    shares = [cell.split(" (")[0] for cell in table["by word fails"]]
    assert shares == ["50.0%", "33.3%", "50.0%", "25.0%", "25.0%"]


@pytest.mark.parametrize(
    ("plain", "negated", "said"),
    [
        ([1, 1, 1, 1], [0, 0, 0, 0], "m calls 4 of 4 plain sentences positive, and a not turns every one of them."),
        ([1, 1, 1, 0], [0, 1, 1, 0], "m calls 3 of 4 plain sentences positive, and a not turns 1 of them."),
        ([1, 1, 1, 1], [1, 1, 1, 1], "m calls 4 of 4 plain sentences positive, and a not turns none of them."),
        (
            [1, 0, 0, 0],
            [0, 0, 0, 0],
            "m calls 1 of 4 plain sentences positive: too few to say what it does with a not.",
        ),
    ],
)
def test_a_not_is_judged_only_where_the_plain_sentence_was_called_positive(plain, negated, said):
    scores = [np.eye(2)[verdicts] for verdicts in (plain, negated)]
    assert negation_verdict("m", *scores) == said


def test_occlusion_finds_the_word_that_decided():
    def by_word(texts):
        positive = np.array([0.5 + 0.4 * ("superb" in text) - 0.2 * ("long" in text) for text in texts])
        return np.column_stack([1 - positive, positive])

    marked = occlusion("a superb but long film", by_word, ("negative", "positive"))
    assert np.allclose(marked.weights, [0, 0.4, 0, -0.2, 0])
    assert repr(marked).startswith("a [+superb] but [-long] film") and "positive with probability 0.70" in repr(marked)
    long = occlusion(" ".join(["word"] * 400 + ["superb"]), by_word, ("negative", "positive"))
    assert len(long.pieces) <= 150 and long.weights.argmax() == len(long.pieces) - 1
    assert " ".join(long.pieces).split() == ["word"] * 400 + ["superb"]


def test_a_review_cannot_put_markup_into_the_page():
    drawn = MarkedText(["<script>alert(1)</script>", '"&'], [0.5, 0.0], "<b>")._repr_html_()
    assert "<script" not in drawn and "<b>" not in drawn
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in drawn and "&#34;&amp;" in drawn


# Pictures


def test_plots_show_what_they_are_given():
    accuracy = {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8, "f1": 0.7, "n_test": 100}
    rows = [
        ResultRow("02", "majority", **accuracy, parameters=0),
        ResultRow("03", "trainer", **accuracy, train_seconds=30.0, parameters=10**6),
        *(ResultRow("04", f"deepspeed_zero{s}", **accuracy, train_seconds=20.0, parameters=10**6) for s in range(2)),
    ]
    price = plots.plot_price(rows)
    assert [text.get_text() for text in price.legends[0].get_texts()] == [
        "majority",
        "trainer",
        "deepspeed, all stages",
    ]
    assert all(ax.get_xticklabels()[0].get_text() == "none" for ax in price.axes)
    first, second = answers(100, 40, 5, 55)
    rows = {"all": np.ones(200, dtype=bool), "few": np.arange(200) < 9}
    sliced = plots.plot_slices(slice_table(rows, {"a": first, "b": second}))
    assert [label.get_text() for label in sliced.axes[0].get_yticklabels()] == ["all (200)", "few (9, small)"]
    table = reliability(np.array([0.6, 0.9, 1.0]), np.array([1, 0, 1]), EDGES)
    covered = plots.plot_coverage({"m": coverage_curve(np.array([0.9, 0.7]), np.array([1, 0]))})
    for fig in (price, sliced, covered, plots.plot_reliability({"a": table, "b": table})):
        assert fig.get_suptitle() and all(ax.get_xlabel() and (ax.get_ylabel() or fig is sliced) for ax in fig.axes)
