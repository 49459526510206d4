"""Command line: ``python -m finetuning run``, ``predict``, ``plan`` and ``train``."""

import argparse
import logging
import math
import os
import shutil
import signal
import sys
from typing import Any

from finetuning.errors import CourseError


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Where a plain KeyboardInterrupt has crossed exec(), Python ends by the signal, not as told."""


def stop(*_: object) -> None:
    """A signal handler."""
    raise Stopped


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 with a sentence on standard error)."""
    given = _parser().parse_args(arguments)
    try:
        return given.do(given)
    except CourseError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would report the kernel that was stopped
        print(f"\nstopped; {given.when_stopped}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    """The commands with their options; each loads what it needs when it is called."""
    parser = argparse.ArgumentParser(prog="python -m finetuning", description="The fine-tuning course, headless.")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="execute the lessons and write results.json and report.html")
    run.add_argument("--profile", default="pocket", help="what to run (default: %(default)s)")
    own = "your own reviews: a CSV, JSON or Parquet file, a folder of them, or a Hub id"
    run.add_argument("--reviews", default="", help=own)
    run.add_argument("--text", default="", help="the column of the texts, where it has no usual name")
    run.add_argument("--label", default="", help="the column of the labels, where it has no usual name")
    run.add_argument("--rating", default="", help="labels are ratings: as 4,7, up to 4 negative and from 7 positive")
    run.add_argument(
        "--labels", default="", help="label words, as bad,fine,good or 1=bad,2=fine,3=good (default: found)"
    )
    run.add_argument("--base-model", default="", help="another T5: a folder or a Hub id")
    run.add_argument("--limit", type=int, default=0, help="at most so many training and test reviews (0: all)")
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--lessons", default="", help="only these lessons, by number, as 00,01,02 (default: all)")
    run.add_argument("--name", default="", help="the run's folder under runs/ (default: the profile)")
    run.add_argument("--fresh", action="store_true", help="start over instead of going on where the run stopped")
    run.set_defaults(do=_run, when_stopped="the same command goes on from the last finished lesson")

    predict = commands.add_parser("predict", help="label a file of reviews with a run's model; writes CSV")
    predict.add_argument("--run", default="pocket", help="the run whose model answers (default: %(default)s)")
    predict.add_argument("--text", default="", help="the column of the texts, where it has no usual name")
    predict.add_argument("--int8", action="store_true", help="in 8-bit integers: faster, and a few answers differ")
    predict.add_argument("--model", default="trainer", help="which of its models (default: %(default)s)")
    predict.add_argument("file", help="CSV, TSV, JSON, Parquet or Arrow; '-' for CSV from standard input")
    predict.set_defaults(do=_predict, when_stopped="the predictions so far are written")

    plan = commands.add_parser("plan", help="which ZeRO stage and micro-batch fit a T5 to your GPUs")
    plan.add_argument("model", help="as t5-3b, a Hub id, or a folder with a config.json")
    plan.add_argument("--gpus", type=int, default=1, help="how many there are (default: %(default)s)")
    plan.add_argument("--memory", default="16GB", help="of each GPU, as 16GB or 80GiB (default: %(default)s)")
    lengths = "of an input and of a label (default: 512 2)"
    plan.add_argument("--tokens", type=int, nargs=2, default=(512, 2), metavar="N", help=lengths)
    plan.add_argument("--checkpointing", action="store_true", help="compute activations again instead of keeping them")
    plan.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank (lesson 06)")
    plan.set_defaults(do=_plan, when_stopped="nothing was begun")

    train = commands.add_parser("train", help="one training from a file, on any number of processes")
    train.add_argument("config", help="YAML file; src/finetuning/assets/launch/train.yaml shows every option")
    train.add_argument("--processes", type=int, default=0, help="on this machine (default: one per GPU, or one)")
    train.add_argument("--fresh", action="store_true", help="start over instead of going on where it stopped")
    train.set_defaults(do=_train, when_stopped="the same command goes on from the last whole checkpoint")
    return parser


def _options(given: argparse.Namespace) -> dict[str, Any]:
    """What the reader gave, without what the parser itself keeps."""
    return {name: value for name, value in vars(given).items() if name not in ("command", "do", "when_stopped")}


def _run(given: argparse.Namespace) -> int:
    from finetuning.course.runner import chosen_lessons, run_course

    signal.signal(signal.SIGTERM, stop)  # told to end by another program: as by Ctrl-C
    columns = {name: vars(given).pop(name) for name in ("text", "label", "rating", "labels")}
    run_course(**_options(given) | {"columns": columns, "lessons": chosen_lessons(given.lessons)})
    return 0


def _predict(given: argparse.Namespace) -> int:
    from finetuning.shipping.predict import predict_file
    from finetuning.workspace import shipped_folder

    try:
        folder = shipped_folder(given.run, given.model)
        written, skipped = predict_file(given.file, folder, sys.stdout, given.text, int8=given.int8)
    except OSError as error:  # standard output takes no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # their reader has closed the pipe, as ``| head`` does
            return 1
        raise CourseError(f"The predictions could not be written: {error.strerror}; free some space.") from error
    if skipped:
        total = f"{written + skipped:,} reviews, each named above"
        raise CourseError(f"Skipped {skipped:,} of {total}; labelled the other {written:,}.")
    return 0


def _plan(given: argparse.Namespace) -> int:
    from finetuning.distributed.planner import plan

    print(plan(**_options(given) | {"tokens": tuple(given.tokens)}))
    return 0


def _train(given: argparse.Namespace) -> int:
    from finetuning.distributed.jobs import read_trainings

    if given.processes < 0:
        raise CourseError(f"--processes is a number from 1 up, not {given.processes}.")
    trainings = read_trainings(given.config)
    from torch.cuda import device_count  # not before the file is known to be one

    from finetuning.distributed import launch
    from finetuning.workspace import read_results, run_folder

    signal.signal(signal.SIGTERM, stop)
    for training in trainings:
        with training.held():  # said before anything is removed or started
            if given.fresh:  # its run is removed whole where it is this training's alone
                own, results = run_folder(training.run_name), read_results(training.run_name)
                alone = {own.name, *(row.method for row in (results.rows if results else []))} == {training.name}
                shutil.rmtree(own if alone else own / "models" / training.name, ignore_errors=True)
        launch.run(training, ranks=given.processes or device_count() or 1, limit=math.inf)
    return 0


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, stop)
    sys.exit(main())
