"""Lesson 02: what can be had without fine-tuning anything."""

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from finetuning.data import take


def tfidf_classifier(seed: int = 1) -> Pipeline:
    """TF-IDF over words and word pairs, then logistic regression: the baseline every text classifier must beat."""
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode"),
        LogisticRegression(C=10, solver="liblinear", random_state=seed),
    )


def telling_words(classifier: Pipeline, count: int = 12) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The terms with the largest weights: two lists of (term, weight), towards negative and towards positive."""
    vectorizer, regression = classifier[0], classifier[-1]
    weights, terms = regression.coef_[0], vectorizer.get_feature_names_out()
    order = np.argsort(weights)
    pick = lambda rows: [(str(terms[row]), float(weights[row])) for row in rows]  # noqa: E731
    return pick(order[:count]), pick(order[: -count - 1 : -1])


def learning_curve(train: Dataset, test: Dataset, sizes: list[int], *, repeats: int = 3, seed: int = 1) -> np.ndarray:
    """Test accuracy of TF-IDF by training size: an array (sizes, repeats), a stratified sample for each repeat.

    Of the whole training split there is but one sample: the repeats beyond the first are NaN there.
    """
    scores = np.full((len(sizes), repeats), np.nan)
    for i, size in enumerate(sizes):
        for repeat in range(repeats if size < len(train) else 1):
            sample = take(train, size, seed + repeat)
            model = tfidf_classifier(seed).fit(sample["text"], sample["label"])
            scores[i, repeat] = model.score(test["text"], test["label"])
    return scores
