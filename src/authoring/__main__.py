"""Command line of those who keep the course: ``python -m authoring COMMAND``; the Makefile calls it."""

import sys
from importlib import import_module

from finetuning.errors import CourseError

# Command -> what it does, and the module whose ``main`` does it.
COMMANDS = {
    "readme": ("fill README.md with the numbers of the last run, and put the set-up cells in", "authoring.readme"),
    "first-cells": ("put the set-up cell into every lesson", "authoring.first_cell"),
    "figures": ("draw the figures in img/ anew", "authoring.figures"),
    "slides": ("the lessons as slides, in build/slides/", "authoring.slides"),
    "learner": ("copies of the lessons for a class, in build/learner/ and build/instructor/", "authoring.classroom"),
    "site": ("report, lessons, glossary, slides and the learners' zip as one site, in build/site/", "authoring.site"),
    "grade": ("the progress files of a class as one table, in build/grades.csv", "authoring.grade"),
    "bench": ("measure the speed claims side by side, in runs/bench/", "authoring.bench.bench"),
    "device-check": ("the DeepSpeed lessons on this machine's GPUs, in eight minutes", "authoring.device_check"),
    "pretrain": ("pre-train pocket T5", "authoring.pocket.pretrain"),
    "minutes": ("write the minutes that the lessons announce", "authoring.minutes"),
    "raw-reviews": ("make lesson 01's raw reviews from Pocket Reviews' training split", "authoring.raw_reviews"),
    "cards": ("write the measured figures into the cards of pocket T5 and Pocket Reviews", "authoring.cards"),
}


def main(arguments: list[str]) -> int:
    """Run a command with its own arguments; returns the exit code (0 done, 1 with a sentence, 2 no such command)."""
    name, *rest = arguments or ["--help"]
    if name not in COMMANDS:
        lines = [f"  {command:12} {what}" for command, (what, _) in COMMANDS.items()]
        usage = "\n".join(["usage: python -m authoring COMMAND ...", "", *lines])
        asked = name in ("-h", "--help")
        print(usage if asked else f"{usage}\n\nThere is no command {name!r}.", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        import_module(COMMANDS[name][1]).main(rest)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
