"""Measure pocket T5 for its model card: ``python -m authoring cards --source <folder of IMDb's halves>``.

Runs the course's own lessons 01 to 03 for five seeds, scores the 25,000 IMDb test reviews with the model as it is
shipped, asks the fine-tuned models lesson 05's negated sentences, and writes the figures into the card. It takes half
an hour on two cores; finished runs (``runs/card-1`` ...) are used again.
"""

import json
from dataclasses import asdict

import numpy as np

from authoring.blocks import fill_block
from finetuning.evaluation import behaviour
from finetuning.evaluation.pairs import kept_answers, paired
from finetuning.files import write_atomically
from finetuning.machine import this_machine
from finetuning.profiles import POCKET_T5, choose
from finetuning.results import ResultRow
from finetuning.workspace import LESSONS, Workspace, runs_folder

SEEDS = (1, 2, 3, 4, 5)
METHODS = ("majority", "tfidf", "as_shipped", "from_scratch", "trainer")


def as_shipped_on_imdb(source: str) -> ResultRow:
    """Accuracy of the shipped model on IMDb's test half, with its 95 % interval.

    The row is kept in ``runs/card-imdb.json``; delete that file after the model has changed.
    """
    kept = runs_folder() / "card-imdb.json"
    if kept.exists():
        return ResultRow(**json.loads(kept.read_text()))
    from finetuning.data import clean_text, load_reviews
    from finetuning.labels import score_labels
    from finetuning.metrics import measure
    from finetuning.models import load_model, load_tokenizer

    settings = choose()
    test = load_reviews(source)["test"]
    texts = [clean_text(text) for text in test["text"]]
    scores, _ = score_labels(
        load_model(settings), load_tokenizer(settings), texts, prompt=settings.prompt, max_length=512
    )
    row = measure("card", "as_shipped", scores.argmax(axis=1), test["label"])
    write_atomically(kept, json.dumps(asdict(row)))
    return row


def fine_tuned_on_pocket_reviews() -> list[Workspace]:
    """The course's runs, one per seed, with lessons 01 to 03 done."""
    from finetuning.course.runner import run_course

    return [run_course("pocket", seed=seed, name=f"card-{seed}", lessons=LESSONS[1:4]) for seed in SEEDS]


def failures(workspace: Workspace) -> dict[str, np.ndarray]:
    """Which of lesson 05's changed inputs the fine-tuned model of a run fails: a dict of test -> bool per pair."""
    from datasets import load_from_disk

    from finetuning.labels import score_labels
    from finetuning.models import load_model, load_tokenizer

    saved = choose(base_model=str(workspace.models / "trainer"))
    model, tokenizer = load_model(saved), load_tokenizer(saved)

    def predict(texts):
        return score_labels(model, tokenizer, texts, prompt=saved.prompt, max_length=saved.max_length)[0]

    plain = behaviour.plain_praise()
    praise, negated = predict(plain), predict([behaviour.negated(text) for text in plain])
    test = load_from_disk(workspace.data / "reviews")["test"].shuffle(seed=workspace.settings.seed).select(range(200))
    texts = test["text"][:]
    before, after = predict(texts), predict([f"{text} {behaviour.BLAME}" for text in texts])
    return {
        "plain praise": praise.argmax(axis=1) != 1,
        "negated praise": behaviour.called(1, 0)(praise, negated),
        "blame added": behaviour.not_less(0)(before, after),
    }


def card_figures(imdb: ResultRow, runs: list[Workspace]) -> str:
    """The figures of the model card as Markdown."""
    from datasets import load_from_disk

    machine = this_machine()
    rows = {method: [run.row(method) for run in runs] for method in METHODS}
    mean = {method: np.mean([row.accuracy for row in of_seeds]) for method, of_seeds in rows.items()}
    lines = [
        f"As shipped, with the prompt `{choose().prompt}`, on all {imdb.n_test:,} IMDb test reviews (first 512 "
        f"tokens): accuracy **{imdb.accuracy:.3f}** ({imdb.accuracy_low:.3f} to {imdb.accuracy_high:.3f}), F1 "
        f"{imdb.f1:.3f}.",
        "",
        f"On the {rows['trainer'][0].n_test:,} test reviews of Pocket Reviews, seeds {', '.join(map(str, SEEDS))}, "
        f"on {machine['cores']} cores of {machine['processor']}:",
        "",
        "| method | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean | training |",
        "|---|" + "---|" * (len(SEEDS) + 2),
    ]
    for method, of_seeds in rows.items():
        cells = " | ".join(f"{r.accuracy:.3f} ({r.accuracy_low:.3f} to {r.accuracy_high:.3f})" for r in of_seeds)
        seconds = [row.train_seconds for row in of_seeds if row.train_seconds is not None]
        training = f"{np.mean(seconds):.1f} s" if seconds else "none"
        lines.append(f"| {method} | {cells} | {mean[method]:.3f} | {training} |")
    pairs = []
    for run in runs:
        truth = np.array(load_from_disk(run.data / "reviews")["test"]["label"])
        right = kept_answers(run, truth)
        pairs.append(paired(right["trainer"], right["tfidf"]).p)
    lines.append("")
    for other in ("tfidf", "from_scratch", "as_shipped"):
        lines.append(
            f"- Fine-tuned against {other}: {100 * (mean['trainer'] - mean[other]):+.1f} points (mean of the seeds)."
        )
    lines.append(f"- McNemar's test, fine-tuned against tfidf: p at most {max(pairs):.1g} in the {len(pairs)} seeds.")
    failed = [failures(run) for run in runs]
    for name in failed[0]:
        together = np.concatenate([of_seed[name] for of_seed in failed])
        shares = ", ".join(f"{of_seed[name].mean():.0%}" for of_seed in failed)
        lines.append(
            f'- Fails the test "{name}" in {together.mean():.1%} of {len(failed[0][name])} pairs (seeds: {shares}).'
        )
    return "\n".join(lines)


def fill_card(source: str) -> None:
    """Measure, and write the figures into the model's card; ``source``: IMDb's two halves, a folder or the Hub id."""
    card = POCKET_T5 / "README.md"
    figures = card_figures(as_shipped_on_imdb(source), fine_tuned_on_pocket_reviews())
    text = card.read_text(encoding="utf-8")
    write_atomically(card, fill_block(text, "figures", figures, "python -m authoring cards --source IMDB"))
    print(f"\n{figures}\n\nwritten to {card}")
