"""Passages of reviews for pre-training: sentences, phrases and longer stretches, as arrays of token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from authoring.pocket.pieces import UNK, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORT = 62  # tokens: passages up to this length are sentences
# an auxiliary verb -> its form without the "n't" (the pieces of "isn't" are "isn", "'" and "t")
WITHOUT_NOT = {
    "isn": "is", "wasn": "was", "aren": "are", "weren": "were", "don": "do", "doesn": "does", "didn": "did",
    "hasn": "has", "haven": "have", "hadn": "had", "couldn": "could", "wouldn": "would", "shouldn": "should",
    "can": "can", "won": "will",
}  # fmt: skip
TAKES_NOT = tuple(WITHOUT_NOT.values())
NEGATIONS = ("not", "never", "no", "nothing", "without", "hardly", "neither", "nor", "t")
CONTRASTS = ("but", "although", "though", "however", "despite", "yet", "while", "except", "rather", "unfortunately")


class Passages:
    """Draws passages from reviews. ``rows``: the reviews as arrays of token ids, ``labels``: 0 or 1 for each.

    Every draw comes from the generator it is given, so that the same generator draws the same passages.
    """

    def __init__(self, rows: list[np.ndarray], labels: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
        self.rows, self.labels = rows, labels
        size = len(tokenizer)
        self.marks = {name: np.zeros(size, dtype=bool) for name in ("end", "break", "turn")}
        for name, pieces in (
            ("end", (".", "!", "?")),
            ("break", (".", "!", "?", ",", ";", ":", "(", ")", "-", "and", "but")),
            ("turn", (*NEGATIONS, *CONTRASTS)),
        ):
            self.marks[name][self._ids(tokenizer, pieces)] = True
        self.starts = [np.append(0, np.flatnonzero(self.marks["end"][row[:-1]]) + 1) for row in rows]
        self.apostrophe, self.t, self.no_t = self._ids(tokenizer, ("'", "t", "not"))
        ids = tokenizer.convert_tokens_to_ids
        pairs = [(ids(name_of(short)), ids(name_of(whole))) for short, whole in WITHOUT_NOT.items()]
        self.plain_of = {short: whole for short, whole in pairs if UNK not in (short, whole)}
        self.takes_not = np.zeros(size, dtype=bool)
        self.takes_not[self._ids(tokenizer, TAKES_NOT)] = True
        names = tokenizer.convert_ids_to_tokens(range(size))
        self.is_word = np.array([name[0] == "▁" and name[1:].isalpha() and len(name) > 3 for name in names])
        self.words = np.flatnonzero(self.is_word)

    @staticmethod
    def _ids(tokenizer, pieces):
        return [i for i in tokenizer.convert_tokens_to_ids([name_of(piece) for piece in pieces]) if i != UNK]

    def review(self, rng: np.random.Generator) -> int:
        """The number of a review, each as likely as any other."""
        return int(rng.integers(len(self.rows)))

    def sentence(self, rng: np.random.Generator, review: int) -> np.ndarray:
        """One sentence of a review (60 %) or two; cut after ``SHORT`` tokens."""
        row, starts = self.rows[review], self.starts[review]
        at = int(rng.integers(len(starts)))
        until = at + 1 + int(rng.random() < 0.4)
        end = starts[until] if until < len(starts) else len(row)
        if end - starts[at] < 4:  # "Why?" alone says nothing: the sentence after it too
            end = starts[until + 1] if until + 1 < len(starts) else len(row)
        return row[starts[at] : min(end, starts[at] + SHORT)]

    def turning_sentence(self, rng: np.random.Generator, review: int) -> np.ndarray:
        """A sentence that holds a negation or a contrast, if ten draws find one."""
        for _ in range(10):
            tokens = self.sentence(rng, review)
            if self.marks["turn"][tokens].any():
                break
            review = self.review(rng)
        return tokens

    def phrase(self, rng: np.random.Generator, review: int) -> np.ndarray:
        """A stretch between two breaks (punctuation, "and", "but") of a sentence, of three tokens or more."""
        tokens = self.sentence(rng, review)
        breaks = np.flatnonzero(self.marks["break"][tokens])
        edges = np.concatenate([[0], breaks + 1, [len(tokens) + 1]])
        long = np.flatnonzero(np.diff(edges) >= 4)
        if not len(long):
            return tokens
        which = rng.choice(long)
        return tokens[edges[which] : edges[which + 1] - 1]

    def stretch(self, rng: np.random.Generator, review: int, length: int) -> np.ndarray:
        """``length`` tokens from the end (35 %), the beginning (30 %) or any sentence (35 %) of a review."""
        row, starts = self.rows[review], self.starts[review]
        if len(row) <= length:
            return row
        place, last = rng.random(), len(row) - length
        if place < 0.3:
            return row[:length]
        if place < 0.65:
            return row[last:]
        start = int(rng.choice(starts[starts <= max(last, 0)]))
        return row[start : start + length]

    def negated(self, rng: np.random.Generator, tokens: np.ndarray) -> np.ndarray:
        """The tokens with one negation taken out ("isn't" -> "is", "not" -> "") or, where none is, one put in."""
        out = [
            at
            for at in range(len(tokens) - 2)
            if tokens[at] in self.plain_of and tokens[at + 1] == self.apostrophe and tokens[at + 2] == self.t
        ]
        if out:
            at = out[int(rng.integers(len(out)))]
            return np.concatenate([tokens[:at], [self.plain_of[int(tokens[at])]], tokens[at + 3 :]]).astype(np.int32)
        nots = np.flatnonzero(tokens == self.no_t)
        if len(nots):
            at = int(rng.choice(nots))
            return np.delete(tokens, at)
        places = np.flatnonzero(self.takes_not[tokens])
        if not len(places):
            return tokens
        return np.insert(tokens, int(rng.choice(places)) + 1, self.no_t)

    def reworded(self, rng: np.random.Generator, tokens: np.ndarray) -> np.ndarray:
        """The tokens with about a seventh of their whole words replaced by any words of the vocabulary."""
        swap = self.is_word[tokens] & (rng.random(len(tokens)) < 1 / 7)
        return np.where(swap, rng.choice(self.words, len(tokens)), tokens).astype(np.int32)
