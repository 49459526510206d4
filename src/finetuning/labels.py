"""Labels as words, and the words' scores: in one decoder step, or in a pass for each. Used from lesson 01 on."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetuning.batching import padded, token_batches, token_rows
from finetuning.errors import CourseError
from finetuning.reviews import LABEL_WORDS

Rows = Sequence[Sequence[int]]  # token ids of each review or word, end token included
# Tokens scored at a time, on a processor and on a GPU: the one is fastest where its cache still holds a batch.
CPU_TOKENS, GPU_TOKENS = 2048, 32768
Answer = Callable[[Rows], Tensor]  # a score of each label word for each review, (reviews, words): softmax is to follow


def label_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str] = LABEL_WORDS) -> list[list[int]]:
    """The token ids of each label word, end token included. Raises CourseError where two words have the same."""
    rows: list[list[int]] = tokenizer(list(words))["input_ids"]
    for i, row in enumerate(rows):
        if row in rows[:i]:
            same = f"To this tokenizer the label words {words[rows.index(row)]!r} and {words[i]!r} are the same tokens"
            raise CourseError(f"{same}; give one another name (LABELS=old=new,...), or choose a T5 that knows both.")
    return rows


def label_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str] = LABEL_WORDS) -> list[int]:
    """The id of each label word's first token, in the order of the labels."""
    return [row[0] for row in label_tokens(tokenizer, words)]


def by_one_step(model: PreTrainedModel, words: Sequence[int], limit: int | None = None) -> Answer:
    """A function from token ids to the logits of ``words`` in the first decoder step, shape (reviews, words).

    One step replaces ``generate`` where the first token tells the label words apart. ``words``: as ``label_ids`` gives
    them. A batch is padded to ``limit`` tokens, or to its longest review.
    """

    def answer(rows: Rows) -> Tensor:
        ids, mask = padded(rows, limit, device=model.device)
        start = torch.full((len(rows), 1), model.config.decoder_start_token_id, device=model.device)
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[:, 0, list(words)]

    return answer


def by_whole_words(model: PreTrainedModel, words: Rows) -> Answer:
    """A function from token ids to the log-probability of each word (``label_tokens``), shape (reviews, words).

    One pass of the decoder for each word, which reads the word's own tokens (teacher forcing); the encoder reads a
    review once. The tokens' log-probabilities are summed, as the word's probability is the product of theirs.
    """

    def answer(rows: Rows) -> Tensor:
        ids, mask = padded(rows, device=model.device)
        read = model.get_encoder()(input_ids=ids, attention_mask=mask)
        scores = []
        for word in words:
            wanted = torch.tensor([word], device=model.device).expand(len(rows), -1)
            given = model.prepare_decoder_input_ids_from_labels(wanted)
            logits = model(encoder_outputs=read, attention_mask=mask, decoder_input_ids=given).logits.float()
            scores.append(logits.log_softmax(-1).gather(-1, wanted[..., None]).sum((1, 2)))
        return torch.stack(scores, 1)

    return answer


def begin_apart(words: Collection[Sequence[int]]) -> bool:
    """Whether the first token tells the words (``label_tokens``) apart."""
    return len({word[0] for word in words}) == len(words)


def by_words(model: PreTrainedModel, words: Rows) -> Answer:
    """``by_one_step`` where the first token tells the words apart, else ``by_whole_words``."""
    return by_one_step(model, [word[0] for word in words]) if begin_apart(words) else by_whole_words(model, words)


def probabilities(answer: Answer, rows: Rows, batches: Iterable[np.ndarray], words: int) -> np.ndarray:
    """The probability of each of so many label words for each review, (reviews, words), scored in these ``batches``."""
    found = np.zeros((len(rows), words))
    with torch.inference_mode():
        for batch in batches:
            found[batch] = answer([rows[i] for i in batch]).float().softmax(-1).cpu().numpy()
    return found


def score_labels(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: str, max_length: int,
    words: Sequence[str] = LABEL_WORDS,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """The probability of each label word as the answer.

    Returns a float array of shape (reviews, words), rows summing to one over the words, and the reviews scored per
    second.
    """
    answer = by_words(model, label_tokens(tokenizer, words))
    began = time.perf_counter()
    rows = token_rows(tokenizer, texts, prompt=prompt, max_length=max_length)
    at_once = CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS
    model.eval()
    scores = probabilities(answer, rows, token_batches([len(row) for row in rows], at_once), len(words))
    return scores, len(rows) / (time.perf_counter() - began)
