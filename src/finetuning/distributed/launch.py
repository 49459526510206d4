"""Lessons 04 and 05: start a training of several processes, watch it, and collect what its ranks measured."""

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

from torch.cuda import device_count

from finetuning.distributed.jobs import Training, training_job, trainings_as_yaml
from finetuning.distributed.zero import check_locks, stage_of
from finetuning.errors import CourseError, way_out
from finetuning.files import write_atomically
from finetuning.machine import usable_cores
from finetuning.trainer import last_whole_checkpoint
from finetuning.workspace import Workspace


def run(
    trainings: Training | list[Training], *, ranks: int = 2, launcher: str = "torchrun", port: int = 0,
    limit: float = 600,
) -> list:  # fmt: skip
    """Start the trainings on ``ranks`` processes of this machine and return what each rank measured.

    ``trainings`` is one or a list of them, run in turn. Progress of rank 0 is printed as it comes, all output goes to
    the run's ``logs/``. ``launcher``: ``torchrun`` (torch.distributed.run), ``deepspeed`` or ``two nodes`` (two agents
    of torch.distributed.run that meet at ``port``; 0: a free one) or ``python`` (one plain process). ``limit`` is in
    seconds. Returns a list of dicts, one per rank, for a training, and a list of such lists for a list. Raises
    CourseError with the failing rank's last lines and the known way out; no process is left behind, also when the cell
    is interrupted.
    """
    several = isinstance(trainings, list)
    trainings = trainings if isinstance(trainings, list) else [trainings]
    if any(training.deepspeed for training in trainings):
        check_locks()
    if several and device_count():  # processes that have touched a GPU cannot be copied, so each pays its own start
        return [run(one, ranks=ranks, launcher=launcher, port=port, limit=limit) for one in trainings]
    for training in trainings:
        training.shares(ranks)  # said now rather than by every rank
        if not training.resumes:
            shutil.rmtree(training.folder, ignore_errors=True)
        training.folder.mkdir(parents=True, exist_ok=True)
        for old in training.folder.glob("rank*.json" if not training.record else "rank*.error.json"):
            old.unlink()
    log = trainings[0].log
    log.parent.mkdir(parents=True, exist_ok=True)
    config = log.with_suffix(".yaml")
    write_atomically(config, trainings_as_yaml(trainings))
    commands = command(launcher, config, ranks, free_port(port))
    code = _watch(commands, _environment(ranks), log, limit)
    answers = []
    for training in trainings:
        files = [file for r in range(ranks) if (file := training.folder / f"rank{r}.json").exists()]
        failed = len(files) < ranks or any(training.folder.glob("rank*.error.json"))
        if not files or (code and failed):
            raise CourseError(_failure(training, code, log, limit))
        answers.append([json.loads(file.read_text()) for file in files])
    return answers if several else answers[0]


def command(launcher: str, config: str | Path, ranks: int, port: int = 29531) -> list[list[str]]:
    """The commands that ``run`` starts, as lists of words: what you would type into a terminal."""
    script = ["-m", "finetuning.distributed.train", str(config)]
    if launcher == "python":
        return [[sys.executable, *script]]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    if launcher == "torchrun":
        return [[*torchrun, "--standalone", "--nproc_per_node", str(ranks), *script]]
    if launcher == "two nodes":
        meet = f"--nnodes 2 --nproc_per_node {ranks // 2} --master_addr 127.0.0.1 --master_port {port}".split()
        return [[*torchrun, "--node_rank", str(node), *meet, *script] for node in (0, 1)]
    if launcher == "deepspeed":
        program = Path(sys.executable).with_name("deepspeed")
        if not program.exists():
            raise CourseError(f"The launcher {program} is missing; run make setup, or use launcher='torchrun'.")
        options = f"--num_{'gpus' if device_count() else 'accelerators'} {ranks} --master_port {port} --module".split()
        return [[str(program), *options, *script[1:]]]
    raise CourseError(f"There is no launcher {launcher!r}; choose 'torchrun', 'deepspeed', 'two nodes' or 'python'.")


def free_port(port: int = 0) -> int:
    """``port``, or with 0 any TCP port of this machine, that nobody listens on. Raises CourseError when it is taken.

    A launcher would take another program there for its partner, and wait.
    """
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CourseError(f"Port {port} is taken by another program or run; give another (port=...).") from error
        return probe.getsockname()[1]


def largest_trainable(workspace: Workspace, shapes: Iterable[str], *, deepspeed: str = "") -> dict[str, dict]:
    """Train ever larger models of random weights for a few steps, on one rank, until the memory is full.

    ``shapes``: of the T5 family, smallest first. Returns what rank 0 measured for each that fitted, by shape.
    """
    fitted = {}
    for shape in shapes:
        small = {"bf16": True, "steps": 4, "micro_batch": 1, "batch_size": 2}
        name = f"largest_{Path(shape).name}"
        training = training_job(workspace, name, deepspeed=deepspeed, shape=shape, **small)
        try:
            fitted[shape] = run(training, ranks=1, launcher="torchrun" if deepspeed else "python")[0]
        except CourseError as error:
            if "ran out of memory" not in str(error):
                raise
            break
    return fitted


def _environment(ranks: int) -> dict[str, str]:
    ours = {"FINETUNING_WATCHED": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    ours["OMP_NUM_THREADS"] = str(max(1, usable_cores() // ranks))
    if not device_count():
        ours["DS_ACCELERATOR"] = "cpu"
    # A notebook kernel may hold the rank of an earlier cell; each launcher gives its processes their own.
    theirs = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU")
    return {name: value for name, value in os.environ.items() if name not in theirs} | ours


def _watch(commands: list[list[str]], environment: dict[str, str], log: Path, limit: float) -> int:
    """Start the commands, echo rank 0's progress, and return the worst exit code (124: out of time).

    What a process has written is read at once, whole lines or not, so that neither a line without an end nor a silent
    process keeps this loop from the others and from the clock.
    """
    ends = time.monotonic() + limit
    processes: list[subprocess.Popen] = []
    unfinished: dict[int, bytes] = {}  # output -> the line that has not come to its end
    with log.open("wb") as file, selectors.DefaultSelector() as outputs:
        try:
            for words in commands:
                started = subprocess.Popen(
                    words, env=environment, stdin=PIPE, stdout=PIPE, stderr=subprocess.STDOUT, start_new_session=True
                )
                processes.append(started)
                unfinished[outputs.register(started.stdout, selectors.EVENT_READ).fd] = b""  # type: ignore[arg-type]
            while outputs.get_map():
                if (left := ends - time.monotonic()) <= 0:
                    return 124
                for output, _ in outputs.select(min(left, 3600)):
                    if not (piece := os.read(output.fd, 2**16)):
                        outputs.unregister(output.fileobj)
                    *lines, unfinished[output.fd] = (unfinished[output.fd] + piece).split(b"\n")
                    for line in lines:
                        file.write(line + b"\n")
                        if line.startswith(b"| "):
                            print(line[2:].decode(errors="replace").rstrip(), flush=True)
                    file.flush()
            return max(abs(process.wait(timeout=30)) for process in processes)
        finally:
            stop(processes)
            file.writelines(unfinished.values())


def universal_checkpoint(training: Training) -> Training:
    """Turn the last whole checkpoint of a DeepSpeed training into a universal one, which any number of ranks can load.

    Returns the training with a configuration that loads it. Raises CourseError where there is no checkpoint yet.
    """
    last = last_whole_checkpoint(training.folder / "checkpoints")
    if last is None or not training.deepspeed:
        where = f"{training.name!r} has no whole checkpoint in {training.folder}"
        raise CourseError(f"{where}; run it with save_steps first.")
    checkpoint, settings = Path(last), training.deepspeed_settings
    tag = (checkpoint / "latest").read_text().strip()
    program = ["-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    words = [sys.executable, *program, "--input_folder", tag, "--output_folder", f"{tag}_universal"]
    if stage_of(settings) < 3:  # the Trainer makes the optimizer; DeepSpeed wants to be told
        words.append("--inject_missing_state")
    # In the checkpoint's folder, because it takes a path for a pattern, and brackets in one would match nothing.
    done = subprocess.run(words, cwd=checkpoint, env=_environment(1), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CourseError(f"{checkpoint} could not be made universal ({reason}); resume on the same number of ranks.")
    path = training.folder / "universal.json"
    write_atomically(path, json.dumps(settings | {"checkpoint": {"load_universal": True}}))
    return replace(training, deepspeed=str(path), die_at=0)


def stop(processes: list[subprocess.Popen], patience: float = 5) -> None:
    """End launchers and their ranks: ranks end when their standard input does, launchers when told or killed."""
    for process in processes:
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
    ends = time.monotonic() + patience
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, ends - time.monotonic()))


def _failure(training: Training, code: int, log: Path, limit: float) -> str:
    """One sentence on a failed training, the failing rank's last lines and the way out."""
    errors = [json.loads(path.read_text()) for path in training.folder.glob("rank*.error.json")]
    # A rank that lost its peer says so; the cause is the error of the peer.
    errors.sort(key=lambda error: (bool(re.search("onnection (closed|reset)|peer", error["message"])), error["when"]))
    if errors and errors[0]["type"] == "CourseError":
        return errors[0]["message"]
    output = log.read_text(errors="replace")
    if code == 124:
        way = f"raise limit= or take fewer steps (log: {log})."
        return f"The training {training.name!r} did not end within {limit} s and was stopped; {way}"
    if errors:
        first = errors[0]
        message, *more = first["message"].strip().splitlines() or [""]
        who, lines = f"rank {first['rank']} failed: {first['type']}: {message.rstrip(' .:')}", first["last"]
    else:
        killed = code == 9 or re.search(r"signal 9|SIGKILL|exitcode: -9", output, re.IGNORECASE)
        who = "a rank was killed (signal 9)" if killed else "the launcher failed"
        lines = [line for line in output.splitlines() if line.strip()][-8:]
    text = "\n".join([*lines, who, "" if errors else output])
    known = way_out(text, "training")
    if known and errors:
        lines = more  # no traceback where it is known what to do
    shown = "".join(f"\n  {line}" for line in lines[-6:])
    return f"The training {training.name!r} stopped, {who}. The way out: {known or 'see its log'}.{shown}\n(log: {log})"
