"""A teacher for the pre-training of pocket T5: what a linear model on words makes of a passage.

The label of a review is a poor label for three sentences of it. A logistic regression over words and word pairs, fitted
on whole reviews, gives each passage a probability of its own, and the small model learns from a mixture of the two
(distillation: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"). No review is judged by a regression
that has seen it: each is judged by the one fitted on the other folds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from transformers import PreTrainedTokenizerBase

FOLDS = 4
BUCKETS = 2**21  # for the words, and as many for the pairs; far more than there are
RARE = 3  # words and pairs that stand in fewer reviews are left out


class Teacher:
    """Out-of-fold logistic regressions over words and word pairs (tf-idf, each once per passage).

    ``rows`` are reviews as arrays of token ids, ``labels`` their labels (0 negative, 1 positive).
    """

    def __init__(self, rows: list[np.ndarray], labels: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
        from sklearn.linear_model import LogisticRegression

        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.begins = np.array([piece.startswith("▁") or (len(piece) == 1 and not piece.isalnum()) for piece in pieces])
        features = [self._features(row) for row in rows]
        counts = np.bincount(np.concatenate(features), minlength=2 * BUCKETS)
        self.weight = np.where(counts >= RARE, np.log(len(rows) / (1 + counts)) + 1, 0).astype(np.float32)
        table = self._table(features)
        fold = np.arange(len(rows)) % FOLDS
        self.coefficients, self.intercepts = [], []
        for left_out in range(FOLDS):
            fitted = LogisticRegression(C=10, max_iter=200).fit(table[fold != left_out], labels[fold != left_out])
            self.coefficients.append(fitted.coef_[0].astype(np.float32))
            self.intercepts.append(float(fitted.intercept_[0]))

    def _features(self, row):
        """The words and pairs of a passage as sorted unique numbers; a word is hashed from its pieces."""
        ids = np.asarray(row, dtype=np.uint64)
        word = np.cumsum(self.begins[row])
        word -= word[0]
        first = np.flatnonzero(np.diff(word, prepend=-1))
        place = (np.arange(len(ids)) - first[word]).astype(np.uint64)
        mixed = (ids + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) * (2 * place + np.uint64(1))
        words = np.add.reduceat(mixed, first)
        words ^= words >> np.uint64(29)
        pairs = words[:-1] * np.uint64(3) + words[1:] * np.uint64(0xBF58476D1CE4E5B9)
        pairs ^= pairs >> np.uint64(31)
        return np.unique(np.concatenate([words % BUCKETS, pairs % BUCKETS + BUCKETS]).astype(np.int64))

    def _table(self, features) -> csr_matrix:
        from scipy.sparse import csr_matrix

        ends = np.cumsum([0, *map(len, features)])
        values = self.weight[np.concatenate(features)]
        lengths = np.sqrt(np.add.reduceat(values**2, ends[:-1]))
        values /= np.repeat(np.maximum(lengths, 1e-6), np.diff(ends))
        return csr_matrix((values, np.concatenate(features), ends), shape=(len(features), 2 * BUCKETS))

    def probability(self, passage: np.ndarray, review: int) -> float:
        """How probably the passage (token ids) belongs to a positive review, by the regression that has not seen ``review``."""
        found = self._features(passage)
        weight = self.weight[found]
        length = max(float(np.sqrt((weight**2).sum())), 1e-6)
        fold = review % FOLDS
        logit = float(self.coefficients[fold][found] @ weight) / length + self.intercepts[fold]
        return 1 / (1 + np.exp(-logit))
