"""The reviews that a training reads, as every rank finds them, and their order."""

import contextlib
import io

import numpy as np
from datasets import Dataset, DatasetDict, load_from_disk
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from finetuning.distributed import process
from finetuning.distributed.jobs import Training
from finetuning.files import content_digest, find_damage, write_atomically


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
