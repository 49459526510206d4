"""The tasks of pocket T5's pre-training: what a batch of each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from authoring.pocket.judge import framed, in_one_batch, one_length
from authoring.pocket.passages import SHORT, Passages
from authoring.pocket.pieces import EOS

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

LABEL_WORDS = ("negative", "positive")
# tokens of a passage, at most -> share of the sentiment batches
LENGTHS = {SHORT: 0.5, 126: 0.25, 254: 0.13, 507: 0.12}
TOKENS_PER_BATCH = 3072
# The judge's logits are divided by it: it is sure of most passages, and how sure says more than its verdict.
TEMPERATURE = 2.0
SPAN_LENGTHS = (16, 32, 64, 128)  # tokens of the passages with gaps, each as often as the others
SPAN_TOKENS = 1024


@dataclass
class Judged:
    """A batch for the sentiment task: passages between the prefix and the end, and what the judge makes of them.

    ``ids`` (rows, length) token ids; ``hidden`` (rows, passage, 384) the judge's hidden states of the passage's tokens;
    ``share`` (rows,) the judge's probability of praise, softened.
    """

    ids: Tensor
    hidden: Tensor
    share: Tensor


class Tasks:
    """Draws the batches of all tasks; a batch is the same in every run with the same seed and number."""

    def __init__(self, passages: Passages, tokenizer: PreTrainedTokenizerBase, judge: nn.Module, seed: int) -> None:
        self.passages, self.judge, self.seed = passages, judge, seed
        self.first = len(tokenizer) - 1  # the judge's first token
        self.long = np.array([i for i, row in enumerate(passages.rows) if len(row) >= 150])
        self.answers = tokenizer.convert_tokens_to_ids(["▁" + word for word in LABEL_WORDS])
        self.yes_no = tokenizer.convert_tokens_to_ids(["▁no", "▁yes"])
        self.sentiment, self.follows = (
            tokenizer(prefix, add_special_tokens=False)["input_ids"] for prefix in ("sentiment:", "follows:")
        )
        self.first_sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")

    def draw(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """A passage of at most ``length`` tokens; short ones are sentences and phrases.

        A third of the short ones are drawn until they hold a negation or a contrast, and three in ten are changed by
        rule: a negation put in or taken out, or some words swapped for others.
        """
        p, review = self.passages, self.passages.review(rng)
        if length > SHORT:
            return p.stretch(rng, review, int(rng.integers(length // 2, length + 1)))
        kind = rng.random()
        if kind < 0.4:
            tokens = p.sentence(rng, review)
        elif kind < 0.75:
            tokens = p.turning_sentence(rng, review)
        else:
            tokens = p.phrase(rng, review)
        change = rng.random()
        if change < 0.15:
            tokens = p.negated(rng, tokens)
        elif change < 0.3:
            tokens = p.reworded(rng, tokens)
        return tokens

    def texts(self, number: int, longest: int = max(LENGTHS)) -> list[np.ndarray]:
        """The passages of batch ``number`` of the sentiment task: about equally long, of ``longest`` tokens at most."""
        rng = np.random.default_rng((self.seed, abs(number), 0 if number >= 0 else 5))
        length = min(longest, int(rng.choice(list(LENGTHS), p=list(LENGTHS.values()))))
        texts = [self.draw(rng, length) for _ in range(6 * TOKENS_PER_BATCH // length)]
        return [texts[i] for i in one_length(rng, texts, TOKENS_PER_BATCH)]

    def judged(self, number: int) -> Judged:
        """Batch ``number`` of the sentiment task."""
        import torch

        texts = self.texts(number)
        with torch.inference_mode():
            hidden, logits = self.judge(in_one_batch(framed(texts, self.first)))
        passages = hidden[:, 1:-1]  # without the judge's first and last token
        return Judged(in_one_batch(self.asked(texts)), passages, (logits / TEMPERATURE).sigmoid())

    def asked(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        """Passages as the small model reads them: the prefix of the sentiment task, the tokens, the end."""
        return [np.concatenate([self.sentiment, text, [EOS]]) for text in texts]

    def two_passages(self, number: int) -> tuple[Tensor, Tensor]:
        """The task ``follows:``: input ids (rows, length) and target ids (rows, 2)."""
        rng = np.random.default_rng((self.seed, number, 3))
        half = int(rng.choice([24, 48]))
        inputs, targets = [], []
        for _ in range(SPAN_TOKENS // (2 * half)):
            a, b, follows = self._pair(rng, half)
            inputs.append(np.concatenate([self.follows, a, [EOS], b, [EOS]]))
            targets.append([self.yes_no[follows], EOS])
        return in_one_batch(inputs), in_one_batch(targets)

    def _pair(self, rng, half):
        row = self.passages.rows[rng.choice(self.long)]
        start = rng.integers(len(row) - 2 * half + 1)
        a = row[start : start + half]
        follows = int(rng.random() < 0.5)
        if follows:
            return a, row[start + half : start + 2 * half], follows
        other = self.passages.rows[rng.choice(self.long)]
        start = rng.integers(len(other) - half + 1)
        return a, other[start : start + half], follows

    def corrupted(self, number: int) -> tuple[Tensor, Tensor]:
        """Span corruption: inputs with sentinels for the dropped spans, targets with the spans after theirs."""
        rng = np.random.default_rng((self.seed, number, 1))
        length = int(rng.choice(SPAN_LENGTHS))
        noise = max(2, round(length * 0.15))
        spans = max(1, round(noise / 3))
        sources, targets = [], []
        for _ in range(SPAN_TOKENS // length):
            row = self.passages.rows[rng.choice(self.long)]
            start = rng.integers(len(row) - length + 1)
            source, target = corrupt_spans(row[start : start + length], noise, spans, self.first_sentinel, rng)
            sources.append(source)
            targets.append(target)
        return in_one_batch(sources), in_one_batch(targets)


def corrupt_spans(
    tokens: list[int], noise: int, spans: int, first_sentinel: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """T5's span corruption of one passage (Raffel et al. 2020, section 3.1.4).

    ``noise`` tokens in ``spans`` spans are dropped from ``tokens``; each span leaves one sentinel (ids counting down
    from ``first_sentinel``). Returns the input (ending in </s>) and the target (each sentinel followed by its span, a
    final sentinel, </s>).
    """

    def parts(total, count):
        cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
        return np.diff(np.concatenate([[0], cuts, [total]]))

    kept, dropped = parts(len(tokens) - noise, spans), parts(noise, spans)
    source, target, at = [], [], 0
    for i in range(spans):
        source += [*tokens[at : at + kept[i]], first_sentinel - i]
        at += kept[i]
        target += [first_sentinel - i, *tokens[at : at + dropped[i]]]
        at += dropped[i]
    return [*source, EOS], [*target, first_sentinel - spans, EOS]
