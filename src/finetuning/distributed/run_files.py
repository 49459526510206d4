"""What a training reads from its run and leaves there: reviews; the best model, its label scores, its row."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, load_from_disk
from filelock import FileLock
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetuning.distributed import process
from finetuning.distributed.jobs import Training
from finetuning.files import content_digest, find_damage, write_atomically
from finetuning.labels import score_labels
from finetuning.models import save_model
from finetuning.results import ResultRow
from finetuning.usage import load_shipped, save_usage


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
