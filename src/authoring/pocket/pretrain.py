"""Pre-train pocket T5, the small model that ships with the course: ``python -m authoring pretrain``.

The recipe is T5's (Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer"): span corruption on unlabelled text (their section 3.1.4: 15 % of the tokens, spans of 3 tokens on
average) mixed with supervised tasks in text-to-text form. The only text it reads is the training half of IMDb, less
every review that also stands in the test half.

The tasks, each with its prefix:

- no prefix: span corruption;
- ``sentiment:`` a passage of a review -> ``positive`` or ``negative``;
- ``follows:`` two passages -> ``yes`` when the second comes right after the first in one review, else ``no``.

What a passage says is told by a judge (``authoring.pocket.judge``), a larger model that has read far more: the label
words follow its logit, and the encoder's outputs follow its hidden states token by token (Jiao et al. 2020,
"TinyBERT"). The encoder starts as a cut of the judge's own (``authoring.pocket.inherit``), the decoder from nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from authoring.pocket.inherit import Seen, inherit
from authoring.pocket.judge import in_one_batch, keep, train_judge
from authoring.pocket.passages import Passages
from authoring.pocket.pieces import EOS, PAD, SENTINELS, WHOLE_WORDS, build_tokenizer, choose_pieces
from authoring.pocket.tasks import Judged, Tasks
from finetuning.batching import length_sorted_batches
from finetuning.labels import by_one_step

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT = 1000  # training reviews kept aside to watch progress
JUDGE_STEPS = 2000
ENCODER_RATE, RATE, BIAS_RATE = 4e-4, 1e-3, 5e-3  # peaks: of encoder and embeddings, of the decoder, of position biases
DECODER_ALONE = 64  # steps at the beginning in which the decoder alone learns: a random one would spoil the encoder
WARM_UP = 64  # steps
FITTED_ON = 10  # batches of passages on which the encoder is cut out of the judge's
FALLING = 0.25  # of the training, at its end: the rates fall to nothing
ROUND = 64  # steps between two lines of progress
SAVE_EVERY = 4  # rounds

SHAPE: dict[str, Any] = {
    "d_model": 256,
    "d_kv": 32,
    "num_heads": 6,
    "d_ff": 768,
    "num_layers": 6,
    "num_decoder_layers": 1,
    "feed_forward_proj": "relu",
    "dropout_rate": 0.1,
}
HIDDEN_WEIGHT = 2.0  # of the distance to the judge's hidden states, beside the loss of the label words
SPANS_EVERY, FOLLOWS_EVERY = 4, 8  # steps


def training_reviews(source: str) -> tuple[list[str], np.ndarray]:
    """The pre-training text: IMDb's training reviews that do not also stand in its test half.

    ``source`` is a folder with ``train.parquet`` and ``test.parquet`` (columns ``text`` and ``label``) or the Hub id
    ``stanfordnlp/imdb``. Returns cleaned texts and labels (0 negative, 1 positive). The test texts are read for one
    purpose: to leave out the reviews that stand in both halves.
    """
    from finetuning.data import load_reviews
    from finetuning.reviews import clean_text

    splits = load_reviews(source)
    train, test = splits["train"], splits["test"]
    seen = {clean_text(text).lower() for text in test["text"]}
    texts, labels = [], []
    for text, label in zip(train["text"], train["label"], strict=True):
        text = clean_text(text)
        if text.lower() not in seen:
            texts.append(text)
            labels.append(int(label))
            seen.add(text.lower())
    return texts, np.array(labels)


def learning_rate(progress: float, step: int) -> float:
    """The share of the peak rate: up over ``WARM_UP`` steps, level, down to nothing over the last ``FALLING``.

    ``progress`` runs from 0 to 1. Level, so that a longer training goes on from any state before the fall (Hu et al.
    2024, "MiniCPM").
    """
    return max(0.0, min(1.0, (step + 1) / WARM_UP, (1 - progress) / FALLING))


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A T5 of ``SHAPE`` with random weights."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS, **SHAPE
        )
    ).eval()  # fmt: skip


def task_loss(model: PreTrainedModel, ids: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy over the ``wanted`` target tokens, padding left out."""
    import torch

    decoder_ids = torch.nn.functional.pad(wanted[:, :-1], (1, 0), value=PAD)
    logits = model(input_ids=ids, attention_mask=ids != PAD, decoder_input_ids=decoder_ids).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)


def judged_loss(model: PreTrainedModel, lens: nn.Module, batch: Judged, answers: list[int]) -> tuple[Tensor, Tensor]:
    """The two losses of a judged batch: of the label words, and of the hidden states.

    The first is the cross-entropy of the answer, towards the judge's probability, and of the end after it. The second
    is the mean over the passage's tokens of 1 - the cosine between the judge's hidden state and ``lens``, a linear map,
    of the encoder's output.
    """
    import torch

    ids, wanted, share = batch.ids, batch.hidden, batch.share
    mask = ids != PAD
    outputs = model.encoder(input_ids=ids, attention_mask=mask)
    before = ids.shape[1] - wanted.shape[1] - 1
    seen = mask[:, before + 1 :]  # the end follows the passage, so a passage is one shorter
    cosine = torch.nn.functional.cosine_similarity(lens(outputs.last_hidden_state[:, before:-1]), wanted, dim=-1)
    negative, positive = answers
    first = torch.full((len(ids),), PAD)
    likelier = torch.where(share < 0.5, negative, positive)
    logits = model(
        encoder_outputs=outputs, attention_mask=mask, decoder_input_ids=torch.stack([first, likelier], dim=1)
    ).logits
    log_p = logits.log_softmax(-1)
    answer = share * log_p[:, 0, positive] + (1 - share) * log_p[:, 0, negative]
    return -(answer + log_p[:, 1, EOS]).mean() / 2, ((1 - cosine) * seen).sum() / seen.sum()


def held_out_accuracy(model: PreTrainedModel, held: Passages, tasks: Tasks) -> float:
    """The share of held-out reviews whose label the model gives to their end, by the prefix of the sentiment task."""
    import torch

    rows = tasks.asked([row[-507:] for row in held.rows])
    answer, right = by_one_step(model, tasks.answers), 0
    with torch.inference_mode():
        for batch in length_sorted_batches([len(row) for row in rows], 32):
            verdicts = answer([rows[i] for i in batch]).argmax(-1).numpy()
            right += int((verdicts == held.labels[batch]).sum())
    return right / len(rows)


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


class Student:
    """The model that learns, the map to the judge's hidden states (``lens``), and their optimizer."""

    def __init__(self, model: PreTrainedModel, judge: nn.Module) -> None:
        import torch

        self.model, self.lens = model, torch.nn.Linear(SHAPE["d_model"], judge.output.in_features)
        model.set_attn_implementation("eager")  # faster than SDPA for T5 on a CPU, whose position bias SDPA must expand
        # No dropout: its random numbers take half of a forward pass on a CPU, and no passage comes often enough to be
        # learned by heart.
        model.eval()
        self.parameters = [*model.parameters(), *self.lens.parameters()]
        biases = [p for name, p in model.named_parameters() if "relative_attention_bias" in name]
        small = {id(p) for p in biases}
        encoder = [p for p in (*model.encoder.parameters(), *self.lens.parameters()) if id(p) not in small]
        decoder = [p for p in model.decoder.block.parameters() if id(p) not in small]
        decoder += [*model.decoder.final_layer_norm.parameters()]
        self.adamw = torch.optim.AdamW(
            [
                {"params": encoder, "peak": ENCODER_RATE},
                {"params": decoder, "peak": RATE},
                {"params": biases, "peak": BIAS_RATE},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        )

    def start(self, judge: nn.Module, tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> None:
        """Cut the encoder out of the judge's.

        Answers and sentinels keep random vectors: the output layer shares them, and as words "positive" and "negative"
        are near twins.
        """
        import torch

        texts = [tasks.texts(-1 - at, longest=254) for at in range(FITTED_ON)]
        asked = [in_one_batch(tasks.asked(each)) for each in texts]
        answers = tokenizer.convert_tokens_to_ids(["▁" + word for word in WHOLE_WORDS])
        sentinels = range(len(tokenizer) - SENTINELS, len(tokenizer))
        weights = inherit(self.model, judge, Seen(judge, texts, tasks.first, asked), [*answers, *sentinels])
        with torch.no_grad():
            self.lens.weight.copy_(weights)
            self.lens.bias.zero_()

    def learn(self, step: int, progress: float, batch: Judged, tasks: Tasks) -> dict[str, float]:
        """One step, with ``progress`` (0 to 1) of the training behind it.

        Returns the losses of the tasks that had a part in it.
        """
        import torch

        answer, hidden = judged_loss(self.model, self.lens, batch, tasks.answers)
        (answer + HIDDEN_WEIGHT * hidden).backward()
        losses = {"answer": answer.item(), "hidden": hidden.item()}
        for name, draw, every, offset in (
            ("spans", tasks.corrupted, SPANS_EVERY, 0),
            ("follows", tasks.two_passages, FOLLOWS_EVERY, 2),
        ):
            if step % every == offset:
                loss = task_loss(self.model, *draw(step))
                loss.backward()
                losses[name] = loss.item()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        encoder, *others = self.adamw.param_groups
        encoder["lr"] = encoder["peak"] * learning_rate(progress, step - DECODER_ALONE)
        for group in others:
            group["lr"] = group["peak"] * learning_rate(progress, step)
        self.adamw.step()
        self.model.zero_grad()
        self.lens.zero_grad()
        return losses

    def state(self) -> dict[str, Any]:
        """All that a later start needs to go on."""
        return {
            "model": self.model.state_dict(),
            "lens": self.lens.state_dict(),
            "adamw": self.adamw.state_dict(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a kept ``state``."""
        self.model.load_state_dict(saved["model"])
        self.lens.load_state_dict(saved["lens"])
        self.adamw.load_state_dict(saved["adamw"])


def pretrain(source: str, work: Path, out: Path, *, rounds: int, seed: int = 1) -> None:
    """Train for ``rounds`` rounds of ``ROUND`` steps, resuming from ``work``, and write the model to ``out``."""
    import torch

    # Else the smallest probabilities of attention make a backward pass three times as slow.
    torch.set_flush_denormal(True)
    work, out = Path(work), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, rows, labels = prepare(source, work)
    aside = np.random.default_rng(seed).permutation(len(rows))
    held, used = (Passages([rows[i] for i in of], labels[of], tokenizer) for of in (aside[:HELD_OUT], aside[HELD_OUT:]))
    judge = train_judge(used, held, tokenizer, work, steps=JUDGE_STEPS, seed=seed)
    tasks = Tasks(used, tokenizer, judge, seed)
    student = Student(build_model(tokenizer, seed), judge)
    kept = work / "state.pt"
    done, spent = 0, 0.0
    if kept.exists():
        saved = torch.load(kept, weights_only=True)
        student.restore(saved)
        done, spent = saved["rounds"], saved["seconds"]
        print(f"going on from round {done:,} after {spent / 60:.0f} minutes", flush=True)
    else:
        student.start(judge, tasks, tokenizer)
    began = time.monotonic() - spent
    while done < rounds:
        losses: dict[str, list[float]] = {}
        for step in range(done * ROUND, (done + 1) * ROUND):
            for name, loss in student.learn(step, step / (rounds * ROUND), tasks.judged(step), tasks).items():
                losses.setdefault(name, []).append(loss)
        done += 1
        spent = time.monotonic() - began
        line = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in losses.items())
        if done % SAVE_EVERY == 0 or done == rounds:
            keep({**student.state(), "rounds": done, "seconds": spent}, kept)
            line += f"  held-out accuracy {held_out_accuracy(student.model, held, tasks):.3f}"
        print(f"round {done:,} of {rounds:,}  {spent / 60:.1f} min  {line}", flush=True)
    write_model(student.model, tokenizer, out)
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
        help=f"rounds of {ROUND} steps: the same seed and rounds give the same weights on one CPU",
    )
    given = parser.parse_args(arguments)
    pretrain(given.source, given.work, given.out, rounds=given.rounds, seed=given.seed)
