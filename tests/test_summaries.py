"""The numbers at the end of each lesson are those of the run, each computed once more from what the run left."""

import json
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOKS
from datasets import load_from_disk

from finetuning.batching import padded_tokens, token_lengths
from finetuning.data import load_reviews
from finetuning.distributed.memory import COMPONENTS
from finetuning.distributed.planner import adapter_parameters, t5_shape
from finetuning.evaluation.calibration import calibration_error, fit_temperature, log_loss, threshold_for
from finetuning.evaluation.pairs import paired
from finetuning.evaluation.slices import slices
from finetuning.labels import label_ids
from finetuning.metrics import wilson_interval
from finetuning.models import load_tokenizer
from finetuning.profiles import choose

NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]\d+)?%?")


def shown_by(folder, lesson):
    """What the cells of an executed lesson printed, by cell id."""
    (copy,) = (folder / "notebooks").glob(f"{lesson}_*.ipynb")
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    return {cell.id: "".join(output.get("text", "") for output in cell.outputs) for cell in cells}


@pytest.fixture(scope="module")
def run(pocket_run):
    """What the run left: its rows by method, splits, label scores, settings and printed outputs."""
    folder = pocket_run[1]
    rows = {row["method"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}

    def scores(method, split="test"):
        return np.array(json.loads((folder / "scores" / f"{method}.json").read_text())[split])

    data = load_from_disk(folder / "data" / "reviews")
    truth = {name: np.array(split["label"]) for name, split in data.items()}
    return SimpleNamespace(
        rows=rows, data=data, scores=scores, settings=choose(), truth=truth,
        right=lambda method, split="test": scores(method, split).argmax(axis=1) == truth[split],
        shown={path.stem[:2]: shown_by(folder, path.stem[:2]) for path in NOTEBOOKS},
    )  # fmt: skip


def prepared(run):
    settings, train = run.settings, run.data["train"]
    tokenizer = load_tokenizer(settings)
    lengths = token_lengths(train["text"][:], tokenizer, settings.prompt)
    real = np.minimum(lengths, settings.max_length).sum()
    options = {"max_length": settings.max_length, "seed": settings.seed}
    computed = [padded_tokens(lengths, settings.batch_size, way, **options) for way in ("to max_length", "grouped")]
    dropped = sum(map(len, load_reviews(settings.reviews).values())) - sum(map(len, run.data.values()))
    cut = np.mean(lengths > settings.max_length)
    return [
        "01-find",
        dropped,
        len(train),
        *label_ids(tokenizer),
        settings.max_length,
        cut,
        *(1 - real / n for n in computed),
    ]


def baselines(run):
    floor, counted, asked = (run.rows[method] for method in ("majority", "tfidf", "as_shipped"))
    spread = "02-zero-shot-words"
    interval = counted["accuracy_low"], counted["accuracy_high"]
    return [floor["accuracy"], counted["accuracy"], counted["parameters"], asked["accuracy"], spread, *interval]


def fine_tuned(run):
    tuned, scratch, asked = (run.rows[method] for method in ("trainer", "from_scratch", "as_shipped"))
    made_fast = "03-speed-plot", "03-speed-predict"
    gained = (100 * (tuned["accuracy"] - other["accuracy"]) for other in (scratch, asked))
    trained = tuned["train_seconds"], tuned["accuracy"]
    return ["03-step-compare", tuned["predict_reviews_per_second"], *made_fast, *trained, *gained]


def scaled(run):
    whole, third = (run.rows[method] for method in ("deepspeed_zero0", "deepspeed_zero3"))
    held = [sum(row["bytes_per_rank"][part] for part in COMPONENTS) for row in (whole, third)]
    ranks, shared = third["world_size"], held[1] / held[0]
    loss, curves, cost = "04-loss-halves", "04-losses-compare", "04-cost-seconds"
    return [held[0] / 2**20, whole["parameters"], loss, 3, shared, ranks, ranks, curves, 3, cost]


def on_a_cluster(run):
    offload_apart = np.abs(run.scores("deepspeed_zero2_offload") - run.scores("deepspeed_zero2")).max()
    apart = "05-crash-resume", "05-crash-universal"
    return [*apart, 3, "05-stage3-joined", offload_apart, 4, "05-again-measured"]


def with_lora(run):
    """Rank 4 beside query and value: 16 bytes for each parameter of the adapters, 4 for each of the model's own."""
    whole, lora = run.rows["trainer"], run.rows["lora"]
    by_hand = adapter_parameters(t5_shape(run.settings.model), 4)
    left = (16 * by_hand + 4 * whole["parameters"]) / (16 * whole["parameters"])
    searched = ["06-search-winner"] * 2 + ["06-search-flatter-halves", "06-search-winner"]
    compared = [lora["accuracy"], whole["accuracy"], len(run.truth["test"]), len(run.truth["test"])]
    return [by_hand, 4, "06-peft-compare", left, "06-memory-table", "06-memory-activations", *searched, *compared]


def evaluated(run):
    right, scores, truth = run.right("trainer"), run.scores("trainer"), run.truth["test"]
    pair = paired(right, run.right("tfidf"), seed=run.settings.seed)
    points = sorted(100 * abs(value) for value in (pair.low, pair.high))
    checked = run.scores("trainer", "validation")
    temperature = fit_temperature(checked, run.truth["validation"])
    tempered = scores ** (1 / temperature)
    tempered /= tempered.sum(axis=1, keepdims=True)
    losses = [log_loss(given, truth).mean() for given in (scores, tempered)]
    errors = [calibration_error(given.max(axis=1), right, np.linspace(0.5, 1, 11)) for given in (scores, tempered)]
    threshold = threshold_for(checked.max(axis=1), run.right("trainer", "validation"), 0.95)
    answered = scores.max(axis=1) >= threshold
    of_answered, of_all = ((some.sum(), some.mean()) for some in (right[answered], right))
    abstained = [answered.sum(), len(truth), *of_answered, *of_all]
    weakest = min(slices(run.data["test"])[0].values(), key=lambda rows: right[rows].mean())
    weakness = right[weakest].mean(), *wilson_interval(right[weakest]), weakest.sum()
    changes = ["07-calibration-fit"] * 2
    told = [100 * abs(pair.difference), *points, pair.p, temperature, *losses, *changes, *errors]
    return [*told, *abstained, *weakness, len(truth), "07-ship-batch-compare", 3]


EXPECTED = {
    "01": prepared, "02": baselines, "03": fine_tuned, "04": scaled, "05": on_a_cluster, "06": with_lora,
    "07": evaluated,
}  # fmt: skip


def agrees(number, expected, shown):
    """Whether a printed number is the expected value, rounded as printed; or one that the cell of that id printed."""
    if isinstance(expected, str):
        return number.strip("+%") in [found.strip("+%") for found in NUMBER.findall(shown[expected])]
    digits = number.strip("%").replace(",", "")
    scale = 100 if number.endswith("%") else 1
    return abs(float(digits) - scale * expected) <= 0.5001 * 10.0 ** -len(digits.partition(".")[2])


@pytest.mark.parametrize("lesson", EXPECTED)
def test_each_number_of_a_summary_is_the_runs(lesson, run):
    shown = run.shown[lesson]
    summary = shown[f"{lesson}-close-numbers"]
    printed, expected = NUMBER.findall(summary), EXPECTED[lesson](run)
    assert len(printed) == len(expected), (summary, expected)
    wrong = [pair for pair in zip(printed, expected, strict=True) if not agrees(*pair, shown)]
    assert not wrong, f"printed and of the run: {wrong}\n{summary}"


def test_a_wrong_number_would_be_noticed():
    assert agrees("84.4%", 0.844, {}) and agrees("1,300", 1300, {}) and agrees("-0.055", -0.0549, {})
    assert not agrees("0.844", 0.8446, {}) and not agrees("+8.8", 8.9, {}) and not agrees("49", 50, {})
    assert agrees("4.0", "a", {"a": "4.0 times"}) and not agrees("4.0", "a", {"a": "14.0 times"})
