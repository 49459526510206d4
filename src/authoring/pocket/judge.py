"""The judge of pocket T5's pre-training: all-MiniLM-L6-v2, fine-tuned to tell good from bad on IMDb's training half.

MiniLM (Wang et al. 2020; as all-MiniLM-L6-v2 trained on by the Sentence Transformers project, Apache-2.0) has 6 layers,
384 wide, and has read books, Wikipedia and a billion pairs of sentences. Fine-tuned with the labels of reviews, it
judges any passage: the small model learns from its logits and from its hidden states (distillation: Hinton et al. 2015;
Jiao et al. 2020).

A review's label is a poor label for one of its sentences. So from a quarter of the training on, short passages are
learned with the generalized cross-entropy of Zhang and Sabuncu (2018), which weighs a passage by how far judge and
label agree on it already.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from authoring.pocket import pieces
from authoring.pocket.passages import SHORT, Passages
from authoring.pocket.pieces import EOS, PAD, judge_rows
from finetuning.batching import length_sorted_batches, padded

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

# tokens of a passage, at most -> share of the batches
LENGTHS = {SHORT: 0.55, 126: 0.2, 254: 0.15, 508: 0.1}
TOKENS_PER_BATCH = 3072
RATE = 1e-4
WARM_UP = 100  # steps
TRUST_FROM = 0.25  # of the training: from here on short passages are weighed by agreement
TRUST = 0.7  # q of Zhang and Sabuncu (2018); 0 is cross-entropy
AVERAGED = 0.2  # of the training, at its end: the weights are averaged over it
SAVE_EVERY, SAY_EVERY = 200, 100  # steps


def build_judge(tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """MiniLM over the tokenizer's pieces with one output.

    ``judge(ids)`` -> hidden states (rows, length, 384), logits (rows,). ``ids`` are those of ``tokenizer`` between the
    judge's own first and last token: see ``framed``.
    """
    import torch
    from transformers import AutoModel

    class Judge(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = AutoModel.from_pretrained(
                pieces.judge_folder(), add_pooling_layer=False, dtype=torch.float32
            )
            words = self.encoder.embeddings.word_embeddings.weight.detach()
            kept = words[torch.from_numpy(judge_rows(tokenizer))]
            self.encoder.embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(kept, freeze=False)
            self.output = torch.nn.Linear(kept.shape[1], 1)
            for module in self.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
                if isinstance(getattr(module, "dropout_prob", None), float):
                    module.dropout_prob = 0.0

        def forward(self, ids):
            mask = ids != PAD
            hidden = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            real = mask[..., None].to(hidden.dtype)
            return hidden, self.output((hidden * real).sum(1) / real.sum(1))[:, 0]

    return Judge()


def framed(texts: list[np.ndarray], first: int) -> list[np.ndarray]:
    """Passages as the judge reads them: ``first``, the tokens, the end."""
    return [np.concatenate([[first], text, [EOS]]) for text in texts]


def in_one_batch(rows: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Rows of token ids as one tensor, padded to the longest; shape (rows, longest)."""
    return padded(rows, max(map(len, rows)))[0]


def keep(content: dict[str, Any], path: Path) -> None:
    """Save what a later start goes on from; a file is whole or not there."""
    import torch

    torch.save(content, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def labelled_passages(passages: Passages, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """A batch of passages of about the same length and the labels of their reviews."""
    length = int(rng.choice(list(LENGTHS), p=list(LENGTHS.values())))
    reviews = [passages.review(rng) for _ in range(6 * TOKENS_PER_BATCH // length)]
    if length == SHORT:
        texts = [passages.sentence(rng, review) for review in reviews]
    else:
        texts = [passages.stretch(rng, review, int(rng.integers(length // 2, length + 1))) for review in reviews]
    chosen = one_length(rng, texts, TOKENS_PER_BATCH)
    return [texts[i] for i in chosen], passages.labels[reviews][chosen]


def one_length(rng: np.random.Generator, texts: list[np.ndarray], tokens: int) -> np.ndarray:
    """Rows of neighbours in length, as many as fit into ``tokens`` with their padding: a batch of ``texts``."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    batches = []
    while len(order):
        count = max(1, tokens // (len(texts[order[-1]]) + 2))
        batches.append(order[-count:])
        order = order[:-count]
    if len(batches) > 1 and len(batches[-1]) < len(batches[-2]):  # the shortest do not fill a batch
        batches[-2] = np.concatenate([batches.pop(), batches[-1]])
    return batches[int(rng.integers(len(batches)))]


def agreement_loss(logits: Tensor, labels: Tensor, trust: float) -> Tensor:
    """Generalized cross-entropy (Zhang and Sabuncu 2018, equation 6): (1 - p^q) / q, p the probability of the label.

    ``trust`` is q: at 0 it is the cross-entropy, at 1 a passage counts as much as its label is believed already.
    """
    import torch

    log_p = torch.nn.functional.logsigmoid(logits * (2 * labels - 1))
    return (-log_p).mean() if trust == 0 else ((1 - (trust * log_p).exp()) / trust).mean()


def train_judge(
    passages: Passages, held: Passages, tokenizer: PreTrainedTokenizerBase, work: Path, *, steps: int, seed: int
) -> nn.Module:
    """The judge after ``steps`` steps; finished or unfinished work in ``work`` is gone on with."""
    import torch

    torch.manual_seed(seed)
    judge = build_judge(tokenizer)
    finished, state = work / "judge.pt", work / "judge_state.pt"
    if finished.exists():
        judge.load_state_dict(torch.load(finished, weights_only=True))
        return judge.eval()
    parameters = list(judge.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, fused=True)
    mean = [torch.zeros_like(p) for p in parameters]
    step, averaged, spent = 0, 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        judge.load_state_dict(saved["judge"])
        optimizer.load_state_dict(saved["optimizer"])
        mean, step, averaged, spent = saved["mean"], saved["step"], saved["averaged"], saved["seconds"]
    first, losses, began = len(tokenizer) - 1, [], time.monotonic() - spent
    while step < steps:
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * max(0.1, 1 - progress)
        texts, labels = labelled_passages(passages, np.random.default_rng((seed, step, 2)))
        _, logits = judge(in_one_batch(framed(texts, first)))
        short = max(map(len, texts)) <= SHORT
        loss = agreement_loss(logits, torch.from_numpy(labels), TRUST if short and progress >= TRUST_FROM else 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        step += 1
        if progress >= 1 - AVERAGED:
            averaged += 1
            for total, p in zip(mean, parameters, strict=True):
                total += (p.detach() - total) / averaged
        if step % SAY_EVERY == 0:
            spent = time.monotonic() - began
            print(f"judge: step {step:,} of {steps:,}  {spent / 60:.1f} min  loss {np.mean(losses):.3f}", flush=True)
            losses = []
        if step % SAVE_EVERY == 0:
            kept = {"judge": judge.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean, "step": step,
                    "averaged": averaged, "seconds": time.monotonic() - began}  # fmt: skip
            keep(kept, state)
    with torch.no_grad():
        for p, average in zip(parameters, mean, strict=True):
            p.copy_(average)
    judge.eval()
    texts = [row[-508:] for row in held.rows]
    right = ((judge_logits(judge, texts) > 0) == held.labels).mean()
    print(f"judge: right on {right:.3f} of {len(texts):,} held-out training reviews", flush=True)
    keep(judge.state_dict(), finished)
    return judge


def judge_logits(judge: nn.Module, texts: list[np.ndarray], batch: int = 16) -> np.ndarray:
    """The judge's logits of passages (arrays of token ids): an array of shape (texts,), positive for praise."""
    import torch

    first = judge.encoder.embeddings.word_embeddings.num_embeddings - 1
    logits = np.zeros(len(texts), dtype=np.float32)
    with torch.inference_mode():
        for rows in length_sorted_batches([len(text) for text in texts], batch):
            logits[rows] = judge(in_one_batch(framed([texts[i] for i in rows], first)))[1].numpy()
    return logits
