"""Labels as words, and the words' scores in one decoder step. Used from lesson 01 on."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetuning.batching import padded, token_batches, token_rows
from finetuning.errors import CourseError

Rows = Sequence[Sequence[int]]  # token ids of each review, end token included
Answer = Callable[[Rows], Tensor]  # the logits of the two label words of each, (reviews, 2)
LABEL_WORDS = ("negative", "positive")  # label 0, label 1
# Tokens scored at a time, on a processor and on a GPU: the one is fastest where its cache still holds a batch.
CPU_TOKENS, GPU_TOKENS = 2048, 32768


def label_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of the two label words, in the order of the labels. Raises CourseError unless each is one token."""
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in LABEL_WORDS]
    if any(len(tokens) != 1 for tokens in ids):
        cut = f"This tokenizer cuts the label words into several tokens ({dict(zip(LABEL_WORDS, ids, strict=True))})"
        way = "one-step scoring needs one token each: choose a T5 whose vocabulary holds both words."
        raise CourseError(f"{cut}; {way}")
    return [tokens[0] for tokens in ids]


def by_one_step(model: PreTrainedModel, words: Sequence[int], limit: int | None = None) -> Answer:
    """A function from token ids to the two label words' logits in the first decoder step, shape (reviews, 2).

    One step replaces ``generate``: the answer is one token long, so its logits are all there is to know. ``words``:
    as ``label_ids`` gives them. A batch is padded to ``limit`` tokens, or to its longest review.
    """

    def answer(rows: Rows) -> Tensor:
        ids, mask = padded(rows, limit, device=model.device)
        start = torch.full((len(rows), 1), model.config.decoder_start_token_id, device=model.device)
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[:, 0, list(words)]

    return answer


def score_labels(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: str, max_length: int
) -> tuple[np.ndarray, float]:
    """The probability of each label word as the first word of the answer.

    Returns a float array of shape (reviews, 2), rows summing to one over the two words, and the reviews scored per
    second.
    """
    answer = by_one_step(model, label_ids(tokenizer))
    began = time.perf_counter()
    rows = token_rows(tokenizer, texts, prompt=prompt, max_length=max_length)
    probabilities = np.zeros((len(rows), 2))
    at_once = CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS
    model.eval()
    with torch.inference_mode():
        for batch in token_batches([len(row) for row in rows], at_once):
            probabilities[batch] = answer([rows[i] for i in batch]).float().softmax(-1).cpu().numpy()
    return probabilities, len(rows) / (time.perf_counter() - began)
