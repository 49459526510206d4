"""Measure pocket T5 for its model card: ``python -m authoring cards --source <folder of IMDb's halves>``.

Fine-tunes it on Pocket Reviews as lesson 03 does, asks the tuned models lesson 07's changed sentences, scores IMDb's
25,000 test reviews with the model as it is shipped, and writes the figures into the card. What is measured is kept in
``runs/card/``; delete it after the model has changed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from authoring.blocks import fill_block
from authoring.pocket.tuning import fine_tune, pocket_reviews, scores
from finetuning.baselines import tfidf_classifier
from finetuning.data import load_reviews
from finetuning.evaluation import behaviour
from finetuning.evaluation.pairs import paired
from finetuning.files import write_atomically
from finetuning.machine import this_machine
from finetuning.metrics import wilson_interval
from finetuning.models import load_model
from finetuning.profiles import POCKET_T5, choose
from finetuning.reviews import clean_text
from finetuning.workspace import runs_folder

SEEDS = (1, 2, 3, 4, 5)
# What the profile's settings are compared with on validation, one setting changed at a time.
OTHERS: dict[str, tuple[float, ...]] = {"learning_rate": (1.5e-4, 6e-4), "epochs": (2, 5), "batch_size": (8, 32)}
OTHERS_SEEDS = SEEDS[:3]
CHANGED = 200  # test reviews to which blame is added


def as_shipped_on_imdb(source: str) -> list[bool]:
    """Whether the shipped model is right, for each review of IMDb's test half."""
    settings, test = replace(choose(), max_length=512), load_reviews(source)["test"]
    given = scores(load_model(settings), settings, [clean_text(text) for text in test["text"]])
    return (given.argmax(axis=1) == np.array(test["label"])).tolist()


def baselines() -> dict[str, list[bool]]:
    """Whether TF-IDF and the shipped model are right, for each test review of Pocket Reviews."""
    settings, splits = choose(), pocket_reviews()
    texts, truth = splits["test"]["text"][:], np.array(splits["test"]["label"])
    words = tfidf_classifier().fit(splits["train"]["text"][:], splits["train"]["label"][:]).predict(texts)
    shipped = scores(load_model(settings), settings, texts).argmax(axis=1)
    return {"tfidf": (words == truth).tolist(), "as_shipped": (shipped == truth).tolist()}


def of_a_seed(seed: int) -> dict[str, Any]:
    """From pocket T5's weights: right or not, for each test review and changed sentence; the accuracy on validation."""
    settings, test = choose(), pocket_reviews()["test"]
    texts, truth = test["text"][:], np.array(test["label"])
    tuned, validation = fine_tune(settings, seed)
    answers = scores(tuned, settings, texts)
    plain = behaviour.plain_praise()
    praise, negated = (scores(tuned, settings, some) for some in (plain, [behaviour.negated(text) for text in plain]))
    chosen = np.random.default_rng(seed).choice(len(texts), min(CHANGED, len(texts)), replace=False)
    blamed = scores(tuned, settings, [f"{texts[i]} {behaviour.BLAME}" for i in chosen])
    return {
        "right": (answers.argmax(1) == truth).tolist(),
        "validation": validation,
        "failed": {
            "plain praise called positive": (praise.argmax(1) != 1).tolist(),
            "negated praise called negative": (negated.argmax(1) != 0).tolist(),
            "blame added": behaviour.not_less(0)(answers[chosen], blamed).tolist(),
        },
    }


def with_another(setting: str, value: Any, seed: int) -> float:
    """Accuracy on validation when one setting of the profile has another value."""
    return fine_tune(replace(choose(), **{setting: value}), seed)[1]


def kept(name: str, measure: Any, *given: Any) -> Any:
    """What ``measure(*given)`` returns, from ``runs/card/`` if it was measured before."""
    path = runs_folder() / "card" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measure(*given)))
        print(f"measured {name}", flush=True)
    return json.loads(path.read_text())


def share(right: list[bool]) -> str:
    """An accuracy with its interval."""
    low, high = wilson_interval(right)
    return f"{np.mean(right):.3f} ({low:.3f} to {high:.3f})"


def points(right: list[list[bool]], other: list[bool]) -> str:
    """By how many points the mean accuracy of some models is above that of another."""
    return f"{100 * (np.mean(right) - np.mean(other)):+.1f}"


def card_figures(source: str) -> str:
    """The figures of the model card as Markdown."""
    imdb, fixed = kept("imdb", as_shipped_on_imdb, source), kept("baselines", baselines)
    seeds = [kept(f"seed-{seed}", of_a_seed, seed) for seed in SEEDS]
    words, shipped, tuned = fixed["tfidf"], fixed["as_shipped"], [seed["right"] for seed in seeds]
    machine = this_machine()
    lines = [
        f"As shipped, with the prompt `{choose().prompt}`, on all {len(imdb):,} IMDb test reviews (first 512 tokens): "
        f"accuracy **{np.mean(imdb):.3f}** ({share(imdb).partition('(')[2]}.",
        "",
        f"On Pocket Reviews ({len(words):,} test reviews, with Wilson's 95 % intervals; McNemar's p), trained on an "
        f"{machine['processor']}:",
        "",
        "| method | seed | validation | test | against TF-IDF |",
        "|---|---|---|---|---|",
        *(f"| {method} | - | - | {share(right)} | - |" for method, right in fixed.items()),
    ]
    for number, seed in zip(SEEDS, seeds, strict=True):
        ahead = f"{points([seed['right']], words)} points, p = {paired(np.array(seed['right']), np.array(words)).p:.1g}"
        lines.append(f"| trainer | {number} | {seed['validation']:.3f} | {share(seed['right'])} | {ahead} |")
    spread = np.std([np.mean(right) for right in tuned], ddof=1)
    lines += [
        "",
        f"- Fine-tuned, mean of {len(SEEDS)} seeds: {np.mean(tuned):.3f} (standard deviation {spread:.3f}), "
        f"{points(tuned, words)} points against TF-IDF, {points(tuned, shipped)} against the model as shipped.",
    ]
    lines += _choices([seed["validation"] for seed in seeds][: len(OTHERS_SEEDS)])
    for name in seeds[0]["failed"]:
        failed = [seed["failed"][name] for seed in seeds]
        each = ", ".join(f"{np.mean(some):.0%}" for some in failed)
        lines.append(f'- Fails "{name}" in {np.mean(failed):.1%} of {len(failed[0])} cases (seeds: {each}).')
    return "\n".join(lines)


def _choices(chosen: list[float]) -> list[str]:
    """Accuracies on validation with the profile's settings, ``chosen``, and with one of them changed."""
    measured = {"as the profile has it": chosen}
    for setting, values in OTHERS.items():
        for value in values:
            measured[f"{setting.replace('_', ' ')} {value:g}"] = [
                kept(f"{setting}-{value:g}-{seed}", with_another, setting, value, seed) for seed in OTHERS_SEEDS
            ]
    rows = [
        f"| {name} | {np.mean(some):.3f} | {', '.join(f'{accuracy:.3f}' for accuracy in some)} |"
        for name, some in measured.items()
    ]
    number = len(pocket_reviews()["validation"])
    head = f"| one setting changed | validation ({number} reviews), mean | seeds {', '.join(map(str, OTHERS_SEEDS))} |"
    return ["", head, "|---|---|---|", *rows, ""]


def fill_card(source: str) -> None:
    """Measure, and write the figures into the model's card; ``source``: IMDb's two halves, a folder or the Hub id."""
    card = POCKET_T5 / "README.md"
    figures = card_figures(source)
    text = card.read_text(encoding="utf-8")
    write_atomically(card, fill_block(text, "figures", figures, "python -m authoring cards --source IMDB"))
    print(f"\n{figures}\n\nwritten to {card}")
