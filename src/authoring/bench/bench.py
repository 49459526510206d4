"""Measure the course's speed claims, side by side in one run: ``make bench`` (``python -m authoring bench``).

Writes ``bench.json``, ``bench.md`` and figures to ``runs/bench/``. Every contender runs once per round, in turn and in a process of its
own, so that what disturbs the machine disturbs all of them and none inherits another's memory; a number is the median over the
rounds, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuning.batching import epoch_batches, length_sorted_batches, padded, token_rows
from finetuning.distributed import jobs
from finetuning.distributed.planner import FAMILY
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.labels import LABEL_WORDS, by_one_step, label_ids
from finetuning.machine import bf16_is_fast, this_machine, versions
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import Profile, choose, describe
from finetuning.speed import recipes
from finetuning.speed.recipes import Recipe, Training, Way
from finetuning.workspace import LESSONS, executed_copy, execution_mark, runs_folder

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

BATCH = 16
SHIPPED_DROPOUT = 0.1  # of every T5
LONG = 200  # tokens; the share of the peak is stated for batches wider than this
SHAPES = {  # two smaller than t5-small, of the same make; then the family's own
    "tiny": {**FAMILY["google-t5/t5-small"], "num_layers": 4, "d_model": 256, "d_ff": 1024, "num_heads": 4},
    "mini": {**FAMILY["google-t5/t5-small"], "num_layers": 4, "d_model": 384, "d_ff": 1536},
    "small": FAMILY["google-t5/t5-small"],
    "base": FAMILY["google-t5/t5-base"],
}
OPERATIONS = (  # classes of operators in the profiles, by name
    ("matrix products of attention", r"bmm|einsum"),
    ("matrix products", r"mm$|linear|addmm"),
    ("softmax", r"softmax"),
    ("dropout", r"dropout|bernoulli|native_dropout"),
    ("optimizer", r"adam|lerp|addcdiv|addcmul|sqrt"),
    ("copies and casts", r"copy_|_to_copy|cat$|clone|fill_|zero_|index|embedding"),
    (
        "element by element",
        r"add|mul|sub|div|pow|sum|mean|rsqrt|relu|clamp|threshold|round|aminmax|exp|log|neg|abs|where|norm",
    ),
)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of a contender's rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}


def factors(speeds: dict[str, list[float]]) -> list[dict]:
    """Each contender's speed, its ratio to the one before, and to the first: rows of a waterfall.

    ``speeds``: name -> one number per round, in the order of the changes. Ratios are taken within a round, then their
    median; so that the steps multiply to the total, ``step`` is the quotient of two totals. ``step_low`` and ``step_high`` are
    the lowest and highest of the rounds.
    """
    first = before = next(iter(speeds.values()))
    rows: list[dict] = []
    for name, mine in speeds.items():
        total = spread([one / usual for one, usual in zip(mine, first, strict=True)])
        steps = [one / other for one, other in zip(mine, before, strict=True)]
        step = total["median"] / (rows[-1]["times"]["median"] if rows else 1.0)
        rows.append({"name": name, "speed": spread(mine), "times": total, "step": step})
        rows[-1] |= {"step_low": min(steps), "step_high": max(steps)}
        before = mine
    return rows


def tell_factors(rows: list[dict]) -> str:
    """The waterfall in words: the whole, the steps that gain in every round, and those that do not."""
    times = rows[-1]["times"]
    gained = sorted((row for row in rows[1:] if row["step_low"] > 1), key=lambda row: -row["step"])
    unclear = [row["name"] for row in rows[1:] if row["step_low"] <= 1 <= row["step_high"]]
    lost = [row["name"] for row in rows[1:] if row["step_high"] < 1]
    lines = [
        f"All together: {times['median']:.1f} times the speed of the usual way "
        f"({times['low']:.1f} to {times['high']:.1f} in {times['rounds']} rounds)."
    ]
    if gained:
        steps_told = [f"{row['name']} (x {row['step']:.2f})" for row in gained]
        lines.append(f"Faster in every round: {', '.join(steps_told)}.")
    if unclear:
        lines.append(f"Now faster, now slower, so no gain that one can see: {', '.join(unclear)}.")
    if lost:
        lines.append(f"Slower in every round, here: {', '.join(lost)}.")
    return "\n".join(lines)


def _best(found):
    """The type whose peak counts: bf16, or fp32 on a machine that is not fast at bf16."""
    return "bf16" if "bf16" in found["peak"] else "fp32"


def sample_batches(lengths: np.ndarray, size: int, count: int) -> list[np.ndarray]:
    """``count`` batches out of all length-sorted ones, evenly spread from long to short: an epoch in small."""
    batches = length_sorted_batches(lengths, size)
    whole = [batch for batch in batches if len(batch) == size]
    if not whole:
        raise CourseError(f"The bench needs at least {size} reviews; here are {len(lengths)}.")
    picks = (np.arange(count) + 0.5) * len(whole) / count
    return [whole[i] for i in sorted({int(pick) for pick in picks})]


def here(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The result of ``work``, done in this process."""
    return work(*args, **named)


def apart(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The result of ``work``, done in a process of its own that has the libraries loaded and has computed nothing yet.

    Memory that a process has freed makes its next tensors cheap: of two contenders in one process the second would profit
    from the first. ``work`` and its arguments must be picklable. Raises CourseError if the process dies.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    with ProcessPoolExecutor(1, mp_context=_fresh_processes()) as pool:
        try:
            return pool.submit(work, *args, **named).result()
        except BrokenProcessPool:
            raise CourseError(
                "A measurement's process was killed, most likely for want of memory; close other programs and start again."
            ) from None


@cache
def _fresh_processes():
    """Processes that start as copies of one that has done nothing but import (where the system cannot: as new ones)."""
    import multiprocessing

    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetuning.training", "transformers.models.t5.modeling_t5"])
    return context


def _take_turns(measure, contenders, rounds, say, **settings):
    """Every contender once per round: a dict of name -> what ``measure`` found, one dict per round."""
    found: dict[str, list[dict]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, contender in contenders.items():
            found[name].append(measure(contender, **settings))
            say(f"round {turn + 1} of {rounds}: {name:42} {found[name][-1]['speed']:8.2f} reviews/s")
    return found


def speeds(found: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Reviews per second of each contender, one number per round."""
    return {name: [one["speed"] for one in rounds] for name, rounds in found.items()}


def train_contenders(
    make_model: Callable[[], T5ForConditionalGeneration],
    contenders: dict[str, Recipe],
    rows: recipes.Rows,
    labels: Sequence[int],
    answers: recipes.Rows,
    limit: int,
    *,
    rounds: int,
    batches: int,
    batch_size: int = BATCH,
    do: Callable[..., Any] = here,
    say: Callable[[str], None] = print,
) -> dict[str, list[dict]]:
    """What ``time_training`` finds for each recipe, in turn: a dict of name -> one dict per round. Used in lesson 03, too.

    ``do``: ``here``, or ``apart`` for a process of its own each time.
    """
    return _take_turns(
        partial(do, time_training), contenders, rounds, say, make_model=make_model, rows=rows, labels=labels, answers=answers, limit=limit,
        batches=batches, batch_size=batch_size,
    )  # fmt: skip


def time_training(
    recipe: Recipe,
    *,
    make_model: Callable[[], T5ForConditionalGeneration],
    rows: recipes.Rows,
    labels: Sequence[int],
    answers: recipes.Rows,
    limit: int,
    batches: int,
    batch_size: int,
) -> dict[str, Any]:
    """Reviews per second of training by ``recipe`` (``speed``), and the ``seconds`` and ``widths`` of its batches.

    The recipe that pads everything to ``limit`` is timed on one random batch, as its batches are all alike; the others on
    ``batches`` batches from long to short.
    """
    chosen = [np.random.default_rng(1).permutation(len(rows))[:batch_size]]
    if recipe.grouped:
        chosen = sample_batches(np.array([len(row) for row in rows]), batch_size, batches)
    pairs = [([rows[i] for i in batch], [labels[i] for i in batch]) for batch in chosen]
    seconds = Training(make_model(), recipe, answers, limit).seconds(pairs)
    widths = [padded(some)[0].shape[1] if recipe.grouped else limit for some, _ in pairs]
    return {"speed": sum(map(len, chosen)) / seconds.sum(), "seconds": seconds.tolist(), "widths": widths}


def predict_contenders(
    make_model: Callable[[], T5ForConditionalGeneration],
    contenders: dict[str, Way],
    rows: recipes.Rows,
    words: Sequence[int],
    limit: int,
    *,
    rounds: int,
    do: Callable[..., Any] = here,
    say: Callable[[str], None] = print,
) -> dict[str, list[dict]]:
    """What ``time_prediction`` finds for each way, in turn: a dict of name -> one dict per round. Used in lesson 03, too.

    ``do``: as in ``train_contenders``.
    """
    return _take_turns(
        partial(do, time_prediction), contenders, rounds, say, make_model=make_model, rows=rows, words=words, limit=limit
    )  # fmt: skip


def time_prediction(
    way: Way,
    *,
    make_model: Callable[[], T5ForConditionalGeneration],
    rows: recipes.Rows,
    words: Sequence[int],
    limit: int,
    profiled: bool = False,
) -> dict[str, Any]:
    """Reviews per second of answering all ``rows`` (``speed``), the ``logits``, shape (reviews, 2), and what generate wrote.

    ``profiled``: also the share of each kind of operator, from one more time.
    """
    model = make_model().eval()
    written: list[int] = []
    answer = recipes.answer_by(way, model, words, limit, written)
    batches = recipes.prediction_batches(way, [len(row) for row in rows], BATCH)
    with recipes.memory_kept(way.keep_memory):
        logits, seconds = recipes.predict(answer, rows, batches)
        shares = operator_profile(partial(recipes.predict, answer, rows, batches)) if profiled else {}
    tokens = float(np.mean(written)) if written else 1.0
    return {"speed": len(rows) / seconds, "logits": logits, "tokens_written": tokens, "profile": shares}


def operator_profile(work: Callable[[], Any]) -> dict[str, float]:
    """Where the time of ``work`` goes: a dict of class of operators -> share, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    shares: dict[str, float] = {}
    for event in found.key_averages():
        name = event.key.split("::")[-1].lower()
        kind = next((kind for kind, pattern in OPERATIONS if re.search(pattern, name)), "the rest")
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: micro / total for kind, micro in sorted(shares.items(), key=lambda item: -item[1])}


def growth_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """The exponent b of seconds = a * size^b by least squares on the logarithms, with its standard error (None for two sizes)."""
    x, y = np.log(sizes), np.log(seconds)
    slope, offset = np.polyfit(x, y, 1)
    left = y - slope * x - offset
    error = np.sqrt((left**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum()) if len(x) > 2 else None
    return {"exponent": slope, "standard_error": error, "sizes": list(sizes), "seconds": list(seconds)}


def profile_training(
    make_model: Callable[[], T5ForConditionalGeneration],
    recipe: Recipe,
    *,
    pair: tuple[recipes.Rows, Sequence[int]],
    answers: recipes.Rows,
    limit: int,
) -> dict[str, float]:
    """The ``operator_profile`` of one step by ``recipe`` on a batch of (rows, labels)."""
    training = Training(make_model(), recipe, answers, limit)
    with recipes.memory_kept(recipe.keep_memory):
        training.step(*pair)
        return operator_profile(partial(training.step, *pair))


class Bench:
    """One run of the bench: its settings, what was measured so far, and the folder it is kept in."""

    def __init__(self, settings: Profile, rounds: int, quick: bool) -> None:
        self.settings, self.rounds, self.quick = settings, 1 if quick else rounds, quick
        self.do = here if quick else apart
        self.shipped = settings.name == "pocket"
        # pocket T5 as shipped, or a T5 of random weights: speed does not hang on what the weights are
        self.make_model = partial(load_model, settings, from_scratch=not self.shipped, dropout=SHIPPED_DROPOUT)
        self.folder = runs_folder() / "bench"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.perf_counter()
        self.found: dict[str, Any] = {
            "machine": this_machine(),
            "versions": versions(),
            "model": describe(settings.model) if self.shipped else f"t5-{settings.name}'s shape, random weights",
            "reviews": describe(settings.reviews),
            "limit": settings.max_length,
            "rounds": self.rounds,
            "seed": settings.seed,
        }

    def say(self, line: str) -> None:
        """A line of progress with the minutes so far."""
        print(f"[{(time.perf_counter() - self.began) / 60:5.1f} min] {line}", flush=True)

    def keep(self, part: str, value: Any) -> None:
        """Add a part to ``bench.json`` at once, so that a run that is stopped leaves what it has."""
        self.found[part] = value
        write_atomically(self.folder / "bench.json", json.dumps(self.found, indent=1, default=float) + "\n")

    def load(self) -> None:
        """Reviews, token ids and the label words."""
        from datasets import disable_progress_bars

        disable_progress_bars()
        from finetuning.data import clean_text, load_reviews

        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.settings)
        self.splits: DatasetDict = load_reviews(self.settings.reviews, self.settings.reviews_revision)
        some = self.splits["train"].shuffle(seed=self.settings.seed)
        some = some.select(range(min(1000, len(some))))
        self.labels = list(some["label"])
        texts = [clean_text(text) for text in some["text"]]
        self.rows = token_rows(self.tokenizer, texts, prompt=self.settings.prompt, max_length=self.settings.max_length)
        self.lengths = np.array([len(row) for row in self.rows])
        self.config = self.make_model().config
        self.words = label_ids(self.tokenizer)
        self.answers = self.tokenizer(list(LABEL_WORDS))["input_ids"]
        self.limit = int(self.lengths.max())  # the usual recipe pads to the longest of the reviews

    def peaks(self) -> None:
        """The machine's matrix products: floating-point operations per second by type."""
        import torch

        config = self.config
        shapes = [(2048, 2048, 2048), (4096, config.d_model, config.d_ff), (4096, config.d_ff, config.d_model)]
        kinds = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if bf16_is_fast() else {})
        peaks = {name: recipes.matmul_peak(kind, shapes) for name, kind in kinds.items()}
        if recipes.has_int8():
            peaks["int8"] = recipes.matmul_peak(torch.int8, shapes)
        self.keep("peak", peaks)
        self.say(", ".join(f"{name} peak {value / 1e9:.0f} GFLOP/s" for name, value in self.found["peak"].items()))

    def training(self) -> None:
        """The ladder of training, what was tried beside it, and the share of the peak."""
        ladder = recipes.training_recipes()
        ours = recipes.our_recipe()
        beside = {"tried: SDPA attention": replace(ours, attention="sdpa")}
        if ours.bf16:  # not in the recipe, because the Trainer's checkpoints would not hold the copies
            beside["tried: bf16 weights, fp32 copies for AdamW"] = replace(ours, bf16=False, bf16_weights=True)
        found = train_contenders(
            self.make_model, ladder | beside, self.rows, self.labels, self.answers, self.limit, rounds=self.rounds,
            batches=2 if self.quick else 3, do=self.do, say=lambda line: self.say(f"training, {line}"),
        )  # fmt: skip
        took = speeds(found)
        longest = sample_batches(self.lengths, BATCH, 2)[0]
        pair = [self.rows[i] for i in longest], [self.labels[i] for i in longest]
        profile = partial(self.do, profile_training, self.make_model, pair=pair, answers=self.answers, limit=self.limit)
        self.keep(
            "training",
            {
                "factors": factors({name: took[name] for name in ladder}),
                "beside": factors({name: took[name] for name in ("usual recipe", *beside)})[1:],
                "reviews_per_round": {name: len(rounds[0]["widths"]) * BATCH for name, rounds in found.items()},
                "share_of_peak": {name: self._share_of_peak(found[name]) for name in (list(ladder)[-1], *beside)},
                "profile": {"usual recipe": profile(ladder["usual recipe"]), "ours": profile(ours)},
            },
        )

    def _share_of_peak(self, rounds):
        """Operations per second on the wide batches over the peak of matrix products, update of the weights included."""
        shares = []
        for one in rounds:
            wide = [(width, taken) for width, taken in zip(one["widths"], one["seconds"], strict=True) if width > LONG]
            if wide:
                needed = sum(
                    3 * BATCH * recipes.forward_flops(self.config, width, len(self.answers[0])) for width, _ in wide
                )
                shares.append(needed / sum(taken for _, taken in wide) / self.found["peak"][_best(self.found)])
        return spread(shares) if shares else None

    def prediction(self) -> None:
        """The ladder of prediction, on a model that has learnt to answer in one word, as a fine-tuned one has."""
        model = self.make_model()
        training = Training(model, recipes.our_recipe(), self.answers, self.limit)
        for batch in epoch_batches(self.lengths[:160], BATCH, True, 1)[:10]:
            training.step([self.rows[i][-64:] for i in batch], [self.labels[i] for i in batch])
        count = min(len(self.rows), 32 if self.quick else 96)
        rows, ways = self.rows[:count], recipes.prediction_ways(model.config)
        last = list(ways)[-1]
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            make_model = partial(
                load_model, replace(self.settings, model=folder, model_revision=None), dropout=SHIPPED_DROPOUT
            )
            found = predict_contenders(
                make_model, ways, rows, self.words, self.limit, rounds=self.rounds, do=self.do,
                say=lambda line: self.say(f"prediction, {line}"),
            )  # fmt: skip
            shares = self.do(
                time_prediction,
                ways[last],
                make_model=make_model,
                rows=rows,
                words=self.words,
                limit=self.limit,
                profiled=True,
            )["profile"]
        took = speeds(found)
        first = {name: rounds[0] for name, rounds in found.items()}
        usual = first["usual: generate"]
        needed = sum(recipes.forward_flops(model.config, len(row), 1) for row in rows) / count
        usual_needed = recipes.forward_flops(model.config, self.limit, usual["tokens_written"])
        speed, usual_speed = (statistics.median(took[name]) for name in (last, "usual: generate"))
        self.keep(
            "prediction",
            {
                "factors": factors(took),
                "reviews_per_round": count,
                "tokens_written_by_generate": usual["tokens_written"],
                "same_answers": {
                    name: float(np.mean(one["logits"].argmax(1) == usual["logits"].argmax(1)))
                    for name, one in first.items()
                },
                "flops_per_review": {"usual": usual_needed, "without padding": needed},
                "share_of_peak": needed * speed / self.found["peak"][_best(self.found)],
                "usual_share_of_fp32_peak": usual_needed * usual_speed / self.found["peak"]["fp32"],
                "ten_times_would_need": 10 * usual_speed * needed,
                "profile": {last: shares},
            },
        )

    def accuracy(self, seeds: int = 5) -> None:
        """Pocket T5 fine-tuned by the usual recipe and by ours, paired over seeds, and in 8 bits; finished seeds are kept."""
        pocket = choose()
        kept = self.folder / "accuracy.json"
        of_what = f"{recipes.training_recipes()} {pocket}"
        told = json.loads(kept.read_text()) if kept.exists() else {}
        done = told["seeds"] if told.get("of") == of_what else {}
        for seed in range(1, seeds + 1):
            if str(seed) not in done:
                done[str(seed)] = accuracy_of_a_seed(pocket, seed, self.say)
                write_atomically(kept, json.dumps({"of": of_what, "seeds": done}, indent=1))
        pairs = list(done.values())
        gain = np.array([pair["ours"] - pair["usual"] for pair in pairs])
        self.keep(
            "accuracy",
            {
                "model": describe(pocket.model),
                "n_test": pairs[0]["n_test"],
                "seeds": seeds,
                **{name: float(np.mean([pair[name] for pair in pairs])) for name in ("usual", "ours", "int8")},
                "ours_minus_usual": float(gain.mean()),
                "standard_error": float(gain.std(ddof=1) / np.sqrt(len(gain))),
                "same_answers_int8": float(np.mean([pair["same_answers_int8"] for pair in pairs])),
                "by_seed": done,
            },
        )

    def growth(self) -> None:
        """Seconds of a training step against reviews, tokens and parameters, and of the same reviews against ranks."""
        import torch
        from transformers import T5Config, T5ForConditionalGeneration

        ours = recipes.our_recipe()
        rng = np.random.default_rng(1)

        def seconds(model, reviews, tokens):
            rows = rng.integers(5, min(30000, model.config.vocab_size), (reviews, tokens)).tolist()
            return float(np.median(Training(model, ours, self.answers, tokens).seconds([(rows, [0] * reviews)] * 3)))

        def fit(name, sizes, made):
            self.say(
                f"growth with {name}: {', '.join(f'{size:,.0f}: {taken:.3f} s' for size, taken in zip(sizes, made, strict=True))}"
            )
            return growth_exponent(sizes, made)

        model, short = self.make_model(), self.quick
        sizes = (4, 8, 16) if short else (4, 8, 16, 32)
        found = {"reviews": fit("reviews", sizes, [seconds(model, size, 128) for size in sizes])}
        sizes = (64, 128, 256) if short else (64, 128, 256, 512)
        found["tokens"] = fit("tokens", sizes, [seconds(model, 8, size) for size in sizes])
        counts, taken = [], []
        for name in ("tiny", "mini") if short else SHAPES:
            torch.manual_seed(1)
            other = T5ForConditionalGeneration(T5Config(**SHAPES[name]))
            counts.append(other.num_parameters() - other.shared.weight.numel())
            taken.append(seconds(other, 4, 128 if short else 256))
        found["parameters"] = fit("parameters outside the embedding", counts, taken)
        if not short and (runs_folder() / "pocket" / "data" / "reviews").is_dir():  # else make run has not been here
            ranks = (1, 2)
            found["ranks"] = fit("ranks", ranks, [seconds_by_ranks(count) for count in ranks])
        self.keep("growth", found)

    def data_path(self) -> None:
        """Cleaning and tokenizing reviews: a loop over them against ``map``, and TF-IDF for comparison."""
        from datasets import Dataset, concatenate_datasets

        from finetuning.baselines import tfidf_classifier
        from finetuning.data import clean_text

        texts = concatenate_datasets([self.splits[name].select_columns(["text", "label"]) for name in self.splits])
        texts = texts.select(range(min(len(texts), 400 if self.quick else 50_000)))
        tokenizer, prompt, limit = self.tokenizer, self.settings.prompt, self.settings.max_length

        def tokenize(texts):  # without self, as ``map`` hashes the function with all it refers to
            return token_rows(tokenizer, [clean_text(text) for text in texts], prompt=prompt, max_length=limit)

        def many(batch):
            return {"input_ids": tokenize(batch["text"])}

        def timed(work):
            began = time.perf_counter()
            work()
            return len(texts) / (time.perf_counter() - began)

        with tempfile.TemporaryDirectory() as folder:
            Dataset.from_dict({"text": texts["text"], "label": texts["label"]}).save_to_disk(folder)
            stored = Dataset.load_from_disk(folder)
            speeds = {"a loop, review by review": timed(lambda: [tokenize([text]) for text in stored["text"]])}
            for processes in (1, 2):
                name = f"map, batched, {processes} process{'es' if processes > 1 else ''}"
                share = {"num_proc": processes if processes > 1 else None, "load_from_cache_file": False}
                speeds[name] = timed(lambda share=share: stored.map(many, batched=True, **share))
            speeds["map again, from the Arrow cache"] = timed(lambda: stored.map(many, batched=True))
        train = self.splits["train"]
        train = train.select(range(min(len(train), 400 if self.quick else 25_000)))
        began = time.perf_counter()
        tfidf_classifier().fit(train["text"], train["label"])
        tfidf = {"reviews": len(train), "seconds": time.perf_counter() - began}
        self.keep("data", {"reviews": len(texts), "reviews_per_second": speeds, "tfidf_training": tfidf})
        for name, speed in speeds.items():
            self.say(f"data: {name:34} {speed:10,.0f} reviews/s")

    def start_up(self) -> None:
        """Seconds of imports in fresh processes, of a kernel's start, and to the first training step."""
        names = (
            "torch",
            "transformers.trainer",
            "deepspeed",
            "evaluate",
            "datasets",
            "sklearn.linear_model",
            "finetuning",
        )
        first_step = (
            "from finetuning.profiles import choose\nfrom finetuning.training import load_model\n"
            "from finetuning.speed.recipes import Training, our_recipe\n"
            "Training(load_model(choose()), our_recipe(), [[5, 1], [6, 1]], 64).step([[5] * 64] * 16, [0, 1] * 8)"
        )
        seconds: dict[str, list[float]] = {}
        for _ in range(1 if self.quick else 3):
            for name in names[:1] if self.quick else names:
                seconds.setdefault(f"import {name}", []).append(_seconds_of(f"import {name}"))
            seconds.setdefault("a kernel's start", []).append(_kernel_start())
            seconds.setdefault("to pocket T5's first training step", []).append(_seconds_of(first_step))
        self.keep("start_up", {name: spread(taken) for name, taken in seconds.items()})
        for name, taken in seconds.items():
            self.say(f"start-up: {name:36} {statistics.median(taken):6.2f} s")

    def course(self) -> None:
        """Seconds per lesson of the last whole run on this machine, by what its cells do."""
        found = lesson_seconds("pocket")
        self.keep("course", found)
        seconds = ", ".join(f"{name} {sum(kinds.values()):.0f} s" for name, kinds in found.items())
        self.say(f"course: {seconds or 'no finished run to read; make run makes one'}")

    def run(self) -> None:
        """All parts, in order, then the table and the figures."""
        self.load()
        parts = [self.peaks, self.training, self.prediction, self.growth, self.data_path, self.start_up, self.course]
        if not self.quick:
            parts.append(self.accuracy)
        for part in parts:
            part()
        self.keep("minutes", (time.perf_counter() - self.began) / 60)
        text = table(self.found)
        write_atomically(self.folder / "bench.md", text)
        figures(self.found, self.folder)
        print(text)


def accuracy_of_a_seed(pocket: Profile, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Test accuracy of pocket T5 fine-tuned by the usual recipe, by ours, and of ours with the encoder in 8 bits.

    Both trainings see the same reviews with the same rate, schedule and epochs, and the same seed.
    """
    import torch

    from finetuning.data import clean, load_reviews

    splits = clean(load_reviews(pocket.reviews))
    tokenizer = load_tokenizer(pocket)
    rows = {
        name: token_rows(tokenizer, splits[name]["text"], prompt=pocket.prompt, max_length=pocket.max_length)
        for name in ("train", "test")
    }
    labels, truth = list(splits["train"]["label"]), np.array(splits["test"]["label"])
    words, answers = label_ids(tokenizer), tokenizer(list(LABEL_WORDS))["input_ids"]
    lengths, ends = [len(row) for row in rows["train"]], [len(row) for row in rows["test"]]
    result: dict[str, Any] = {"n_test": len(truth), "n_train": len(labels)}
    for name, recipe in (("usual", Recipe()), ("ours", recipes.our_recipe())):
        torch.manual_seed(seed)
        model = load_model(pocket, dropout=SHIPPED_DROPOUT)
        steps = -(-len(labels) // pocket.batch_size) * pocket.epochs
        training = Training(model, recipe, answers, max(lengths), learning_rate=pocket.learning_rate, steps=steps)
        began = time.perf_counter()
        for epoch in range(pocket.epochs):
            for batch in epoch_batches(lengths, pocket.batch_size, recipe.grouped, 100 * seed + epoch):
                training.step([rows["train"][i] for i in batch], [labels[i] for i in batch])
        model.eval()
        logits, _ = recipes.predict(by_one_step(model, words), rows["test"], length_sorted_batches(ends, 64))
        result[name] = float(np.mean(logits.argmax(1) == truth))
        say(f"accuracy, seed {seed}: {name:5} {result[name]:.4f} in {time.perf_counter() - began:.0f} s")
    result["int8"], result["same_answers_int8"] = result["ours"], 1.0
    if way := recipes.prediction_ways(model.config).get("8-bit integers"):
        answer = recipes.answer_by(way, model, words, max(ends))
        eight, _ = recipes.predict(answer, rows["test"], recipes.prediction_batches(way, ends, BATCH))
        result["int8"] = float(np.mean(eight.argmax(1) == truth))
        result["same_answers_int8"] = float(np.mean(eight.argmax(1) == logits.argmax(1)))
    return result


def seconds_by_ranks(ranks: int) -> float:
    """Seconds of a DeepSpeed step (stage 0, t5-tiny's shape) on 16 reviews shared out over so many ranks of this machine."""
    from finetuning.distributed import launch
    from finetuning.workspace import Workspace

    workspace = Workspace("pocket", choose())
    one = jobs.training(
        workspace, f"bench_{ranks}", deepspeed="zero0", steps=6, micro_batch=8 // ranks, accumulation=2, shape=SHAPES["tiny"]
    )  # fmt: skip
    return float(np.median([rank["seconds_per_step"] for rank in launch.run(one, ranks=ranks)]))


def _seconds_of(code):
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - began


def _kernel_start():
    from jupyter_client.manager import start_new_kernel

    began = time.perf_counter()
    manager, client = start_new_kernel()
    taken = time.perf_counter() - began
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return taken


KINDS = (  # what a cell is about, by what stands in it; the first that fits counts
    ("training", r"\.train\(|launch\.run|short_training|\.step\(\)|train_contenders"),
    ("plots", r"plots\.plot"),
    ("imports", r"^(from|import) "),
    ("data", r"load_reviews|load_from_disk|\.map\(|data\.|find_duplicates"),
    ("evaluation", r"score_labels|measure\(|verdict|predict|generate"),
)


def lesson_seconds(run: str) -> dict[str, dict[str, float]]:
    """Seconds of each lesson of a finished run by kind of cell: a dict of lesson -> kind -> seconds ({} without such a run)."""
    found: dict[str, dict[str, float]] = {}
    for lesson in LESSONS:
        executed = executed_copy(run, lesson)
        if not execution_mark(executed):
            return {}
        kinds = dict.fromkeys([*(kind for kind, _ in KINDS), "the rest"], 0.0)
        for cell in executed["cells"]:
            source = "".join(cell["source"])
            kind = next((kind for kind, pattern in KINDS if re.search(pattern, source, re.MULTILINE)), "the rest")
            kinds[kind] += (cell["metadata"].get("papermill") or {}).get("duration") or 0.0
        whole = executed["metadata"]["papermill"]["duration"]
        kinds["kernel start and saving"] = max(0.0, whole - sum(kinds.values()))
        found[lesson] = kinds
    return found


def _ladder(rows, unit="reviews/s"):
    lines = [f"| change | {unit} (lowest-highest) | step | times the usual |", "|---|---|---|---|"]
    for row in rows:
        speed, times = row["speed"], row["times"]
        lines.append(
            f"| {row['name']} | {speed['median']:.2f} ({speed['low']:.2f}-{speed['high']:.2f}) "
            f"| {'-' if row['name'].startswith('tried') else 'x ' + format(row['step'], '.2f')} | {times['median']:.1f} ({times['low']:.1f}-{times['high']:.1f}) |"
        )
    return lines


def _shares(shares):
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.005)


def table(found: dict) -> str:
    """Everything that was measured, as Markdown."""
    machine, training, prediction = found["machine"], found["training"], found["prediction"]
    kept = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    peaks = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in found["peak"].items())
    lines = [
        "# Speed, measured side by side",
        "",
        f"{found['model']}, on {found['reviews']} cut at {found['limit']} tokens; {machine['gpu'] or machine['processor']}, "
        f"{machine['cores']} cores, {machine['system']}; {kept}. Medians of {found['rounds']} rounds, seed {found['seed']}. "
        f"Peak of matrix products: {peaks}.",
        "",
        "## Training",
        *_ladder(training["factors"]),
        *(line for line in _ladder(training["beside"])[2:]),
        "",
    ]
    told = [
        f"{name} {share['median']:.0%} ({share['low']:.0%}-{share['high']:.0%})"
        for name, share in training["share_of_peak"].items()
        if share
    ]
    if told:
        lines += [
            f"Share of the {_best(found)} peak on batches over {LONG} tokens, padding counted: {', '.join(told)}.",
            "",
        ]
    lines += [f"Time by operator, {name}: {_shares(shares)}." for name, shares in training["profile"].items()]
    lines += ["", "## Prediction", *_ladder(prediction["factors"]), ""]
    lines.append(
        f"`generate` wrote {prediction['tokens_written_by_generate']:.1f} tokens per review. Answers as the usual way gives them: "
        + ", ".join(f"{name} {share:.0%}" for name, share in prediction["same_answers"].items())
        + f". The last way computes at {prediction['share_of_peak']:.0%} of the {_best(found)} peak, counted as the unpacked model would."
    )
    lines.append(
        f"The usual way computes at {prediction['usual_share_of_fp32_peak']:.0%} of the fp32 peak. Ten times its speed, without padding, "
        f"would need {prediction['ten_times_would_need'] / 1e9:.0f} GFLOP/s."
    )
    lines += [f"Time by operator, {name}: {_shares(shares)}." for name, shares in prediction["profile"].items()]
    if accuracy := found.get("accuracy"):
        lines += [
            "",
            "## Accuracy",
            f"{accuracy['model']} fine-tuned on Pocket Reviews, {accuracy['n_test']} test reviews, mean of {accuracy['seeds']} seeds: "
            f"usual recipe {accuracy['usual']:.4f}, ours {accuracy['ours']:.4f}, difference {accuracy['ours_minus_usual']:+.4f} "
            f"(standard error {accuracy['standard_error']:.4f}, paired by seed); predicted in 8 bits {accuracy['int8']:.4f}, "
            f"{accuracy['same_answers_int8']:.2%} of the answers as before.",
        ]
    lines += ["", "## How cost grows", "| with | exponent | seconds |", "|---|---|---|"]
    for name, fit in found["growth"].items():
        pairs = ", ".join(f"{size:,.0f}: {taken:.3f}" for size, taken in zip(fit["sizes"], fit["seconds"], strict=True))
        error = "two sizes only" if fit["standard_error"] is None else f"standard error {fit['standard_error']:.2f}"
        lines.append(f"| {name} | {fit['exponent']:.2f} ({error}) | {pairs} |")
    data = found["data"]
    lines += ["", f"## Data: cleaning and tokenizing {data['reviews']:,} reviews", "| way | reviews/s |", "|---|---|"]
    lines += [f"| {name} | {speed:,.0f} |" for name, speed in data["reviews_per_second"].items()]
    tfidf = data["tfidf_training"]
    lines += ["", f"TF-IDF and logistic regression learn {tfidf['reviews']:,} reviews in {tfidf['seconds']:.1f} s."]
    lines += ["", "## Start-up", "| what | seconds (lowest-highest) |", "|---|---|"]
    lines += [
        f"| {name} | {taken['median']:.2f} ({taken['low']:.2f}-{taken['high']:.2f}) |"
        for name, taken in found["start_up"].items()
    ]
    if course := found["course"]:
        kinds = list(next(iter(course.values())))
        lines += [
            "",
            "## The headless course",
            f"| lesson | seconds | {' | '.join(kinds)} |",
            "|---|---|" + "---|" * len(kinds),
        ]
        whole = {kind: sum(mine[kind] for mine in course.values()) for kind in kinds}
        for name, mine in {**course, "all": whole}.items():
            total = sum(mine.values())
            lines.append(
                f"| {name} | {total:.0f} | " + " | ".join(f"{mine[kind] / total:.0%}" for kind in kinds) + " |"
            )
    return "\n".join(lines) + f"\n\nThe bench took {found['minutes']:.0f} minutes.\n"


def figures(found: dict, folder: Path) -> None:
    """The waterfalls and the growth curves as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from finetuning import plots

    for part in ("training", "prediction"):
        fig = plots.plot_factors(found[part]["factors"], f"Where the speed of {part} comes from")
        for kind in ("png", "svg"):
            fig.savefig(folder / f"{part}.{kind}")
    fig = plots.plot_growth(found["growth"])
    for kind in ("png", "svg"):
        fig.savefig(folder / f"growth.{kind}")


def main(arguments: list[str]) -> None:
    """Read the command line and run the bench."""
    parser = argparse.ArgumentParser(prog="python -m authoring bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--profile", default="pocket", help="model and reviews (default: %(default)s); beyond pocket, random weights"
    )
    parser.add_argument("--reviews", default="", help="other reviews: a file, a folder or a Hub id")
    parser.add_argument(
        "--base-model", default="", help="a folder or Hub id with another T5's configuration and tokenizer"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="one round on few reviews, without the trainings for accuracy"
    )
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        raise CourseError("--rounds must be at least 1.")
    settings = choose(asked.profile, reviews=asked.reviews, base_model=asked.base_model)
    Bench(settings, asked.rounds, asked.quick).run()
