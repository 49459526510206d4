"""Pre-train pocket T5, the small model that ships with the course: ``python -m finetuning.pretrain``.

The recipe is T5's (Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer"): span corruption on unlabelled text (their section 3.1.4: 15 % of the tokens, spans of 3 tokens on average)
mixed with supervised tasks in text-to-text form. The only text it reads is the training half of IMDb, less every
review that also stands in the test half.

The tasks, each with its prefix:

- no prefix: span corruption;
- ``sentiment:`` a passage of a review -> ``positive`` or ``negative``;
- ``follows:`` two passages -> ``yes`` when the second comes right after the first in one review, else ``no``.

A passage is judged in two ways, by the label of its review and by a linear model over its words (``finetuning.teacher``).

The input embeddings start from word statistics (positive pointwise mutual information of a five-piece window, reduced by
a truncated SVD: Levy and Goldberg 2014) instead of noise, which saves hours on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuning.profiles import POCKET_T5
from finetuning.teacher import Teacher

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCABULARY = 8192
SENTINELS = 100
PAD, EOS, UNK = 0, 1, 2
LABEL_WORDS = ("negative", "positive")
WHOLE_WORDS = ("positive", "negative", "yes", "no", "sentiment", "follows")
HELD_OUT = 1000  # training reviews kept aside to watch progress
WARM_UP = 200  # steps
SAVE_EVERY = 500  # steps

SHAPE: dict[str, Any] = {
    "d_model": 192,
    "d_kv": 32,
    "num_heads": 6,
    "d_ff": 576,
    "num_layers": 3,
    "num_decoder_layers": 1,
    "feed_forward_proj": "relu",
    "dropout_rate": 0.1,
}
# length of the passages in tokens -> share of the supervised batches
PASSAGES = {32: 0.6, 64: 0.2, 128: 0.05, 256: 0.05, 508: 0.1}
SENTENCES = 64  # passages up to this length begin and, where they can, end with a sentence
TEACHER_SHARE = 0.8  # of the target, the rest is the label of the review
TOKENS_PER_BATCH = 4096
SPAN_LENGTHS = (16, 32, 64, 128)  # tokens of the passages with gaps, each as often as the others
SPAN_TOKENS = 1024
FOLLOWS_SHARE = 1 / 16
TOKENS_HIDDEN = 0.1  # supervised inputs: share of tokens replaced by <unk>, a cheap stand-in for dropout


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


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """A lower-casing Unigram tokenizer of ``VOCABULARY`` pieces laid out as T5's: pad 0, end 1, unknown 2, sentinels last."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            # "boring", "boring." and "boring," share a piece; the apostrophe of "don't" stays inside its word
            pre_tokenizers.Split(Regex(r"[^\w\s'▁]"), "isolated"),
        ]
    )
    learner = Tokenizer(models.Unigram())
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    pieces = VOCABULARY - SENTINELS
    learner.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=pieces - len(WHOLE_WORDS),
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    vocabulary = [tuple(piece) for piece in json.loads(learner.to_str())["model"]["vocab"]]
    known = {piece for piece, _ in vocabulary}
    # The words the tasks answer with must be one token each, however rare the reviews make them.
    vocabulary += [("▁" + word, -9.0) for word in WHOLE_WORDS if "▁" + word not in known]
    vocabulary = vocabulary[:pieces]
    vocabulary += [(f"<unused_{i}>", -99.0) for i in range(pieces - len(vocabulary))]
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    vocabulary += [(sentinel, 0.0) for sentinel in sentinels]

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=UNK))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *sentinels])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(reversed(sentinels)),
        model_max_length=512,
        padding_side="right",
        truncation_side="right",
    )


def word_statistics(rows: list[np.ndarray], size: int, seed: int) -> np.ndarray:
    """Start vectors of the pieces: PPMI of a five-piece window, truncated SVD, scaled to unit variance.

    ``rows`` are arrays of token ids. Returns a float32 array of shape (VOCABULARY, size). The label words get random
    vectors: co-occurrence would make "positive" and "negative" near twins, and the output layer shares these vectors.
    """
    from scipy import sparse
    from sklearn.utils.extmath import randomized_svd

    counts = sparse.csr_matrix((VOCABULARY, VOCABULARY))
    flat = np.concatenate([np.append(row, PAD) for row in rows])
    for distance in range(1, 6):
        left, right = flat[:-distance], flat[distance:]
        keep = (left != PAD) & (right != PAD)
        ones = np.ones(keep.sum(), dtype=np.float64)
        counts = counts + sparse.coo_matrix((ones, (left[keep], right[keep])), shape=counts.shape).tocsr()
    counts = (counts + counts.T).tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    context = totals**0.75  # context smoothing: rare contexts weigh less
    pmi = np.log(counts.data * context.sum() / (totals[counts.row] * context[counts.col]))
    keep = pmi > 0
    ppmi = sparse.csr_matrix((pmi[keep], (counts.row[keep], counts.col[keep])), shape=counts.shape)
    u, s, _ = randomized_svd(ppmi, size, n_iter=4, random_state=seed)
    vectors = u * np.sqrt(s)
    rng = np.random.default_rng(seed)
    blank = np.abs(vectors).sum(axis=1) < 1e-6
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6) / np.sqrt(size)
    vectors[blank] = rng.standard_normal((blank.sum(), size))
    return vectors.astype(np.float32)


def build_model(tokenizer: PreTrainedTokenizerBase, start_vectors: np.ndarray, seed: int) -> PreTrainedModel:
    """A T5 of ``SHAPE`` with random weights but for the embeddings, which start from ``start_vectors``."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
        **SHAPE,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        vectors = torch.tensor(start_vectors)
        answers = tokenizer.convert_tokens_to_ids(["▁" + word for word in WHOLE_WORDS])
        vectors[answers] = torch.randn(len(answers), vectors.shape[1])
        model.shared.weight.copy_(vectors)
    return model


class Passages:
    """Draws training batches from tokenized reviews; batch ``step`` is the same in every run with the same seed."""

    def __init__(
        self, rows: list[np.ndarray], labels: np.ndarray, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> None:
        self.rows, self.labels, self.seed = rows, labels, seed
        self.long = np.array([i for i, row in enumerate(rows) if len(row) >= 150])
        self.teacher = Teacher(rows, labels, tokenizer)
        self.ends = np.isin(np.arange(len(tokenizer)), tokenizer.convert_tokens_to_ids([".", "!", "?"]))
        self.answers = tokenizer.convert_tokens_to_ids(["▁" + word for word in LABEL_WORDS])
        self.yes_no = tokenizer.convert_tokens_to_ids(["▁no", "▁yes"])
        self.sentiment, self.follows = (
            tokenizer(prefix, add_special_tokens=False)["input_ids"] for prefix in ("sentiment:", "follows:")
        )
        self.first_sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")

    def supervised(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The supervised tasks: input ids (rows, length), target ids (rows, 3) and the first target's weight (rows,).

        The targets are an answer, the end, and the contrary answer, which has the rest of the weight.
        """
        rng = np.random.default_rng((self.seed, step, 0))
        length = int(rng.choice(list(PASSAGES), p=list(PASSAGES.values())))
        count = min(TOKENS_PER_BATCH // length, 160)
        inputs = np.full((count, length), PAD, dtype=np.int64)
        targets = np.full((count, 3), EOS, dtype=np.int64)
        texts = []
        reviews = np.full(count, -1)  # -1: two passages, which have no label
        for i in range(count):
            if rng.random() < FOLLOWS_SHARE:
                half = (length - len(self.follows) - 2) // 2
                a, b, follows = self._two_passages(rng, half)
                text, prefix = np.concatenate([a, [EOS], b]), self.follows
                answer, contrary = self.yes_no[follows], self.yes_no[1 - follows]
            else:
                reviews[i] = which = rng.integers(len(self.rows))
                text = self._passage(rng, which, length - len(self.sentiment) - 1)
                (contrary, answer), prefix = self.answers, self.sentiment
            texts.append(text)
            text = np.where(rng.random(len(text)) < TOKENS_HIDDEN, UNK, text)
            whole = np.concatenate([prefix, text, [EOS]])
            inputs[i, : len(whole)] = whole
            targets[i] = answer, EOS, contrary
        positive = self.teacher.probabilities(texts, reviews)
        judged = TEACHER_SHARE * positive + (1 - TEACHER_SHARE) * self.labels[reviews]
        return inputs, targets, np.where(reviews < 0, 1, judged).astype(np.float32)

    def _passage(self, rng, which, length):
        """The end (20 %), the beginning (30 %) or any other place (50 %) of a review; short ones in whole sentences."""
        row = self.rows[which]
        if len(row) <= length:
            return row
        place = rng.random()
        last = len(row) - length
        start = last if place < 0.2 else 0 if place < 0.5 else rng.integers(last + 1)
        if length <= SENTENCES:
            before = np.flatnonzero(self.ends[row[:start]])
            start = before[-1] + 1 if len(before) else 0
            length = rng.integers(length // 4, length + 1)
            after = np.flatnonzero(self.ends[row[start : start + length]])
            length = after[-1] + 1 if len(after) and after[-1] >= 3 else length
        return row[start : start + length]

    def _two_passages(self, rng, half):
        row = self.rows[rng.choice(self.long)]
        half = min(half, len(row) // 3)
        start = rng.integers(len(row) - 2 * half + 1)
        a = row[start : start + half]
        follows = int(rng.random() < 0.5)
        if follows:
            return a, row[start + half : start + 2 * half], follows
        other = self.rows[rng.choice(self.long)]
        start = rng.integers(max(1, len(other) - half + 1))
        return a, other[start : start + half], follows

    def corrupted(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Span corruption: inputs with sentinels for the dropped spans, targets with the spans after their sentinels."""
        rng = np.random.default_rng((self.seed, step, 1))
        length = int(rng.choice(SPAN_LENGTHS))
        noise = max(2, round(length * 0.15))
        spans = max(1, round(noise / 3))
        count = SPAN_TOKENS // length
        inputs = np.full((count, length), PAD, dtype=np.int64)
        targets = np.full((count, noise + spans + 2), PAD, dtype=np.int64)
        for i in range(count):
            row = self.rows[rng.choice(self.long)]
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


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Linear warm-up over ``WARM_UP`` steps, then a cosine down to a fiftieth of the peak; ``progress`` runs from 0 to 1."""
    return peak * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1, progress))))


def sentiment_accuracy(
    model: PreTrainedModel, rows: list[np.ndarray], labels: np.ndarray, passages: Passages, tokens: int, device: str
) -> float:
    """Accuracy of ``sentiment:`` on the last ``tokens`` tokens of each review, by the label word with the higher score."""
    import torch

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    right = 0
    model.eval()
    with torch.inference_mode():
        for at in range(0, len(order), 64):
            batch = order[at : at + 64]
            texts = [[*passages.sentiment, *rows[i][-tokens:], EOS] for i in batch]
            width = max(map(len, texts))
            ids = torch.tensor([t + [PAD] * (width - len(t)) for t in texts], device=device)
            start = torch.zeros(len(batch), 1, dtype=torch.long, device=device)
            logits = model(input_ids=ids, attention_mask=ids != PAD, decoder_input_ids=start).logits[:, 0]
            guess = logits[:, passages.answers].argmax(-1).cpu().numpy()
            right += int((guess == labels[batch]).sum())
    model.train()
    return right / len(rows)


def forward_loss(
    model: PreTrainedModel,
    inputs: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    device: str = "cpu",
) -> Tensor:
    """Mean cross-entropy over the target tokens, padding left out; the logits are taken to fp32 first.

    With ``weights`` the last column of ``targets`` is the contrary of the first: the first has ``weights`` (rows,) of the
    loss of its place, the contrary the rest.
    """
    import torch

    ids = torch.from_numpy(inputs).to(device)
    wanted = torch.from_numpy(targets).to(device)
    told = wanted if weights is None else wanted[:, :2]
    decoder_ids = torch.nn.functional.pad(told[:, :-1], (1, 0), value=PAD)
    if weights is not None:  # the end follows the likelier answer
        decoder_ids[:, 1] = torch.where(torch.from_numpy(weights).to(device) < 0.5, wanted[:, 2], wanted[:, 0])
    logits = model(input_ids=ids, attention_mask=ids != PAD, decoder_input_ids=decoder_ids).logits.float()
    if weights is None:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)
    share = torch.from_numpy(weights).to(device)
    by_token = -logits.log_softmax(-1).gather(2, wanted[:, None].expand(-1, 2, -1))
    return (share * by_token[:, 0, 0] + (1 - share) * by_token[:, 0, 2] + by_token[:, 1, 1]).mean() / 2


def prepare(source: str, work: Path, seed: int, new_tokenizer: bool = False) -> tuple:
    """Tokenizer, tokenized reviews, labels and start vectors, kept in ``work`` for the next start.

    The shipped tokenizer is used again unless ``new_tokenizer``: the library's Unigram trainer gives slightly other pieces
    each time, and two rebuilds would not agree.
    """
    from transformers import AutoTokenizer

    kept = work / "corpus.npz"
    if not kept.exists():
        print("reading the reviews", flush=True)
        texts, labels = training_reviews(source)
        print(f"tokenizing {len(texts):,} reviews", flush=True)
        tokenizer = train_tokenizer(texts) if new_tokenizer else AutoTokenizer.from_pretrained(POCKET_T5)
        tokenizer.save_pretrained(work / "tokenizer")
        rows = [
            np.array(ids, dtype=np.int32)
            for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ]
        print(f"{sum(map(len, rows)):,} tokens; counting words", flush=True)
        vectors = word_statistics(rows, SHAPE["d_model"], seed)
        lengths = np.array([len(row) for row in rows])
        partial = work / "corpus.partial.npz"
        np.savez(partial, flat=np.concatenate(rows), lengths=lengths, labels=labels, vectors=vectors)
        partial.rename(kept)
    with np.load(kept) as file:
        rows = np.split(file["flat"], np.cumsum(file["lengths"])[:-1])
        return AutoTokenizer.from_pretrained(work / "tokenizer"), rows, file["labels"], file["vectors"]


def pretrain(
    source: str,
    work: Path,
    out: Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 1,
    peak: float = 1e-3,
    new_tokenizer: bool = False,
    start_from: str | Path | None = None,
) -> None:
    """Train until ``steps`` or ``minutes`` are spent, resuming from ``work``, and write the model to ``out``.

    ``start_from``: a folder with an earlier pocket T5 to go on from, instead of word statistics and random weights.
    """
    import torch

    from finetuning.training import bf16_is_fast

    work, out = Path(work), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, rows, labels, vectors = prepare(source, work, seed, new_tokenizer)
    aside = np.random.default_rng(seed).permutation(len(rows))
    held, used = aside[:HELD_OUT], aside[HELD_OUT:]
    passages = Passages([rows[i] for i in used], labels[used], tokenizer, seed)
    held_rows, held_labels = [rows[i] for i in held], labels[held]

    model = build_model(tokenizer, vectors, seed)
    if start_from:
        model = type(model).from_pretrained(start_from, dtype=torch.float32)
    model = model.to(device)
    model.set_attn_implementation("eager")  # faster than SDPA for T5 on a CPU, whose position bias SDPA must expand
    for module in model.modules():  # no dropout: its random numbers take half of a forward pass on a CPU
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    model.train()
    # The model computes in bfloat16 where that is fast; the optimizer steps fp32 masters of its weights.
    masters = [p.detach().clone().float().requires_grad_() for p in model.parameters()]
    model.to(torch.bfloat16 if bf16_is_fast() else torch.float32)
    matrices = [p for p in masters if p.ndim > 1]
    scales = [p for p in masters if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": scales, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
        fused=True,
    )
    state = work / "state.pt"
    step, spent = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for weight, master, kept in zip(model.parameters(), masters, saved["masters"], strict=True):
                master.copy_(kept)
                weight.copy_(kept)
        step, spent = saved["step"], saved["seconds"]
        print(f"going on from step {step:,} after {spent / 60:.0f} minutes", flush=True)

    def save():
        torch.save(
            {"masters": masters, "optimizer": optimizer.state_dict(), "step": step, "seconds": spent},
            work / "state.partial",
        )
        (work / "state.partial").replace(state)

    began = time.monotonic() - spent
    losses: dict[str, list[float]] = {"supervised": [], "spans": []}
    while True:
        spent = time.monotonic() - began
        progress = step / steps if steps else spent / 60 / minutes  # type: ignore[operator]  # one of the two is given
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = float(learning_rate(progress, step, peak))
        for name, batch in (("supervised", passages.supervised(step)), ("spans", passages.corrupted(step))):
            loss = forward_loss(model, *batch, device=device)
            loss.backward()
            losses[name].append(loss.item())
        for weight, master in zip(model.parameters(), masters, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for weight, master in zip(model.parameters(), masters, strict=True):
                weight.copy_(master)
        step += 1
        if step % SAVE_EVERY == 0:
            save()
        if step % 100 == 0:
            line = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in losses.items())
            losses = {name: [] for name in losses}
            if step % 500 == 0:
                accuracy = {
                    n: sentiment_accuracy(model, held_rows, held_labels, passages, n, device) for n in (124, 508)
                }
                line += "  held-out accuracy " + "  ".join(f"{n} tokens: {share:.3f}" for n, share in accuracy.items())
            print(f"step {step:,}  {spent / 60:.1f} min  {line}", flush=True)
    save()
    write_model(model, tokenizer, out)
    print(f"{step:,} steps in {spent / 60:.0f} minutes; the model lies in {out}")


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Save model (bfloat16 safetensors), tokenizer and generation settings to ``out``."""
    import torch

    model.config.dropout_rate = SHAPE["dropout_rate"]
    model.generation_config.max_new_tokens = 8
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m finetuning.pretrain``."""
    parser = argparse.ArgumentParser(prog="python -m finetuning.pretrain", description="Pre-train pocket T5.")
    parser.add_argument(
        "--source", default="stanfordnlp/imdb", help="folder with train.parquet and test.parquet, or the Hub id"
    )
    parser.add_argument("--work", default="build/pretrain", help="where unfinished work is kept (default: %(default)s)")
    parser.add_argument("--out", default="build/pocket_t5", help="where the model goes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument(
        "--new-tokenizer", action="store_true", help="train a tokenizer too instead of using the shipped one"
    )
    parser.add_argument("--start-from", help="folder with an earlier pocket T5 to go on from")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument(
        "--steps", type=int, help="optimizer steps: the same seed and steps give the same weights on one CPU"
    )
    length.add_argument("--minutes", type=float, help="training time")
    given = parser.parse_args(arguments)
    pretrain(
        given.source,
        given.work,
        given.out,
        steps=given.steps,
        minutes=given.minutes,
        seed=given.seed,
        peak=given.rate,
        new_tokenizer=given.new_tokenizer,
        start_from=given.start_from,
    )


if __name__ == "__main__":
    main()
