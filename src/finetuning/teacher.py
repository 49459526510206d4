"""A teacher for the pre-training of pocket T5: what a linear model on words makes of a passage.

The label of a review is a poor label for one sentence of it. A logistic regression over words and word pairs, fitted on
single sentences that carry the labels of their reviews, gives each passage a probability of its own, and the small model
learns from a mixture of the two (distillation: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"). No
review is judged by a regression that has seen it: each is judged by the one fitted on the other folds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDS = 4
RARE = 3  # words and pairs that stand in fewer sentences are left out
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Teacher:
    """Out-of-fold logistic regressions over words and word pairs (tf-idf) of sentences.

    ``rows`` are reviews as arrays of token ids, ``labels`` their labels (0 negative, 1 positive).
    """

    def __init__(self, rows: list[np.ndarray], labels: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self.tokenizer = tokenizer
        parts = [SENTENCE_END.split(text) for text in self._texts(rows)]
        review = np.repeat(np.arange(len(rows)), [len(part) for part in parts])
        self.words = TfidfVectorizer(
            ngram_range=(1, 2), min_df=RARE, sublinear_tf=True, token_pattern=r"[\w']+|[!?]", dtype=np.float32
        )
        table = self.words.fit_transform([sentence for part in parts for sentence in part])
        self.regressions = []
        for left_out in range(FOLDS):
            seen = review % FOLDS != left_out
            fitted = LogisticRegression(solver="liblinear").fit(table[seen], labels[review[seen]])
            self.regressions.append(fitted)

    def _texts(self, passages):
        return self.tokenizer.batch_decode(passages, skip_special_tokens=True)

    def probabilities(self, passages: list[np.ndarray], reviews: np.ndarray) -> np.ndarray:
        """How probably each passage (token ids) belongs to a positive review: an array of shape (passages,).

        ``reviews`` says from which of the rows each passage comes; the regression that answers has not seen that review.
        """
        table = self.words.transform(self._texts(passages))
        by_fold = np.stack([fitted.predict_proba(table)[:, 1] for fitted in self.regressions])
        return by_fold[reviews % FOLDS, np.arange(len(passages))]
