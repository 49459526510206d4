"""Command line: ``python -m finetuning run`` and ``python -m finetuning predict``."""

import argparse
import logging
import os
import signal
import sys

from finetuning.errors import CourseError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 with a sentence on standard error)."""
    parser = argparse.ArgumentParser(prog="python -m finetuning", description="The fine-tuning course, headless.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute the lessons and write results.json and report.html")
    run.add_argument("--profile", default="pocket", help="what to run (default: %(default)s)")
    run.add_argument(
        "--reviews",
        default="",
        help="your own reviews: a CSV, JSON Lines or Parquet file, a folder of them, or a Hub id",
    )
    run.add_argument("--base-model", default="", help="another T5: a folder or a Hub id")
    run.add_argument("--limit", type=int, default=0, help="at most so many training and test reviews (0: all)")
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--name", default="", help="the run's folder under runs/ (default: the profile)")
    run.add_argument("--fresh", action="store_true", help="start over instead of going on where the run stopped")
    predict = commands.add_parser("predict", help="label a file of reviews with a run's model; writes CSV")
    predict.add_argument("--run", default="pocket", help="the run whose model answers (default: %(default)s)")
    predict.add_argument(
        "file", help="CSV, JSON Lines or Parquet with a column 'text'; '-' for CSV from standard input"
    )
    given = parser.parse_args(arguments)
    try:
        return _run(given) if given.command == "run" else _predict(given)
    except CourseError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _run(given):
    from finetuning.course.runner import run_course

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end by another program: as by Ctrl-C
    try:
        run_course(
            given.profile,
            reviews=given.reviews,
            base_model=given.base_model,
            limit=given.limit,
            seed=given.seed,
            name=given.name,
            fresh=given.fresh,
        )
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would mourn the kernel that was stopped
        print("\nstopped; the same command goes on from the last finished lesson", file=sys.stderr)
        return 130
    return 0


def _predict(given):
    from finetuning.shipping.predict import predict_file
    from finetuning.shipping.usage import shipped_folder

    try:
        written, skipped = predict_file(given.file, shipped_folder(given.run), sys.stdout)
    except BrokenPipeError:  # whoever reads the predictions has seen enough, as in ``| head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the predictions so far are written", file=sys.stderr)
        return 130
    if skipped:
        raise CourseError(
            f"Skipped {skipped:,} of {written + skipped:,} reviews, each named above; labelled the other {written:,}."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
