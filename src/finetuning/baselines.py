"""Lesson 02: what can be had without fine-tuning anything."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline

from finetuning.data import take


def tfidf_classifier(seed: int = 1) -> Pipeline:
    """TF-IDF over words and word pairs, then logistic regression: the baseline every text classifier must beat.

    Of two labels one regression, of more one for each label against all others.
    """
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode"),
        OneVsRestClassifier(LogisticRegression(C=10, solver="liblinear", random_state=seed)),
    )


def telling_words(
    classifier: Pipeline, words: Sequence[str], count: int | None = None
) -> dict[str, list[tuple[str, float]]]:
    """The terms with the largest weights towards each label: label word -> ``count`` pairs of (term, weight).

    None: as many as can be read side by side. Of two labels the first one's are the other's with the sign changed.
    """
    terms, weights = classifier[0].get_feature_names_out(), [one.coef_[0] for one in classifier[-1].estimators_]
    weights = [-weights[0], *weights] if len(weights) == 1 else weights
    order = [np.argsort(-each, kind="stable")[: count or max(3, 24 // len(words))] for each in weights]
    return {
        word: [(str(terms[row]), float(each[row])) for row in rows]
        for word, each, rows in zip(words, weights, order, strict=True)
    }


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
