"""Measure the course's speed claims, side by side in one run: ``make bench`` (``python -m authoring bench``).

Writes ``bench.json``, ``bench.md`` and figures to ``runs/bench/``. Every contender runs once per round, in turn and in
a process of its own, so that what disturbs the machine disturbs all of them and none inherits another's memory; a
number is the median over the rounds, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from authoring.bench.accuracy import SHIPPED_DROPOUT, accuracy_over_seeds, our_recipe
from authoring.bench.data_path import data_path
from authoring.bench.flops import forward_flops, matmul_peak, tokens_written
from authoring.bench.front_door import FEW, front_door
from authoring.bench.growth import SHAPES, growth_exponent, seconds_by_ranks
from authoring.bench.operators import profile_prediction, profile_training
from authoring.bench.processes import in_own_process
from authoring.bench.report import LONG, peak_type, save_figures, table
from authoring.bench.start_up import kernel_start_seconds, seconds_by_kind, seconds_of
from finetuning.batching import epoch_batches, token_rows
from finetuning.data import label_words, load_reviews
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.labels import label_tokens
from finetuning.machine import bf16_is_fast, this_machine, versions
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import Profile, choose, describe
from finetuning.reviews import clean_text
from finetuning.speed import int8, prediction, recipes
from finetuning.speed.contenders import (
    BATCH,
    factors,
    sample_batches,
    speeds,
    spread,
    take_turns,
    time_prediction,
    time_training,
)
from finetuning.speed.recipes import Training
from finetuning.workspace import runs_folder

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

FRONT_DOOR_TOKENS = 160_000  # of all reviews that a command labels


class Bench:
    """One run of the bench: its settings, what was measured so far, and the folder it is kept in."""

    def __init__(self, settings: Profile, rounds: int, quick: bool, full: bool) -> None:
        self.settings, self.rounds, self.quick, self.full = settings, 1 if quick else rounds, quick, full
        self.shipped = settings.name == "pocket"
        # pocket T5 as shipped, or a T5 of random weights: speed does not hang on what the weights are
        self.make_model = partial(load_model, settings, from_scratch=not self.shipped, dropout=SHIPPED_DROPOUT)
        self.folder = runs_folder() / "bench"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.perf_counter()
        self.measured: dict[str, Any] = {
            "machine": this_machine(),
            "versions": versions(),
            "model": describe(settings.model) if self.shipped else f"t5-{settings.name}'s shape, random weights",
            "reviews": describe(settings.reviews),
            "limit": settings.max_length,
            "rounds": self.rounds,
            "seed": settings.seed,
        }

    def apart(self, work: Callable) -> Callable:
        """``work``, made to run in a process of its own each time; a quick run does it in this one."""
        return work if self.quick else partial(in_own_process, work)

    def say(self, line: str) -> None:
        """A line of progress with the minutes so far."""
        print(f"[{(time.perf_counter() - self.began) / 60:5.1f} min] {line}", flush=True)

    def keep(self, part: str, value: Any) -> None:
        """Add a part to ``bench.json`` at once, so that a run that is stopped leaves what it has."""
        self.measured[part] = value
        write_atomically(self.folder / "bench.json", json.dumps(self.measured, indent=1, default=float) + "\n")

    def load(self) -> None:
        """Reviews, token ids and the label words."""
        from datasets import disable_progress_bars

        disable_progress_bars()

        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.settings)
        self.splits: DatasetDict = load_reviews(self.settings.reviews, self.settings.reviews_revision)
        some = self.splits["train"].shuffle(seed=self.settings.seed)
        some = some.select(range(min(1000, len(some))))
        self.labels = list(some["label"])
        self.texts = [clean_text(text) for text in some["text"]]
        self.rows = token_rows(
            self.tokenizer, self.texts, prompt=self.settings.prompt, max_length=self.settings.max_length
        )
        self.lengths = np.array([len(row) for row in self.rows])
        self.config = self.make_model().config
        self.answers = label_tokens(self.tokenizer, label_words(self.splits["train"]))
        self.words = [answer[0] for answer in self.answers]
        self.limit = int(self.lengths.max())  # the usual recipe pads to the longest of the reviews

    def peaks(self) -> None:
        """The machine's matrix products: floating-point operations per second by type."""
        import torch

        config = self.config
        shapes = [(2048, 2048, 2048), (4096, config.d_model, config.d_ff), (4096, config.d_ff, config.d_model)]
        kinds = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if bf16_is_fast() else {})
        peaks = {name: matmul_peak(kind, shapes) for name, kind in kinds.items()}
        if int8.has_int8():
            peaks["int8"] = matmul_peak(torch.int8, shapes)
        self.keep("peak", peaks)
        self.say(", ".join(f"{name} peak {value / 1e9:.0f} GFLOP/s" for name, value in self.measured["peak"].items()))

    def training(self) -> None:
        """The ladder of training, what was tried beside it, and the share of the peak."""
        ladder = recipes.training_recipes()
        ours = our_recipe()
        beside = {"tried: SDPA attention": replace(ours, attention="sdpa")}
        measured = take_turns(
            self.apart(time_training), ladder | beside, rounds=self.rounds,
            say=lambda line: self.say(f"training, {line}"), make_model=self.make_model, rows=self.rows,
            labels=self.labels, answers=self.answers, limit=self.limit, batches=2 if self.quick else 3,
        )  # fmt: skip
        took = speeds(measured)
        longest = sample_batches(self.lengths, BATCH, 2)[0]
        pair = [self.rows[i] for i in longest], [self.labels[i] for i in longest]
        profile = partial(
            self.apart(profile_training), self.make_model, pair=pair, answers=self.answers, limit=self.limit
        )
        self.keep(
            "training",
            {
                "factors": factors({name: took[name] for name in ladder}),
                "beside": factors({name: took[name] for name in ("usual recipe", *beside)})[1:],
                "reviews_per_round": {name: len(rounds[0]["widths"]) * BATCH for name, rounds in measured.items()},
                "share_of_peak": {name: self._share_of_peak(measured[name]) for name in (list(ladder)[-1], *beside)},
                "profile": {"usual recipe": profile(ladder["usual recipe"]), "ours": profile(ours)},
            },
        )

    def _share_of_peak(self, rounds: list[dict]) -> dict[str, Any] | None:
        """Operations per second on the wide batches, update of the weights included, over the peak of products."""
        shares = []
        for turn in rounds:
            wide = [
                (width, taken) for width, taken in zip(turn["widths"], turn["seconds"], strict=True) if width > LONG
            ]
            if wide:
                needed = sum(3 * BATCH * forward_flops(self.config, width, len(self.answers[0])) for width, _ in wide)
                shares.append(
                    needed / sum(taken for _, taken in wide) / self.measured["peak"][peak_type(self.measured)]
                )
        return spread(shares) if shares else None

    def prediction(self) -> None:
        """The ladder of prediction and the commands, on a model that answers in one word, as a fine-tuned one does."""
        model = self.make_model()
        training = Training(model, our_recipe(), self.answers, self.limit)
        for batch in epoch_batches(self.lengths[:160], BATCH, True, 1)[:10]:
            training.step([self.rows[i][-64:] for i in batch], [self.labels[i] for i in batch])
        with tempfile.TemporaryDirectory() as runs:
            folder = Path(runs) / "front" / "models" / "trainer"
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            self._ladder_of_prediction(model, folder)
            most = 20 * FEW if self.quick else round(FRONT_DOOR_TOKENS / self.lengths.mean())
            found = front_door(
                self.settings, folder, self.texts, label_words(self.splits["train"]), most=most, rounds=self.rounds,
                say=self.say,
            )  # fmt: skip
        self.keep("front_door", found)

    def _ladder_of_prediction(self, model: T5ForConditionalGeneration, folder: Path) -> None:
        """The ladder on the model that lies in ``folder``, and the share of the peak."""
        count = min(len(self.rows), 32 if self.quick else 96)
        rows, ladder = self.rows[:count], prediction.prediction_recipes(model.config)
        last = list(ladder)[-1]
        saved = replace(self.settings, model=str(folder), model_revision=None)
        make_model = partial(load_model, saved, dropout=SHIPPED_DROPOUT)
        asked = {"rows": rows, "words": self.words, "limit": self.limit}
        measured = take_turns(
            self.apart(time_prediction), ladder, rounds=self.rounds,
            say=lambda line: self.say(f"prediction, {line}"), make_model=make_model, **asked,
        )  # fmt: skip
        shares = self.apart(profile_prediction)(make_model, ladder[last], **asked)
        took = speeds(measured)
        first = {name: rounds[0] for name, rounds in measured.items()}
        usual = first["usual: generate"]
        needed = sum(forward_flops(model.config, len(row), 1) for row in rows) / count
        written = tokens_written(model, rows, self.limit, BATCH)
        usual_needed = forward_flops(model.config, self.limit, written)
        speed, usual_speed = (statistics.median(took[name]) for name in (last, "usual: generate"))
        self.keep(
            "prediction",
            {
                "factors": factors(took),
                "reviews_per_round": count,
                "tokens_written_by_generate": written,
                "same_answers": {
                    name: float(np.mean(turn["logits"].argmax(1) == usual["logits"].argmax(1)))
                    for name, turn in first.items()
                },
                "flops_per_review": {"usual": usual_needed, "without padding": needed},
                "share_of_peak": needed * speed / self.measured["peak"][peak_type(self.measured)],
                "usual_share_of_fp32_peak": usual_needed * usual_speed / self.measured["peak"]["fp32"],
                "ten_times_would_need": 10 * usual_speed * needed,
                "profile": {last: shares},
            },
        )

    def accuracy(self) -> None:
        """Pocket T5 fine-tuned by the usual recipe and by ours, paired over five seeds, and in 8 bits."""
        self.keep("accuracy", accuracy_over_seeds(choose(), 5, self.folder / "accuracy.json", self.say))

    def growth(self) -> None:
        """Seconds of a training step against reviews, tokens and parameters, and of the same reviews against ranks."""
        import torch
        from transformers import T5Config, T5ForConditionalGeneration

        ours = our_recipe()
        rng = np.random.default_rng(1)

        def seconds(model: T5ForConditionalGeneration, reviews: int, tokens: int) -> float:
            rows = rng.integers(5, min(30000, model.config.vocab_size), (reviews, tokens)).tolist()
            return float(np.median(Training(model, ours, self.answers, tokens).seconds([(rows, [0] * reviews)] * 3)))

        def fit(name: str, sizes: Sequence[float], made: Sequence[float]) -> dict[str, Any]:
            self.say(
                f"growth with {name}: "
                f"{', '.join(f'{size:,.0f}: {taken:.3f} s' for size, taken in zip(sizes, made, strict=True))}"
            )
            return growth_exponent(sizes, made)

        model, short = self.make_model(), self.quick
        sizes = (4, 8, 16) if short else (4, 8, 16, 32)
        measured = {"reviews": fit("reviews", sizes, [seconds(model, size, 128) for size in sizes])}
        sizes = (64, 128, 256) if short else (64, 128, 256, 512)
        measured["tokens"] = fit("tokens", sizes, [seconds(model, 8, size) for size in sizes])
        counts, taken = [], []
        for name in ("tiny", "mini") if short else SHAPES:
            torch.manual_seed(1)
            other = T5ForConditionalGeneration(T5Config(**SHAPES[name]))
            counts.append(other.num_parameters() - other.shared.weight.numel())
            taken.append(seconds(other, 4, 128 if short else 256))
        measured["parameters"] = fit("parameters outside the embedding", counts, taken)
        if not short and (runs_folder() / "pocket" / "data" / "reviews").is_dir():  # else make run has not been here
            ranks = (1, 2)
            measured["ranks"] = fit("ranks", ranks, [seconds_by_ranks(count) for count in ranks])
        self.keep("growth", measured)

    def data_path(self) -> None:
        """Cleaning and tokenizing reviews, and TF-IDF for comparison."""
        measured = data_path(self.splits, self.tokenizer, self.settings, quick=self.quick)
        self.keep("data", measured)
        for name, speed in measured["reviews_per_second"].items():
            self.say(f"data: {name:34} {speed:10,.0f} reviews/s")

    def start_up(self) -> None:
        """Seconds of imports in fresh processes, of a kernel's start, and to the first training step."""
        libraries = ("torch", "transformers.trainer", "deepspeed", "evaluate", "datasets", "sklearn.linear_model")
        names = (*libraries, "finetuning")
        first_step = (
            "from finetuning.profiles import choose\nfrom finetuning.models import load_model\n"
            "from finetuning.speed.recipes import Training, training_recipes\n"
            "ours = list(training_recipes().values())[-1]\n"
            "Training(load_model(choose()), ours, [[5, 1], [6, 1]], 64).step([[5] * 64] * 16, [0, 1] * 8)"
        )
        seconds: dict[str, list[float]] = {}
        for _ in range(1 if self.quick else 3):
            for name in names[:1] if self.quick else names:
                seconds.setdefault(f"import {name}", []).append(seconds_of(f"import {name}"))
            seconds.setdefault("a kernel's start", []).append(kernel_start_seconds())
            seconds.setdefault("to pocket T5's first training step", []).append(seconds_of(first_step))
            helped = "from finetuning.__main__ import main; main(['--help'])"
            seconds.setdefault("python -m finetuning --help", []).append(seconds_of(helped))
        self.keep("start_up", {name: spread(taken) for name, taken in seconds.items()})
        for name, taken in seconds.items():
            self.say(f"start-up: {name:36} {statistics.median(taken):6.2f} s")

    def course(self) -> None:
        """Seconds per lesson of the last whole run on this machine, by what its cells do."""
        measured = seconds_by_kind("pocket")
        self.keep("course", measured)
        seconds = ", ".join(f"{name} {sum(kinds.values()):.0f} s" for name, kinds in measured.items())
        self.say(f"course: {seconds or 'no finished run to read; make run makes one'}")

    def run(self) -> None:
        """All parts, in order, then the table and the figures."""
        self.load()
        parts = [self.peaks, self.training, self.prediction, self.growth, self.data_path, self.start_up, self.course]
        if self.full:
            parts.append(self.accuracy)
        for part in parts:
            part()
        self.keep("minutes", (time.perf_counter() - self.began) / 60)
        text = table(self.measured)
        write_atomically(self.folder / "bench.md", text)
        save_figures(self.measured, self.folder)
        print(text)


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
    parser.add_argument("--quick", action="store_true", help="one round on few reviews")
    parser.add_argument("--full", action="store_true", help="also ten trainings, for what the recipes do to accuracy")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        raise CourseError("--rounds must be at least 1.")
    settings = choose(asked.profile, reviews=asked.reviews, base_model=asked.base_model)
    Bench(settings, asked.rounds, asked.quick, asked.full).run()
