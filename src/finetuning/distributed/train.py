"""The script that a launcher starts once per process: ``python -m finetuning.distributed.train train.yaml``.

The same file serves one process, two on a laptop and many nodes: rank, world size and address come from the launcher's
environment variables. Started again after a crash, a training goes on from its last whole checkpoint.
"""

import argparse
import json
import math
import shutil
import sys

import torch
import transformers
from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.utils import logging

from finetuning.distributed import process
from finetuning.distributed.jobs import Training, read_trainings
from finetuning.distributed.memory import innermost
from finetuning.distributed.meter import StepMeter
from finetuning.distributed.planner import t5_shape
from finetuning.distributed.run_files import in_order, prepared_reviews, record, save_best, score
from finetuning.distributed.zero import built_cpu_adam, import_deepspeed
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.labels import label_tokens
from finetuning.machine import peak_memory
from finetuning.models import load_model, load_tokenizer
from finetuning.trainer import (
    first_step_logits,
    keep_checkpoints,
    label_accuracy,
    label_token_loss,
    last_whole_checkpoint,
)


def arguments(training: Training, ranks: int, reviews: int) -> TrainingArguments:
    """The Trainer's arguments on so many ranks and training reviews; Trainer and DeepSpeed read the same JSON."""
    settings, on_cpu = training.settings, not torch.cuda.is_available()
    micro_batch, accumulation = training.shares(ranks)
    an_epoch = math.ceil(reviews / settings.batch_size)
    steps = training.steps or math.ceil(settings.epochs * reviews / settings.batch_size)
    return TrainingArguments(
        output_dir=str(training.folder / "checkpoints"), seed=settings.seed, max_steps=steps,
        learning_rate=settings.learning_rate, warmup_steps=0.1, weight_decay=0.01,
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",  # in_order has shuffled: the same steps whatever the number of ranks
        bf16=training.bf16, activation_checkpointing=training.checkpointing,
        deepspeed=training.deepspeed_settings or None,  # what the JSON file says
        save_strategy="steps" if training.resumes else "no", save_steps=training.save_steps or an_epoch,
        eval_strategy="steps" if training.record else "no", eval_steps=training.save_steps or an_epoch,
        metric_for_best_model="accuracy", save_total_limit=2,  # the best and the last
        per_device_eval_batch_size=64, logging_steps=0.005,  # of all steps
        label_names=["labels"],  # through peft's wrapper the Trainer does not see them
        disable_tqdm=True, use_cpu=on_cpu, dataloader_pin_memory=not on_cpu,
    )  # fmt: skip


def train(training: Training) -> dict:
    """Run one training on this rank; returns what it measured, as it stands in ``rank<N>.json``."""
    logging.set_verbosity_warning()
    logging.disable_progress_bar()
    settings, deepspeed = training.settings, import_deepspeed()
    if training.deepspeed:
        deepspeed.init_distributed()  # before any TrainingArguments, which would else start with one rank
    tokenizer = load_tokenizer(settings)
    data = prepared_reviews(training, tokenizer)
    args = arguments(training, process.RANKS, len(data["train"]))
    transformers.set_seed(settings.seed)
    shape = t5_shape(training.shape) if training.shape else None
    model = transformers.T5ForConditionalGeneration(shape) if shape else load_model(settings)
    if training.lora_rank:
        from finetuning.lora import add_lora  # peft would slow the start of every rank

        model = add_lora(model, training.lora_rank, training.lora_matrices.split())
    parameters = sum(getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters())
    meter = StepMeter(training)
    meter.trainer = trainer = make_trainer(training, args, model, tokenizer, data, meter)
    resumed = last_whole_checkpoint(args.output_dir) if training.resumes else None
    if resumed:
        trainer.state = transformers.TrainerState.load_from_json(f"{resumed}/trainer_state.json")
        process.show(f"{training.name} goes on after step {trainer.state.global_step}")
    if trainer.state.global_step < args.max_steps:  # else all that is left is to save and to score
        trainer.train(resume_from_checkpoint=resumed)
        wrapped = type(trainer.model_wrapped).__name__
        if training.deepspeed and wrapped != "DeepSpeedEngine":
            raise RuntimeError(f"the model was wrapped as {wrapped}, not as a DeepSpeedEngine: DeepSpeed did not run")
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    measured = {
        "name": training.name, "rank": args.process_index, "world_size": args.world_size,
        "engine": type(trainer.model_wrapped).__name__, "optimizer": type(innermost(trainer.optimizer)).__name__,
        "parameters": parameters, "train_seconds": logged[-1]["seconds"],
        "train_reviews_per_second": args.max_steps * settings.batch_size / logged[-1]["seconds"],
        "losses": [entry["loss"] for entry in logged], "steps": [entry["step"] for entry in logged],
        **meter.measured(), **peak_memory(),
    }  # fmt: skip
    if training.save:
        save_best(training, trainer, tokenizer, data["train"].features["label"].names)
        measured |= score(training, args, data["test"]["text"])
    if torch.distributed.is_initialized():
        deepspeed.comm.destroy_process_group() if training.deepspeed else torch.distributed.destroy_process_group()
    return measured


def make_trainer(
    training: Training, args: TrainingArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict, meter: StepMeter,
) -> Trainer:  # fmt: skip
    """The Trainer, as in lesson 03 but for what measures it."""
    settings, configuration = training.settings, training.deepspeed_settings
    most, words = settings.max_length, label_tokens(tokenizer, data["train"].features["label"].names)

    def cut(rows: dict) -> dict:  # the end token stays
        return rows | {"input_ids": [[*ids[: most - 1], ids[-1]][: len(ids)] for ids in rows["input_ids"]]}

    rows = data.select_columns(["input_ids", "labels"])
    offloads = "offload_optimizer" in configuration.get("zero_optimization", {})
    cpu_adam = built_cpu_adam() if offloads else None
    if "torch_adam" not in str(configuration.get("optimizer", "torch_adam")):
        process.show("DeepSpeed compiles the optimizer of its file first: two minutes, once, with a C++ compiler")
    trainer = Trainer(  # a Seq2SeqTrainer would count what fills up the last batch of several ranks
        model, args, train_dataset=in_order(rows["train"], args.max_steps * settings.batch_size, settings.seed)
        .with_transform(cut), eval_dataset=rows["validation"].with_transform(cut) if training.record else None,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model), compute_loss_func=label_token_loss,
        compute_metrics=label_accuracy(words) if training.record else None,
        preprocess_logits_for_metrics=first_step_logits(words),
        callbacks=[meter] if training.deepspeed else [meter, keep_checkpoints()],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    if cpu_adam:
        trainer.optimizer_cls_and_kwargs = (cpu_adam, {"lr": args.learning_rate})
    return trainer


def run(training: Training) -> None:
    """One training whose answer is kept on disk: once there, there is nothing left to do.

    Raises CourseError when the folder holds a training that was another.
    """
    folder, noted, wanted = training.folder, training.folder / "training.json", training.identity()
    before = json.loads(noted.read_text()) if training.resumes and noted.exists() else wanted
    for key, value in wanted.items():
        if before.get(key) != value:
            what = f"{key} {before.get(key)!r}, not {value!r}"
            raise CourseError(f"{folder} holds a training with {what}; give this one another name, or FRESH=1.")
    if training.resumes and (folder / "rank0.json").exists():
        process.show(f"{training.name} was trained to its end before; FRESH=1 (--fresh) starts it over")
    else:
        if process.RANK == 0:
            write_atomically(noted, json.dumps(wanted))
        measured = train(training)
        if training.save and training.record and process.RANK == 0:
            record(training, measured)
        write_atomically(folder / f"rank{process.RANK}.json", json.dumps(measured))
    if training.save and process.RANK == 0:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def main(words: list[str] | None = None) -> int:
    """Command line: one YAML file. The ``deepspeed`` launcher adds ``--local_rank``; the environment says the same."""
    parser = argparse.ArgumentParser("python -m finetuning.distributed.train", description="One rank of a training.")
    parser.add_argument("config", help="YAML file with a training, or a list of them")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    try:
        trainings = read_trainings(parser.parse_args(words).config)
        process.write_to(trainings[0].log)
    except CourseError as error:
        process.last_words(error)
        return 1
    return process.run(trainings, run)


if __name__ == "__main__":
    sys.exit(main())
