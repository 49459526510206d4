"""The script that a launcher starts once per process: ``python -m finetuning.distributed.train train.yaml``.

The same file serves one process, two on a laptop and many nodes: rank, world size and address come from the launcher's
environment variables. Started again after a crash, a training goes on from its last whole checkpoint.
"""

import argparse
import contextlib
import io
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, load_from_disk
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging

from finetuning.distributed import process
from finetuning.distributed.jobs import Training, read_trainings
from finetuning.distributed.memory import innermost
from finetuning.distributed.meter import StepMeter
from finetuning.distributed.planner import t5_shape
from finetuning.distributed.zero import built_cpu_adam, import_deepspeed
from finetuning.errors import CourseError
from finetuning.files import content_digest, find_damage, write_atomically
from finetuning.labels import label_tokens, score_labels
from finetuning.machine import peak_memory
from finetuning.models import load_model, load_tokenizer, save_model
from finetuning.results import ResultRow
from finetuning.trainer import (
    first_step_logits,
    keep_checkpoints,
    label_accuracy,
    label_token_loss,
    last_whole_checkpoint,
)
from finetuning.usage import load_shipped, save_usage


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


def prepared_reviews(training: Training, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """The run's reviews as lesson 01 prepares them; the first rank to come makes them, and anew from another file."""
    folder, chosen = training.workspace.data / "reviews", training.chosen
    source, wanted = folder.with_suffix(".source"), f"{chosen}\n{content_digest(chosen.reviews, '**/*')}"
    lessons_own = training.workspace.results_file.exists()  # which names the reviews, and has been compared
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")), contextlib.redirect_stdout(io.StringIO()) as said:
        known = source.read_text(encoding="utf-8") if source.exists() else lessons_own and wanted
        if find_damage(folder) or known != wanted:
            from finetuning.data import prepare, save_splits  # its libraries would slow each rank's start

            save_splits(prepare(chosen, tokenizer), folder)
            write_atomically(source, wanted)
    if told := said.getvalue().strip():  # the columns, and how ratings became labels
        process.show(told.replace("\n", "; "), process.RANK)
    return load_from_disk(folder)


def in_order(rows: Dataset, reviews: int, seed: int) -> Dataset:
    """As many ``reviews`` as all steps take together, epoch after epoch, each in an order of its own."""
    shuffle = np.random.default_rng(seed).permutation
    return rows.select(np.concatenate([shuffle(len(rows)) for _ in range(0, reviews, len(rows))])[:reviews])


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


def save_best(training: Training, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> None:
    """Save the model of the best checkpoint (the last weights where none was evaluated), and how it is asked.

    It is loaded and saved once more: DeepSpeed stores T5's tied embedding several times. Adapters are merged into their
    model; as they were trained they lie in ``adapter``.
    """
    source = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.best_global_step}"
    if not trainer.state.best_global_step:
        trainer.save_model(str(source))  # gathers the shards of all ranks
    unset_hf_deepspeed_config()  # else from_pretrained would shard what it loads
    if trainer.args.process_index == 0:
        if training.lora_rank:
            from finetuning.lora import load_adapter

            model = load_adapter(training.settings, source)
            save_model(model, tokenizer, training.folder / "adapter", trainer.state.log_history)
            model = model.merge_and_unload()
        else:
            model = transformers.T5ForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        save_model(model, tokenizer, training.folder, trainer.state.log_history)
        save_usage(training.folder, training.settings, words)
    trainer.accelerator.wait_for_everyone()


def score(training: Training, args: TrainingArguments, texts: list[str]) -> dict:
    """The saved model's label scores of the texts, scored by all ranks together, and reviews per second."""
    (model, tokenizer, usage), ranks = load_shipped(training.folder), args.world_size
    share, words = texts[args.process_index :: ranks], usage["label_words"]
    asked = {"prompt": usage["prompt"], "max_length": usage["max_length"]}
    own, speed = score_labels(model, tokenizer, share, words=words, **asked)
    scores = np.zeros((len(texts), len(words)))
    for rank, part in enumerate(gather_object([own])):
        scores[rank::ranks] = part
    return {"scores": scores.round(6).tolist(), "predict_reviews_per_second": speed * ranks}


def record(training: Training, measured: dict) -> None:
    """Add the training's row to the run's results, and tell the accuracy."""
    from finetuning.metrics import measure

    scores, workspace = np.array(measured["scores"]), training.workspace
    truth = load_from_disk(workspace.data / "reviews")["test"]["label"]
    kept = {field.name: measured[field.name] for field in fields(ResultRow) if field.name in measured}
    row = measure("05", training.name, scores.argmax(axis=1), truth, stage=training.stage, **kept)
    workspace.add_rows(row)
    workspace.keep_scores(training.name, test=scores)
    interval = f"95 % interval {row.accuracy_low:.3f} to {row.accuracy_high:.3f}"
    process.show(f"accuracy {row.accuracy:.3f} ({interval}) on {row.n_test:,} test reviews; model in {training.folder}")


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
