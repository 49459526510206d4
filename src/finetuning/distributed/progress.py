"""Lesson 04: what a rank tells the reader; the libraries' own output goes to the rank's log."""

import os

stream = 1  # where it goes: the launcher's pipe, once ``train`` has sent standard output to the log


def show(line: str) -> None:
    """Print a line for the reader."""
    os.write(stream, f"| {line}\n".encode())
