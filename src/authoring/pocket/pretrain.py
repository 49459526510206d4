"""Pre-train pocket T5, the small model that ships with the course: ``python -m authoring pretrain``.

The recipe is T5's (Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer"): span corruption on unlabelled text (their section 3.1.4: 15 % of the tokens, spans of 3 tokens on average)
mixed with supervised tasks in text-to-text form. The only text it reads is the training half of IMDb, less every
review that also stands in the test half.

The tasks, each with its prefix:

- no prefix: span corruption;
- ``sentiment:`` a passage of a review -> ``positive`` or ``negative``;
- ``follows:`` two passages -> ``yes`` when the second comes right after the first in one review, else ``no``.

What a passage says is told by a judge (``authoring.pocket.judge``), a larger model that has read far more: the label words follow its
logit, and the encoder's outputs follow its hidden states token by token (Jiao et al. 2020, "TinyBERT"). The embeddings start
from the judge's word vectors, reduced to the width of the small model.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from authoring.pocket.judge import framed, one_length, train_judge
from authoring.pocket.passages import SHORT, Passages
from authoring.pocket.pieces import EOS, PAD, SENTINELS, WHOLE_WORDS, build_tokenizer, choose_pieces

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LABEL_WORDS = ("negative", "positive")
HELD_OUT = 1000  # training reviews kept aside to watch progress
JUDGE_STEPS = 2000
RATE, MUON_RATE = 1e-3, 0.005  # peaks: of AdamW for embeddings, norms and biases, of Muon for the layers' matrices
WARM_UP = 200  # steps
ROUND = 64  # batches that are judged together
USES = 3  # how often each of them is learned from, in another order each time
SAVE_EVERY = 2  # rounds

SHAPE: dict[str, Any] = {
    "d_model": 256,
    "d_kv": 64,
    "num_heads": 4,
    "d_ff": 768,
    "num_layers": 4,
    "num_decoder_layers": 1,
    "feed_forward_proj": "relu",
    "dropout_rate": 0.1,
}
# tokens of a passage, at most -> share of the sentiment batches
LENGTHS = {SHORT: 0.5, 126: 0.25, 254: 0.13, 507: 0.12}
TOKENS_PER_BATCH = 3072
TEMPERATURE = (
    2.0  # the judge's logits are divided by it: it is sure of most passages, and how sure says more than its verdict
)
HIDDEN_WEIGHT = 2.0  # of the distance to the judge's hidden states, beside the loss of the label words
SPANS_EVERY, FOLLOWS_EVERY = 4, 8  # steps
SPAN_LENGTHS = (16, 32, 64, 128)  # tokens of the passages with gaps, each as often as the others
SPAN_TOKENS = 1024


def training_reviews(source: str) -> tuple[list[str], np.ndarray]:
    """The pre-training text: IMDb's training reviews that do not also stand in its test half.

    ``source`` is a folder with ``train.parquet`` and ``test.parquet`` (columns ``text`` and ``label``) or the Hub id
    ``stanfordnlp/imdb``. Returns cleaned texts and labels (0 negative, 1 positive). The test texts are read for one
    purpose: to leave out the reviews that stand in both halves.
    """
    from finetuning.data import clean_text, read_split

    train, test = read_split(source, "train"), read_split(source, "test")
    seen = {clean_text(text).lower() for text in test["text"]}
    texts, labels = [], []
    for text, label in zip(train["text"], train["label"], strict=True):
        text = clean_text(text)
        if text.lower() not in seen:
            texts.append(text)
            labels.append(int(label))
            seen.add(text.lower())
    return texts, np.array(labels)


@dataclass
class Judged:
    """A batch for the sentiment task: passages between the prefix and the end, and what the judge makes of them.

    ``ids`` (rows, length) token ids; ``hidden`` (rows, passage, 384) the judge's hidden states of the passage's tokens; ``share``
    (rows,) the judge's probability of praise, softened.
    """

    ids: np.ndarray
    hidden: np.ndarray
    share: np.ndarray


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
        """A passage of at most ``length`` tokens; short ones are sentences and phrases, many of them with a negation or a contrast.

        A fifth of the short ones are changed by rule: a negation put in or taken out, or some words swapped for others.
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

    def judged(self, number: int) -> Judged:
        """Batch ``number`` of the sentiment task."""
        import torch

        rng = np.random.default_rng((self.seed, number, 0))
        length = int(rng.choice(list(LENGTHS), p=list(LENGTHS.values())))
        texts = [self.draw(rng, length) for _ in range(6 * TOKENS_PER_BATCH // length)]
        texts = [texts[i] for i in one_length(rng, texts, TOKENS_PER_BATCH)]
        with torch.inference_mode():
            hidden, logits = self.judge(torch.from_numpy(framed(texts, self.first)))
        width = max(map(len, texts))
        ids = np.full((len(texts), len(self.sentiment) + width + 1), PAD, dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            whole = np.concatenate([self.sentiment, text, [EOS]])
            row[: len(whole)] = whole
        return Judged(ids, hidden[:, 1 : width + 1].numpy(), (logits / TEMPERATURE).sigmoid().numpy())

    def two_passages(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The task ``follows:``: input ids (rows, length) and target ids (rows, 2)."""
        rng = np.random.default_rng((self.seed, number, 3))
        half = int(rng.choice([24, 48]))
        inputs, targets = [], []
        for _ in range(SPAN_TOKENS // (2 * half)):
            a, b, follows = self._pair(rng, half)
            inputs.append(np.concatenate([self.follows, a, [EOS], b, [EOS]]))
            targets.append([self.yes_no[follows], EOS])
        ids = np.full((len(inputs), max(map(len, inputs))), PAD, dtype=np.int64)
        for row, whole in zip(ids, inputs, strict=True):
            row[: len(whole)] = whole
        return ids, np.array(targets)

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

    def corrupted(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Span corruption: inputs with sentinels for the dropped spans, targets with the spans after their sentinels."""
        rng = np.random.default_rng((self.seed, number, 1))
        length = int(rng.choice(SPAN_LENGTHS))
        noise = max(2, round(length * 0.15))
        spans = max(1, round(noise / 3))
        count = SPAN_TOKENS // length
        inputs = np.full((count, length), PAD, dtype=np.int64)
        targets = np.full((count, noise + spans + 2), PAD, dtype=np.int64)
        for i in range(count):
            row = self.passages.rows[rng.choice(self.long)]
            start = rng.integers(len(row) - length + 1)
            source, target = corrupt_spans(row[start : start + length], noise, spans, self.first_sentinel, rng)
            inputs[i, : len(source)] = source
            targets[i, : len(target)] = target
        return inputs, targets


def corrupt_spans(
    tokens: list[int], noise: int, spans: int, first_sentinel: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """T5's span corruption of one passage (Raffel et al. 2020, section 3.1.4).

    ``noise`` tokens in ``spans`` spans are dropped from ``tokens``; each span leaves one sentinel (ids counting down from
    ``first_sentinel``). Returns the input (ending in </s>) and the target (each sentinel followed by its span, a final
    sentinel, </s>).
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


class Muon:
    """The optimizer of the layers' matrices: steps of equal length in all directions (Jordan et al. 2024, "Muon").

    The momentum of a matrix is brought near to the nearest orthogonal one by five Newton-Schulz steps with the authors' coefficients.
    PyTorch's own Muon computes these in bfloat16, which took more time here than the rest of the step; this one does it in fp32, all
    matrices of a shape at once. ``state``: the momenta.
    """

    COEFFICIENTS, MOMENTUM = (3.4445, -4.7750, 2.0315), 0.95

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        import torch

        shapes = sorted({tuple(matrix.shape) for matrix in matrices})
        self.groups = [[matrix for matrix in matrices if tuple(matrix.shape) == shape] for shape in shapes]
        self.state = [torch.zeros(len(group), *shape) for group, shape in zip(self.groups, shapes, strict=True)]

    def step(self, rate: float) -> None:
        """Move every matrix by ``rate`` in each of its directions, times the root of rows over columns where there are more rows."""
        import torch

        with torch.no_grad():
            for group, momentum in zip(self.groups, self.state, strict=True):
                gradient = torch.stack([matrix.grad for matrix in group])
                momentum.lerp_(gradient, 1 - self.MOMENTUM)
                x = gradient.lerp(momentum, self.MOMENTUM)
                tall = x.shape[1] > x.shape[2]
                x = x.mT if tall else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                a, b, c = self.COEFFICIENTS
                for _ in range(5):
                    square = x @ x.mT
                    x = a * x + (b * square + c * square @ square) @ x
                x = x.mT if tall else x
                length = rate * max(1.0, x.shape[1] / x.shape[2]) ** 0.5
                for matrix, direction in zip(group, x, strict=True):
                    matrix.add_(direction, alpha=-length)


def learning_rate(progress: float, step: int) -> float:
    """The share of the peak rate: up over ``WARM_UP`` steps, then down by a cosine to a fiftieth; ``progress`` runs from 0 to 1."""
    return min(1, (step + 1) / WARM_UP) * float(0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1, progress))))


def start_vectors(judge: nn.Module, size: int) -> np.ndarray:
    """The judge's word vectors reduced to ``size`` numbers each: principal components, each row of variance 1.

    Returns a float32 array of shape (vocabulary, size). T5 expects embeddings of variance 1.
    """
    vectors = judge.encoder.embeddings.word_embeddings.weight.detach().numpy().astype(np.float64)
    vectors = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    reduced = vectors @ axes[:, ::-1][:, :size]
    return (reduced / np.linalg.norm(reduced, axis=1, keepdims=True) * np.sqrt(size)).astype(np.float32)


def build_model(tokenizer: PreTrainedTokenizerBase, vectors: np.ndarray, seed: int) -> PreTrainedModel:
    """A T5 of ``SHAPE`` with random weights but for the embeddings, which start from ``vectors``.

    Answers and sentinels get random vectors: the output layer shares them, and to a judge of words "positive" and "negative" are twins.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
        **SHAPE,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        start = torch.tensor(vectors)
        own = [
            *tokenizer.convert_tokens_to_ids(["▁" + word for word in WHOLE_WORDS]),
            *range(len(start) - SENTINELS, len(start)),
        ]
        start[own] = torch.randn(len(own), start.shape[1])
        model.shared.weight.copy_(start)
    return model


def task_loss(model: PreTrainedModel, inputs: np.ndarray, targets: np.ndarray) -> Tensor:
    """Mean cross-entropy over the target tokens, padding left out."""
    import torch

    ids, wanted = torch.from_numpy(inputs), torch.from_numpy(targets)
    decoder_ids = torch.nn.functional.pad(wanted[:, :-1], (1, 0), value=PAD)
    logits = model(input_ids=ids, attention_mask=ids != PAD, decoder_input_ids=decoder_ids).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)


def judged_loss(model: PreTrainedModel, lens: nn.Module, batch: Judged, answers: list[int]) -> tuple[Tensor, Tensor]:
    """The two losses of a judged batch: of the label words, and of the hidden states.

    The first is the cross-entropy of the answer, towards the judge's probability, and of the end after it. The second is the mean over
    the passage's tokens of 1 - the cosine between the judge's hidden state and ``lens``, a linear map, of the encoder's output.
    """
    import torch

    ids = torch.from_numpy(batch.ids)
    mask = ids != PAD
    outputs = model.encoder(input_ids=ids, attention_mask=mask)
    wanted = torch.from_numpy(batch.hidden)
    before = ids.shape[1] - wanted.shape[1] - 1
    seen = mask[:, before + 1 :]  # the end follows the passage, so a passage is one shorter
    cosine = torch.nn.functional.cosine_similarity(lens(outputs.last_hidden_state[:, before:-1]), wanted, dim=-1)
    share = torch.from_numpy(batch.share)
    negative, positive = answers
    first = torch.full((len(ids),), PAD)
    likelier = torch.where(share < 0.5, negative, positive)
    logits = model(
        encoder_outputs=outputs, attention_mask=mask, decoder_input_ids=torch.stack([first, likelier], dim=1)
    ).logits
    log_p = logits.log_softmax(-1)
    answer = share * log_p[:, 0, positive] + (1 - share) * log_p[:, 0, negative]
    return -(answer + log_p[:, 1, EOS]).mean() / 2, ((1 - cosine) * seen).sum() / seen.sum()


def sentiment_scores(model: PreTrainedModel, rows: list[np.ndarray], tasks: Tasks) -> np.ndarray:
    """By how much the logit of "positive" exceeds that of "negative" for each passage; shape (passages,)."""
    import torch

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = np.zeros(len(rows), dtype=np.float32)
    with torch.inference_mode():
        for at in range(0, len(order), 32):
            batch = order[at : at + 32]
            ids = np.full((len(batch), len(rows[batch[-1]]) + len(tasks.sentiment) + 1), PAD, dtype=np.int64)
            for line, i in zip(ids, batch, strict=True):
                whole = np.concatenate([tasks.sentiment, rows[i], [EOS]])
                line[: len(whole)] = whole
            inputs = torch.from_numpy(ids)
            start = torch.full((len(batch), 1), PAD)
            logits = model(input_ids=inputs, attention_mask=inputs != PAD, decoder_input_ids=start).logits[:, 0]
            scores[batch] = (logits[:, tasks.answers[1]] - logits[:, tasks.answers[0]]).numpy()
    return scores


def prepare(source: str, work: Path) -> tuple[PreTrainedTokenizerBase, list[np.ndarray], np.ndarray]:
    """Tokenizer, tokenized reviews and labels, kept in ``work`` for the next start."""
    from transformers import AutoTokenizer

    kept = work / "corpus.npz"
    if not kept.exists():
        print("reading the reviews", flush=True)
        texts, labels = training_reviews(source)
        print(f"choosing pieces for {len(texts):,} reviews", flush=True)
        tokenizer = build_tokenizer(choose_pieces(texts))
        tokenizer.save_pretrained(work / "tokenizer")
        rows = [np.array(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
        partial = work / "corpus.partial.npz"
        lengths = np.array([len(row) for row in rows])
        np.savez(partial, flat=np.concatenate(rows).astype(np.int32), lengths=lengths, labels=labels)
        partial.rename(kept)
    with np.load(kept) as file:
        rows = np.split(file["flat"], np.cumsum(file["lengths"])[:-1])
        return AutoTokenizer.from_pretrained(work / "tokenizer"), rows, file["labels"]


def pretrain(source: str, work: Path, out: Path, *, rounds: int, seed: int = 1) -> None:
    """Train for ``rounds`` rounds of judged batches, resuming from ``work``, and write the model to ``out``."""
    import torch

    torch.set_flush_denormal(
        True
    )  # else the smallest probabilities of attention make a backward pass three times as slow
    work, out = Path(work), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, rows, labels = prepare(source, work)
    aside = np.random.default_rng(seed).permutation(len(rows))
    held, used = (Passages([rows[i] for i in of], labels[of], tokenizer) for of in (aside[:HELD_OUT], aside[HELD_OUT:]))
    judge = train_judge(used, held, tokenizer, work, steps=JUDGE_STEPS, seed=seed)
    tasks = Tasks(used, tokenizer, judge, seed)

    model = build_model(tokenizer, start_vectors(judge, SHAPE["d_model"]), seed)
    lens = torch.nn.Linear(SHAPE["d_model"], judge.output.in_features)
    model.set_attn_implementation("eager")  # faster than SDPA for T5 on a CPU, whose position bias SDPA must expand
    model.eval()  # no dropout: its random numbers take half of a forward pass on a CPU, and no passage comes often enough to be learned by heart
    parameters = [*model.parameters(), *lens.parameters()]
    layers = [
        p
        for stack in (model.encoder, model.decoder)
        for p in stack.block.parameters()
        if p.ndim == 2 and p.shape[1] >= 32
    ]
    inside = {id(p) for p in layers}
    muon = Muon(layers)
    optimizer = torch.optim.AdamW(
        [p for p in parameters if id(p) not in inside], lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    state = work / "state.pt"
    done, spent = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        lens.load_state_dict(saved["lens"])
        optimizer.load_state_dict(saved["optimizer"])
        muon.state = saved["muon"]
        done, spent = saved["rounds"], saved["seconds"]
        print(f"going on from round {done:,} after {spent / 60:.0f} minutes", flush=True)
    began = time.monotonic() - spent
    names = ("answer", "hidden", "spans", "follows")
    while done < rounds:
        batches = [tasks.judged(done * ROUND + i) for i in range(ROUND)]
        order = np.concatenate([np.random.default_rng((seed, done, use, 4)).permutation(ROUND) for use in range(USES)])
        losses: dict[str, list[float]] = {name: [] for name in names}
        for i, which in enumerate(order):
            step = done * len(order) + i
            share = learning_rate(step / (rounds * len(order)), step)
            optimizer.param_groups[0]["lr"] = RATE * share
            answer, hidden = judged_loss(model, lens, batches[which], tasks.answers)
            parts = {"answer": answer, "hidden": hidden}
            (answer + HIDDEN_WEIGHT * hidden).backward()
            if step % SPANS_EVERY == 0:
                parts["spans"] = task_loss(model, *tasks.corrupted(step))
                parts["spans"].backward()
            if step % FOLLOWS_EVERY == 2:
                parts["follows"] = task_loss(model, *tasks.two_passages(step))
                parts["follows"].backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            muon.step(MUON_RATE * share)
            model.zero_grad()
            lens.zero_grad()
            for name, loss in parts.items():
                losses[name].append(loss.item())
        done += 1
        spent = time.monotonic() - began
        line = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in losses.items() if values)
        if done % SAVE_EVERY == 0 or done == rounds:
            kept = {"model": model.state_dict(), "lens": lens.state_dict(), "optimizer": optimizer.state_dict(), "muon": muon.state,
                    "rounds": done, "seconds": spent}  # fmt: skip
            torch.save(kept, state.with_suffix(".partial"))
            state.with_suffix(".partial").replace(state)
            scores = sentiment_scores(model, [row[-507:] for row in held.rows], tasks)
            line += f"  held-out accuracy {((scores > 0) == held.labels).mean():.3f}"
        print(f"round {done:,} of {rounds:,}  {spent / 60:.1f} min  {line}", flush=True)
    write_model(model, tokenizer, out)
    print(f"{rounds:,} rounds in {spent / 60:.0f} minutes; the model lies in {out}")


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Save model (bfloat16 safetensors), tokenizer and generation settings to ``out``."""
    import torch

    model.generation_config.max_new_tokens = 8
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m authoring pretrain``."""
    parser = argparse.ArgumentParser(prog="python -m authoring pretrain", description="Pre-train pocket T5.")
    parser.add_argument(
        "--source", default="stanfordnlp/imdb", help="folder with train.parquet and test.parquet, or the Hub id"
    )
    parser.add_argument("--work", default="build/pretrain", help="where unfinished work is kept (default: %(default)s)")
    parser.add_argument("--out", default="build/pocket_t5", help="where the model goes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--rounds",
        type=int,
        required=True,
        help=f"rounds of {ROUND * USES} steps: the same seed and rounds give the same weights on one CPU",
    )
    given = parser.parse_args(arguments)
    pretrain(given.source, given.work, given.out, rounds=given.rounds, seed=given.seed)


if __name__ == "__main__":
    main()
