"""What a rank needs besides its training: a log, an end with its launcher, last words that are found."""

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from finetuning.distributed.jobs import Training
from finetuning.distributed.zero import import_deepspeed
from finetuning.errors import CourseError, way_out
from finetuning.files import write_atomically

RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
WATCHED = os.environ.get("FINETUNING_WATCHED") == "1"  # ``launch.run`` holds our standard input and reads our output
_reader, _errors = 1, 2  # where the reader looks; the libraries' own output goes to the log


def show(line: str, rank: int = 0) -> None:
    """A line for the reader from one rank, past its log; ``launch.run`` knows it by its mark."""
    if rank == RANK:
        os.write(_reader, f"{'| ' * WATCHED}{line}\n".encode())


def write_to(log: Path) -> None:
    """Send all output but ``show``'s to the rank's own log."""
    global _reader, _errors
    own = log.with_suffix(f".rank{RANK}.log")
    own.parent.mkdir(parents=True, exist_ok=True)
    _reader, _errors = os.dup(1), os.dup(2)
    file = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1), os.dup2(file, 2)


def end_with_launcher() -> None:
    """End this process when the one that launched it is gone: else a training started again would meet the old one."""
    parent = os.getppid()  # another one then; or standard input, a pipe that ``launch.run`` holds, comes to its end

    def wait() -> None:
        while os.getppid() == parent:
            if not WATCHED:
                time.sleep(0.5)
            elif select.select([0], [], [], 0.5)[0] and not os.read(0, 1):
                break
        os.kill(os.getpid(), signal.SIGKILL)

    if WATCHED or "LOCAL_RANK" in os.environ:
        threading.Thread(target=wait, daemon=True).start()


def join_process_group(name: str) -> None:
    """Join the ranks in a process group of this ``name``: the launcher's store still holds the keys of the last one."""
    if RANKS > 1:
        store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", store=torch.distributed.PrefixStore(name, store),
            rank=RANK, world_size=RANKS,
        )  # fmt: skip


def last_words(error: BaseException, training: Training | None = None) -> None:
    """Say why this rank failed where it is looked for.

    ``launch.run`` reads ``rank<N>.error.json``; torchrun reads a file that it names, and shows it at its end.
    """
    text = str(error) if isinstance(error, CourseError) else f"{type(error).__name__}: {error}"
    if training:
        trace = "".join(traceback.format_exception(error)).strip()
        print(trace, file=sys.stderr)
        failed = {"rank": RANK, "when": time.time(), "type": type(error).__name__, "message": str(error)}
        failed["last"] = trace.splitlines()[-12:]
        write_atomically(training.folder / f"rank{RANK}.error.json", json.dumps(failed))
        if way := None if isinstance(error, CourseError) else way_out(trace, "training"):
            text += f"\nThe way out: {way}."
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        write_atomically(Path(file), json.dumps({"message": text, "timestamp": int(time.time())}))
    if not WATCHED:
        os.write(_errors, f"{text}\n".encode())


def run(trainings: list[Training], one: Callable[[Training], None]) -> int:
    """Run the trainings in turn; returns the exit code.

    Several, small ones that a lesson compares, each get a child of their own: none inherits the state of another, and
    the imports are paid once. Rank 0 holds the training's folder meanwhile.
    """
    end_with_launcher()
    several = len(trainings) > 1
    if several:
        import_deepspeed()
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (every engine imports it; it takes two seconds)
    for i, training in enumerate(trainings):
        if several and (child := os.fork()):
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                show(f"rank {RANK} of {training.name} was killed by signal {os.WTERMSIG(status)}", RANK)
            if status:
                return 1
            continue
        failed = 0
        try:
            if several:
                end_with_launcher()
                join_process_group(f"training {i}")
            with training.held() if RANK == 0 else contextlib.nullcontext():
                one(training)
        except BaseException as error:
            last_words(error, training)
            failed = 1
        if several or failed:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(failed)  # a rank that waits for the others in an exit handler would hide its error
    return 0
