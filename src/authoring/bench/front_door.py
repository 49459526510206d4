"""Prediction as its users get it: whole commands in fresh processes, beside what they might take instead."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetuning.errors import CourseError
from finetuning.machine import usable_cores
from finetuning.profiles import Profile
from finetuning.speed.int8 import has_int8
from finetuning.usage import save_usage

FEW = 16  # reviews of the run that shows what a start costs
READ = """
import csv, sys
from transformers import AutoTokenizer
folder, file, prompt, limit = *sys.argv[1:4], int(sys.argv[4])
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = [prompt.format(text=row["text"]) for row in csv.DictReader(open(file, encoding="utf-8"))]
"""
USUAL = """
from transformers import T5ForConditionalGeneration
model = T5ForConditionalGeneration.from_pretrained(folder)
for at in range(0, len(texts), 16):
    batch = tokenizer(texts[at : at + 16], padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
    print(*tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True), sep="\\n")
"""
CTRANSLATE2 = """
import ctranslate2
kind, cores = sys.argv[5], int(sys.argv[6])
engine = ctranslate2.Translator(folder + "/ctranslate2", compute_type=kind, intra_threads=cores)
ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
rows = [tokenizer.convert_ids_to_tokens(one) for one in ids]
options = {"beam_size": 1, "max_decoding_length": 4, "max_batch_size": 2048, "batch_type": "tokens"}
for answer in engine.translate_batch(rows, **options):
    print(tokenizer.decode(tokenizer.convert_tokens_to_ids(answer.hypotheses[0]), skip_special_tokens=True))
"""


def front_door(
    settings: Profile, folder: Path, texts: Sequence[str], words: Sequence[str], *, most: int, rounds: int,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Reviews per second of each way to label a file of ``texts``, the start taken off; a dict of name -> what it did.

    ``folder``: ``runs/front/models/trainer`` of a runs folder of its own, with model and tokenizer in it. The usual
    recipe (``generate`` in fp32, padded to the longest review allowed) gets a tenth of the ``most`` texts. 8-bit
    integers take part where the machine multiplies them rightly, CTranslate2 where it is installed. Raises CourseError
    where a command fails.
    """
    save_usage(folder, settings, words)
    ours = [sys.executable, "-m", "finetuning", "predict", "--run", "front"]
    asked = [str(folder), "{}", settings.prompt, str(settings.max_length)]
    ways = {"usual: generate": [sys.executable, "-c", READ + USUAL, *asked], "predict": [*ours, "{}"]}
    if has_int8():
        ways["predict --int8"] = [*ours, "--int8", "{}"]
    if find_spec("ctranslate2"):
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(folder)).convert(str(folder / "ctranslate2"), force=True)
        for kind in ("float32", "int8"):
            command = [sys.executable, "-c", READ + CTRANSLATE2, *asked, kind, str(usable_cores())]
            ways[f"CTranslate2, {kind}"] = command
    counts = {name: max(4 * FEW, most // 10) if name.startswith("usual") else most for name in ways}
    files = {count: _write(folder, texts, count) for count in {FEW, *counts.values()}}
    runs = folder.parents[2]
    found: dict[str, dict[str, Any]] = {name: {"reviews": counts[name], "speeds": [], "starts": []} for name in ways}
    answers: dict[str, list[str]] = {}
    for turn in range(rounds):
        for name, command in ways.items():
            start, _ = _run(command, files[FEW], runs)
            took, answers[name] = _run(command, files[counts[name]], runs)
            found[name]["starts"].append(start)
            found[name]["speeds"].append((counts[name] - FEW) / max(took - start, 0.01))
            say(f"commands, round {turn + 1} of {rounds}: {name:24} {took:6.1f} s for {counts[name]:,} reviews")
    usual = answers["usual: generate"]
    for name, one in found.items():
        one["same_answers"] = sum(a == b for a, b in zip(usual, answers[name], strict=False)) / len(usual)
    return found


def _write(folder: Path, texts: Sequence[str], count: int) -> Path:
    """A CSV of ``count`` texts, over again where they are fewer."""
    file = folder / f"{count}.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([["text"], *([texts[i % len(texts)]] for i in range(count))])
    return file


def _run(command: list[str], file: Path, runs: Path) -> tuple[float, list[str]]:
    """Seconds of a command from its start to its end, and the labels that it wrote."""
    words, began = [str(file) if word == "{}" else word for word in command], time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"FINETUNING_RUNS": str(runs)})
    taken = time.perf_counter() - began
    if done.returncode:
        raise CourseError(f"{words[-1]} could not be labelled by {' '.join(words[1:4])[:40]}: {done.stderr[-300:]}")
    if done.stdout.startswith("row,label"):
        return taken, [row["label"] for row in csv.DictReader(io.StringIO(done.stdout))]
    return taken, done.stdout.splitlines()
