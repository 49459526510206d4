"""Measure pocket T5 for its model card: ``python -m finetuning.pocket_card --source <folder of IMDb's halves>``.

Runs the course's own lessons 01 to 03 for three seeds, scores the 25,000 IMDb test reviews zero-shot, and writes the figures
into the card. It takes a quarter of an hour on two cores; finished runs (``runs/card-1`` ...) are used again.
"""

import argparse
import json

import numpy as np

from finetuning.files import fill_block, write_atomically
from finetuning.machine import this_machine
from finetuning.profiles import POCKET_T5, choose
from finetuning.workspace import LESSONS, runs_folder

SEEDS = (1, 2, 3)
METHODS = ("majority", "tfidf", "zero_shot", "from_scratch", "trainer")


def zero_shot_on_imdb(source: str) -> dict:
    """Accuracy of the shipped model on IMDb's test half, with its 95 % interval: a row as ``metrics.measure`` makes it.

    The row is kept in ``runs/card-imdb.json``; delete that file after the model has changed.
    """
    kept = runs_folder() / "card-imdb.json"
    if kept.exists():
        return json.loads(kept.read_text())
    from finetuning.data import clean_text, read_split
    from finetuning.labels import score_labels
    from finetuning.metrics import measure
    from finetuning.models import load_model, load_tokenizer

    settings = choose()
    test = read_split(source, "test")
    texts = [clean_text(text) for text in test["text"]]
    scores, _ = score_labels(
        load_model(settings), load_tokenizer(settings), texts, prompt=settings.prompt, max_length=512
    )
    row = measure("card", "zero_shot", scores.argmax(axis=1), test["label"])
    write_atomically(kept, json.dumps(row))
    return row


def fine_tuned_on_pocket_reviews() -> dict[str, list[dict]]:
    """The rows of the course's runs with three seeds: a dict of method -> list of rows, one per seed."""
    from finetuning.course.runner import run_course

    rows: dict[str, list[dict]] = {method: [] for method in METHODS}
    for seed in SEEDS:
        workspace = run_course("pocket", seed=seed, name=f"card-{seed}", lessons=LESSONS[1:4])
        for method in METHODS:
            rows[method].append(workspace.row(method))
    return rows


def card_figures(imdb: dict, rows: dict[str, list[dict]]) -> str:
    """The figures of the model card as Markdown."""
    machine = this_machine()
    mean = {method: np.mean([row["accuracy"] for row in mine]) for method, mine in rows.items()}
    lines = [
        f"Zero-shot with the prompt `{choose().prompt}` on all {imdb['n_test']:,} IMDb test reviews (first 512 tokens): "
        f"accuracy **{imdb['accuracy']:.3f}** ({imdb['accuracy_low']:.3f} to {imdb['accuracy_high']:.3f}), F1 {imdb['f1']:.3f}.",
        "",
        f"On the {rows['trainer'][0]['n_test']} test reviews of Pocket Reviews, seeds {', '.join(map(str, SEEDS))}, "
        f"on {machine['cores']} cores of {machine['processor']}:",
        "",
        "| method | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean | training |",
        "|---|" + "---|" * (len(SEEDS) + 2),
    ]
    for method, mine in rows.items():
        cells = " | ".join(f"{r['accuracy']:.3f} ({r['accuracy_low']:.3f} to {r['accuracy_high']:.3f})" for r in mine)
        seconds = [row["train_seconds"] for row in mine]
        training = "none" if None in seconds else f"{np.mean(seconds):.1f} s"
        lines.append(f"| {method} | {cells} | {mean[method]:.3f} | {training} |")
    lines.append("")
    for other in ("tfidf", "from_scratch", "zero_shot"):
        lines.append(
            f"- Fine-tuned against {other}: {100 * (mean['trainer'] - mean[other]):+.1f} points (mean of the seeds)."
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m finetuning.pocket_card``."""
    parser = argparse.ArgumentParser(
        prog="python -m finetuning.pocket_card", description="Measure pocket T5 for its card."
    )
    parser.add_argument(
        "--source", required=True, help="folder with IMDb's train.parquet and test.parquet, or the Hub id"
    )
    source = parser.parse_args(arguments).source
    card = POCKET_T5 / "README.md"
    figures = card_figures(zero_shot_on_imdb(source), fine_tuned_on_pocket_reviews())
    text = card.read_text(encoding="utf-8")
    write_atomically(card, fill_block(text, "figures", figures, "python -m finetuning.pocket_card"))
    print(f"\n{figures}\n\nwritten to {card}")


if __name__ == "__main__":
    main()
