"""Lesson 04: the script that a launcher starts once per device: ``python -m finetuning.distributed.train CONFIG.json``.

CONFIG.json holds one training or a list of trainings, as ``jobs.training_job`` writes them. Each rank writes what it
measured to ``rank<N>.json`` in the training's folder; rank 0 prints the progress. The same file serves one process, two
on a laptop and many nodes: rank, world size and address come from the launcher's environment variables.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import load_from_disk
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging

from finetuning.distributed import meter
from finetuning.distributed.jobs import TrainingJob, read_jobs
from finetuning.distributed.memory import innermost
from finetuning.distributed.zero import built_cpu_adam, import_deepspeed
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.labels import score_labels
from finetuning.machine import peak_memory
from finetuning.models import load_model, load_tokenizer
from finetuning.trainer import label_token_loss, last_whole_checkpoint


def arguments(job: TrainingJob) -> Seq2SeqTrainingArguments:
    """The Trainer's arguments of a training; ``deepspeed`` names the JSON file that Trainer and DeepSpeed read."""
    on_cpu = not torch.cuda.is_available()
    return Seq2SeqTrainingArguments(
        output_dir=job.folder, seed=job.seed, max_steps=job.steps, bf16=job.bf16, deepspeed=job.deepspeed,
        learning_rate=job.learning_rate, warmup_steps=0.1, weight_decay=0.01,
        per_device_train_batch_size=job.micro_batch, gradient_accumulation_steps=job.accumulation,
        train_sampling_strategy="random",  # the same global batches whatever the number of ranks
        save_strategy="steps" if job.save_steps else "no", save_steps=job.save_steps or 500,
        logging_steps=1, disable_tqdm=True, use_cpu=on_cpu, dataloader_pin_memory=not on_cpu,
    )  # fmt: skip


def train(job: TrainingJob) -> dict:
    """Run one training on this rank; returns what it measured, as it stands in ``rank<N>.json``."""
    logging.set_verbosity_warning()
    logging.disable_progress_bar()
    settings = job.settings
    deepspeed = import_deepspeed()
    if job.deepspeed:
        deepspeed.init_distributed()  # before any TrainingArguments, which would else start with one rank
    args = arguments(job)
    tokenizer = load_tokenizer(settings)
    transformers.set_seed(settings.seed)
    shape = transformers.T5Config(**job.shape) if job.shape else None
    model = transformers.T5ForConditionalGeneration(shape) if shape else load_model(settings)
    parameters = sum(getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters())
    step_meter = meter.StepMeter(job)
    step_meter.trainer = trainer = _trainer(job, args, model, tokenizer, step_meter)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(job.folder) if job.save_steps else None)
    seconds = time.perf_counter() - began
    wrapped = type(trainer.model_wrapped).__name__
    if job.deepspeed and wrapped != "DeepSpeedEngine":
        raise RuntimeError(f"the model was wrapped as {wrapped}, not as a DeepSpeedEngine: DeepSpeed did not run")
    measured = {
        "name": job.name, "rank": args.process_index, "world_size": args.world_size, "engine": wrapped,
        "optimizer": type(innermost(trainer.optimizer)).__name__,
        "parameters": parameters, "train_seconds": seconds,
        "train_reviews_per_second": job.steps * job.micro_batch * job.accumulation * args.world_size / seconds,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "steps": [entry["step"] for entry in trainer.state.log_history if "loss" in entry],
        **step_meter.measured(), **peak_memory(),
    }  # fmt: skip
    if job.save:
        trainer.save_model(job.folder)  # gathers the shards of all ranks
        unset_hf_deepspeed_config()  # else from_pretrained would shard what it loads
        if args.process_index == 0:
            shrink_model(job.folder, tokenizer)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # until rank 0 has saved the model
        measured |= score_share(job, args)
    if torch.distributed.is_initialized():
        deepspeed.comm.destroy_process_group() if job.deepspeed else torch.distributed.destroy_process_group()
    return measured


def _trainer(
    job: TrainingJob, args: Seq2SeqTrainingArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    step_meter: meter.StepMeter,
) -> Seq2SeqTrainer:  # fmt: skip
    """The Trainer of a job, as in lesson 03 but for what measures it."""
    rows = load_from_disk(job.reviews)["train"].select_columns(["input_ids", "labels"])
    # Repeated until one epoch holds all steps: at the end of an epoch the batches would depend on the number of ranks.
    needed = job.steps * job.micro_batch * job.accumulation * args.world_size
    rows = rows.select(np.resize(np.arange(len(rows)), max(needed, len(rows))))
    if job.tokens:
        rows = rows.with_transform(lambda some: some | {"input_ids": [ids[: job.tokens] for ids in some["input_ids"]]})
    offloads = job.deepspeed and "offload_optimizer" in Path(job.deepspeed).read_text()
    cpu_adam = built_cpu_adam() if offloads else None
    trainer = Seq2SeqTrainer(
        model, args, train_dataset=rows, data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_loss_func=label_token_loss, callbacks=[step_meter],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    if cpu_adam:
        trainer.optimizer_cls_and_kwargs = (cpu_adam, {"lr": args.learning_rate})
    return trainer


def shrink_model(folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the saved weights anew, with their tokenizer: DeepSpeed stores T5's tied embedding several times."""
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def score_share(job: TrainingJob, args: Seq2SeqTrainingArguments) -> dict:
    """Label scores of this rank's share of the test reviews by the saved model, and reviews per second."""
    settings = replace(job.settings, model=job.folder, model_revision=None)
    texts = load_from_disk(job.reviews)["test"]["text"][args.process_index :: args.world_size]
    model, tokenizer = load_model(settings).to(args.device), load_tokenizer(settings)
    scores, speed = score_labels(model, tokenizer, texts, prompt=settings.prompt, max_length=settings.max_length)
    return {"scores": scores.round(6).tolist(), "predict_reviews_per_second": speed * args.world_size}


def join_process_group(name: str) -> None:
    """Join the ranks in a process group of this ``name``: the launcher's store still holds the keys of the last one."""
    environment = os.environ
    if int(environment.get("WORLD_SIZE", 1)) > 1:
        store = torch.distributed.TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", store=torch.distributed.PrefixStore(name, store),
            rank=int(environment["RANK"]), world_size=int(environment["WORLD_SIZE"]),
        )  # fmt: skip


def end_with_launcher() -> None:
    """End this process with the one that launched it: then standard input, a pipe that it holds, comes to its end."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def run(job: TrainingJob) -> int:
    """One training; what it measured, or its error, goes to its folder. Returns the exit code."""
    rank = int(os.environ.get("RANK", 0))
    folder = Path(job.folder)
    try:
        measured = train(job)
    except BaseException as error:
        traceback.print_exc()
        last = traceback.format_exc().strip().splitlines()[-12:]
        failed = {"rank": rank, "when": time.time(), "type": type(error).__name__, "message": str(error), "last": last}
        write_atomically(folder / f"rank{rank}.error.json", json.dumps(failed))
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(1)  # a rank that waits for the others in an exit handler would hide this error
    write_atomically(folder / f"rank{rank}.json", json.dumps(measured))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Command line: one JSON file. The ``deepspeed`` launcher adds ``--local_rank``; the environment says the same."""
    parser = argparse.ArgumentParser("python -m finetuning.distributed.train", description="One rank of a training.")
    parser.add_argument("config", help="JSON file with a training, or a list of them")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    jobs = read_jobs(Path(given.config))
    rank = int(os.environ.get("RANK", 0))
    log = Path(jobs[0].log).with_suffix(f".rank{rank}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    meter.stream = os.dup(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1), os.dup2(file, 2)
    watched = os.environ.get("FINETUNING_WATCHED") == "1"
    if watched:
        end_with_launcher()
    if len(jobs) == 1:
        return run(jobs[0])
    # Several small trainings, as the lesson compares them: each in a child of its own, so that none inherits the state
    # of another, and the imports are paid once.
    import_deepspeed()
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (every engine imports it; it takes two seconds)

    for i, job in enumerate(jobs):
        child = os.fork()
        if child == 0:
            if watched:
                end_with_launcher()
            join_process_group(f"training {i}")
            os._exit(run(job))
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            meter.show(f"rank {rank} of {job.name} was killed by signal {os.WTERMSIG(status)}")
        if status:
            return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CourseError as error:
        sys.exit(str(error))
