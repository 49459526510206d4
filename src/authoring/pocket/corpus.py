"""What Pocket Reviews is made of, computed: ``python -m authoring cards`` writes the figures into its data card.

The same functions are the checks that ``make test`` runs over the data set.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from authoring.blocks import fill_block
from finetuning.files import write_atomically
from finetuning.profiles import POCKET_REVIEWS

SPLITS = ("train", "validation", "test")
TRAITS = ("plain", "negation", "contrast", "irony", "comparison", "mixed_aspects", "understatement", "reported_opinion")
COMMAND = "python -m authoring cards"


def read_reviews(folder: Path = POCKET_REVIEWS) -> list[dict]:
    """All reviews of the data set, each a dict with its ``split``."""
    reviews = []
    for split in SPLITS:
        for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            reviews.append({**json.loads(line), "split": split})
    return reviews


def words(text: str) -> list[str]:
    """The lower-cased words of a text."""
    return re.findall(r"[a-z0-9']+", text.lower())


def runs_of_words(text: str, length: int) -> set[tuple[str, ...]]:
    """The set of all runs of ``length`` words in a text."""
    tokens = words(text)
    return {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}


def closest_by_runs(texts: list[str], length: int = 5) -> tuple[float, int, int]:
    """The largest Jaccard overlap of word runs between two texts: (overlap, row, row)."""
    runs = [runs_of_words(text, length) for text in texts]
    holders = defaultdict(list)
    for row, runs_of_text in enumerate(runs):
        for run in runs_of_text:
            holders[run].append(row)
    pairs = {(a, b) for rows in holders.values() for i, a in enumerate(rows) for b in rows[i + 1 :]}
    return max(((len(runs[a] & runs[b]) / len(runs[a] | runs[b]), a, b) for a, b in pairs), default=(0.0, 0, 0))


def closest_by_tfidf(texts: list[str]) -> tuple[float, int, int]:
    """The largest TF-IDF cosine (single words) between two texts: (cosine, row, row)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer().fit_transform(texts)
    cosines = (vectors @ vectors.T).toarray()
    np.fill_diagonal(cosines, 0)
    a, b = np.unravel_index(cosines.argmax(), cosines.shape)
    return float(cosines[a, b]), int(a), int(b)


def best_single_term(texts: list[str], labels: list[int] | np.ndarray) -> tuple[float, str]:
    """The word or word pair whose presence predicts the label best on the whole set: (accuracy, term)."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"[a-z0-9']+")
    present = vectorizer.fit_transform(texts)
    labels = np.asarray(labels)
    positive = np.asarray(present[labels == 1].sum(axis=0)).ravel()
    negative = np.asarray(present[labels == 0].sum(axis=0)).ravel()
    total = len(labels)
    right = np.maximum(positive + (labels == 0).sum() - negative, negative + (labels == 1).sum() - positive) / total
    return float(right.max()), str(vectorizer.get_feature_names_out()[right.argmax()])


def edge_accuracy(reviews: list[dict], pick: Callable[[list[str]], list[str]]) -> float:
    """Test accuracy of a bag of words that sees only the words ``pick`` takes from each text's list of words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = {split: [r for r in reviews if r["split"] == split] for split in ("train", "test")}
    texts = {split: [" ".join(pick(words(r["text"]))) for r in part] for split, part in rows.items()}
    labels = {split: [r["label"] for r in part] for split, part in rows.items()}
    model = make_pipeline(CountVectorizer(token_pattern=r"[a-z0-9']+"), LogisticRegression(max_iter=1000))
    return float(model.fit(texts["train"], labels["train"]).score(texts["test"], labels["test"]))


def tfidf_by_trait(reviews: list[dict]) -> dict[str, float]:
    """Test accuracy of the course's TF-IDF baseline: a dict with ``all``, ``not plain`` and each trait."""
    from finetuning.baselines import tfidf_classifier

    train = [r for r in reviews if r["split"] == "train"]
    test = [r for r in reviews if r["split"] == "test"]
    model = tfidf_classifier().fit([r["text"] for r in train], [r["label"] for r in train])
    right = model.predict([r["text"] for r in test]) == np.array([r["label"] for r in test])
    plain = np.array(["plain" in r["traits"] for r in test])
    scores = {"all": right.mean(), "not plain": right[~plain].mean()}
    for trait in TRAITS:
        scores[trait] = right[np.array([trait in r["traits"] for r in test])].mean()
    return {name: float(score) for name, score in scores.items()}


def first_edition(reviews: list[dict]) -> list[dict]:
    """The 2,000 reviews of the first edition in its splits: 1,300, 200 and 500 in the order of their ids."""
    old = []
    for review in reviews:
        number = int(review["id"].removeprefix("pr-"))
        if number <= 2000:
            old.append({**review, "split": SPLITS[(number > 1300) + (number > 1500)]})
    return old


def card_figures(reviews: list[dict]) -> str:
    """The figures of the data card as Markdown."""
    texts, labels = [r["text"] for r in reviews], [r["label"] for r in reviews]
    lengths = [len(text.split()) for text in texts]
    scores, old = tfidf_by_trait(reviews), tfidf_by_trait(first_edition(reviews))
    term, single = best_single_term(texts, labels)[::-1]
    lines = [
        "| | train | validation | test | all |",
        "|---|---|---|---|---|",
        _line("reviews", reviews, lambda r: True),
        _line("positive", reviews, lambda r: r["label"] == 1),
        *(_line(f"`{trait}`", reviews, lambda r, trait=trait: trait in r["traits"]) for trait in TRAITS),
        "",
        f"- Words per review: {min(lengths)} to {max(lengths)}, median {median(lengths):.0f}; "
        f"{len({word for text in texts for word in words(text)}):,} different words, "
        f"{len({r['film'] for r in reviews}):,} films.",
        f"- Not plain: {np.mean(['plain' not in r['traits'] for r in reviews]):.1%}.",
        f"- Closest two reviews: {closest_by_runs(texts)[0]:.3f} Jaccard of five-word runs, "
        f"{closest_by_tfidf(texts)[0]:.3f} TF-IDF cosine.",
        f'- Most telling single word or pair: "{term}", which alone guesses {single:.1%} of the labels.',
        f"- A bag of the first three words scores {edge_accuracy(reviews, lambda w: w[:3]):.3f} on test, of the "
        f"last three {edge_accuracy(reviews, lambda w: w[-3:]):.3f}.",
        f"- TF-IDF with logistic regression, trained on the training split: {scores['all']:.3f} on test, "
        f"{scores['plain']:.3f} on `plain`, "
        f"{scores['not plain']:.3f} on the others.",
        "",
        "TF-IDF accuracy, on the test reviews of now and on those of the first edition (trained on its 1,300 reviews):",
        "",
        "| reviews | now | first edition |",
        "|---|---|---|",
        *(
            f"| {kind if kind in ('all', 'not plain') else f'`{kind}`'} | {scores[kind]:.3f} | {old[kind]:.3f} |"
            for kind in scores
        ),
    ]
    return "\n".join(lines)


def _line(name, reviews, holds):
    counts = Counter(r["split"] for r in reviews if holds(r))
    return f"| {name} | " + " | ".join(f"{counts[split]:,}" for split in SPLITS) + f" | {sum(counts.values()):,} |"


def fill_card() -> None:
    """Write the figures of the data set into its card."""
    path = POCKET_REVIEWS / "README.md"
    card = path.read_text(encoding="utf-8")
    write_atomically(path, fill_block(card, "figures", card_figures(read_reviews()), COMMAND))
    print(f"figures written to {path}")
