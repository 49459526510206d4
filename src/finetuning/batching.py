"""Token ids in batches: padding, grouping by length, packing."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetuning.errors import CourseError


def length_sorted_batches(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows in batches of similar length, the longest first so that a memory limit shows at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: str, max_length: int
) -> list[list[int]]:
    """The token ids of each prompted text, cut at ``max_length`` tokens, end token included."""
    return tokenizer([prompt.format(text=text) for text in texts], truncation=True, max_length=max_length)["input_ids"]


def padded(
    rows: Sequence[Sequence[int] | np.ndarray], length: int | None = None, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Input ids and attention mask, (reviews, tokens): padded with 0 to ``length``, else to the next multiple of 8."""
    length = length or -(-max(map(len, rows)) // 8) * 8
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return ids.to(device), mask.long().to(device)


def token_lengths(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, prompt: str) -> np.ndarray:
    """Tokens per prompted review, end token included, as an integer array of shape (reviews,)."""
    ids = tokenizer([prompt.format(text=text) for text in texts], verbose=False)["input_ids"]
    return np.array(list(map(len, ids)))


def truncation_loss(lengths: np.ndarray, limits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each of the ``limits`` the share of reviews that are cut and of tokens that are lost: arrays (limits,)."""
    cut = np.array([(lengths > limit).mean() for limit in limits])
    lost = np.array([np.maximum(lengths - limit, 0).sum() / lengths.sum() for limit in limits])
    return cut, lost


def epoch_batches(lengths: Sequence[int] | np.ndarray, batch_size: int, grouped: bool, seed: int) -> list[np.ndarray]:
    """The batches of one epoch in random order, as arrays of rows.

    Drawn at random, or ``grouped``: of similar length, sorted within blocks of 50 batches as by ``group_by_length`` of
    the Trainer (which, unlike this, then takes the batches of a block from long to short).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    if not grouped:
        return np.split(order, range(batch_size, len(order), batch_size))
    batches = []
    for block in np.split(order, range(50 * batch_size, len(order), 50 * batch_size)):
        batches += [block[rows] for rows in length_sorted_batches(np.asarray(lengths)[block], batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def padded_tokens(lengths: np.ndarray, batch_size: int, strategy: str, *, max_length: int = 512, seed: int = 1) -> int:
    """Tokens that the model computes over in one epoch, padding included.

    ``strategy`` is ``"to max_length"`` (every review as long as the limit), ``"to longest"`` (each random batch as long
    as its longest review) or ``"grouped"`` (the batches of similar length of ``epoch_batches``). Lengths over
    ``max_length`` are cut first.
    """
    lengths = np.minimum(lengths, max_length)
    if strategy == "to max_length":
        return len(lengths) * max_length
    if strategy not in ("to longest", "grouped"):
        raise CourseError(f"There is no padding strategy {strategy!r}; choose to max_length, to longest or grouped.")
    batches = epoch_batches(lengths, batch_size, strategy == "grouped", seed)
    return int(sum(len(batch) * lengths[batch].max() for batch in batches))


def token_batches(lengths: Sequence[int] | np.ndarray, tokens: int) -> list[np.ndarray]:
    """Rows from long to short, in batches of at most so many tokens (a longer review makes one of its own)."""
    batches: list[list[int]] = [[]]
    room = tokens
    for row in np.argsort(-np.asarray(lengths), kind="stable"):
        if batches[-1] and lengths[row] > room:
            batches.append([])
            room = tokens
        batches[-1].append(int(row))
        room -= lengths[row]
    return [np.array(batch) for batch in batches]
