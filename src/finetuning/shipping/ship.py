"""Lesson 05: a trained model made ready for others: how it is asked, its card, and a form to try it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning import CourseError
from finetuning.labels import LABEL_WORDS
from finetuning.profiles import choose, describe
from finetuning.training import load_model, load_tokenizer
from finetuning.workspace import run_folder, write_atomically

if TYPE_CHECKING:
    from datasets import DatasetDict
    from huggingface_hub import ModelCard
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetuning.profiles import Profile
    from finetuning.shipping.review_pipeline import ReviewPipeline
    from finetuning.workspace import Workspace

USAGE = "finetuning.json"
CARD = "README.md"
OPEN_MODELS = ("pocket T5", "google-t5/")  # their licence is Apache 2.0, which what is trained from them may keep


def save_usage(folder: Path, settings: Profile) -> Path:
    """Write ``finetuning.json`` beside a saved model: the prompt, the length in tokens and the label words; returns its path.

    With it the folder holds all that is needed to ask the model as it was trained.
    """
    usage = {"prompt": settings.prompt, "max_length": settings.max_length, "label_words": LABEL_WORDS}
    write_atomically(folder / USAGE, json.dumps(usage, indent=2) + "\n")
    return folder / USAGE


def read_usage(folder: Path) -> dict:
    """What ``save_usage`` wrote, as a dict. Raises CourseError when it is missing, damaged or meant for other label words."""
    path = Path(folder) / USAGE
    try:
        usage = json.loads(path.read_text(encoding="utf-8"))
        whole = "{text}" in usage["prompt"] and usage["max_length"] > 0
        if not whole or tuple(usage["label_words"]) != LABEL_WORDS:
            raise ValueError(f"expected are prompt, max_length and the label words {', '.join(LABEL_WORDS)}")
    except FileNotFoundError as error:
        raise CourseError(
            f"{folder} holds no {USAGE}, which says how the model is asked; run 05_evaluate_and_ship.ipynb, which writes it."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"{path} cannot be used ({error}); run 05_evaluate_and_ship.ipynb, which writes it."
        ) from error
    return usage


def shipped_folder(run: str) -> Path:
    """The folder of a run's model. Raises CourseError, naming the command to run first, when nothing is trained there."""
    folder = run_folder(run) / "models" / "trainer"
    if not (folder / "model.safetensors").exists() and not (folder / "model.safetensors.index.json").exists():
        raise CourseError(
            f"There is no trained model in {folder}; run the lessons first (make run RUN={run}) or name another run."
        )
    return folder


def load_shipped(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """A saved model on this machine's GPU, if it has one, its tokenizer and how it is asked (``read_usage``)."""
    import torch

    usage = read_usage(folder)
    saved = choose(base_model=str(folder))
    model = load_model(saved).to("cuda" if torch.cuda.is_available() else "cpu")
    return model, load_tokenizer(saved), usage


def model_card(
    workspace: Workspace, splits: DatasetDict, *, method: str = "trainer", remarks: Sequence[str] = ()
) -> ModelCard:
    """The card of a run's model as a ``huggingface_hub.ModelCard``: every number in it is read from the run's results.

    ``splits`` are the prepared reviews, whose sizes it tells; ``remarks`` are sentences on what lesson 05 found, which stand
    below the results. It keeps to the outline of Mitchell et al. 2019, "Model cards for model reporting".
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    settings, results, row = workspace.settings, workspace.results(), workspace.row(method)
    model, data = describe(settings.model), describe(settings.reviews)
    where = {
        "task_type": "text-classification",
        "task_name": "sentiment of movie reviews",
        "dataset_type": data if _is_hub_id(data) else re.sub(r"\W+", "-", data).strip("-").lower(),
        "dataset_name": data,
        "dataset_split": "test",
        "dataset_revision": settings.reviews_revision,
    }
    interval = f"95 % interval {row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}, {row['n_test']} reviews"
    card = ModelCardData(
        language="en",
        license="apache-2.0" if model.startswith(OPEN_MODELS) else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["t5", "sentiment-analysis"],
        base_model=model if _is_hub_id(model) else None,
        datasets=[data] if _is_hub_id(data) else None,
        metrics=["accuracy", "f1"],
        model_name=f"{model} fine-tuned on {data}",
        eval_results=[
            EvalResult(
                **where, metric_type="accuracy", metric_value=row["accuracy"], metric_name=f"accuracy ({interval})"
            ),
            EvalResult(**where, metric_type="f1", metric_value=row["f1"], metric_name="F1 of the positive class"),
        ],
    )
    text = _card_text(settings, results, row, {name: len(split) for name, split in splits.items()}, remarks)
    return ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}")


def _is_hub_id(place):
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None


def _card_text(settings, results, row, sizes, remarks):
    model, data, run = describe(settings.model), describe(settings.reviews), results["run"]
    others = [
        other for other in results["rows"] if other["method"] in ("majority", "tfidf", "zero_shot", "from_scratch")
    ]
    table = [
        f"| {r['method']} | {r['accuracy']:.3f} | {r['accuracy_low']:.3f} to {r['accuracy_high']:.3f} | {r['f1']:.3f} | {r['n_test']:,} |"
        for r in (row, *others)
    ]
    limits = [
        f"Measured on {row['n_test']:,} reviews of {data} and on nothing else: expect less on other kinds of text.",
        f"It reads English, and of a long review only the first {settings.max_length:,} tokens.",
        "It always answers with one of two words: a text that is mixed, neutral or no review at all gets one of them as well.",
        "The score is the model's own probability between the two words, and no promise that it is right as often.",
        "It judges texts, not people; do not let it decide about anybody.",
    ]
    hardware, versions = run["hardware"], run["versions"]
    machine = hardware["gpu"] or f"{hardware['cores']} cores of {hardware['processor']}"
    return "\n".join(
        [
            f"# {model} fine-tuned on {data}",
            "",
            f"Reads a movie review and answers `{LABEL_WORDS[0]}` or `{LABEL_WORDS[1]}`: {row['parameters']:,} parameters, "
            f"accuracy {row['accuracy']:.3f} (95 % interval {row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}) on "
            f"{row['n_test']:,} test reviews.",
            "",
            "## How to use it",
            "",
            "The answer is one token long, so one decoder step is enough. `folder` is where this card lies, or the model's id on the Hub.",
            "",
            "```python",
            _snippet(settings),
            "```",
            "",
            "## What it learned from",
            "",
            f"{sizes['train']:,} training reviews of {data}; {sizes['validation']:,} validation reviews chose the checkpoint, and "
            f"{sizes['test']:,} test reviews, which training never saw, gave the numbers. Repeated reviews were taken out.",
            "",
            f"Start: {model}. {settings.epochs} epochs, batches of {settings.batch_size}, AdamW, learning rate "
            f"{settings.learning_rate:g}, at most {settings.max_length:,} tokens, seed {settings.seed}. "
            f"{row['train_seconds']:.0f} s on {machine}, with transformers {versions['transformers']} and torch {versions['torch']}.",
            "",
            "## How good it is",
            "",
            "| method | accuracy | 95 % interval | F1 | test reviews |",
            "|---|---|---|---|---|",
            *table,
            "",
            "Intervals: percentile bootstrap over the test reviews. The other rows are baselines on the same reviews.",
            *(["", *[f"- {remark}" for remark in remarks]] if remarks else []),
            "",
            "## Limits",
            "",
            *[f"- {limit}" for limit in limits],
            *(
                []
                if model.startswith(OPEN_MODELS)
                else ["", "No licence is stated: add the one of the model it started from."]
            ),
            "",
        ]
    )


def _snippet(settings):
    prompt, words = json.dumps(settings.prompt), ", ".join(f'"{word}"' for word in LABEL_WORDS)
    return f"""\
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
text = {prompt}.format(text="What a quiet joy of a film.")
inputs = tokenizer(text, truncation=True, max_length={settings.max_length}, return_tensors="pt")
start = torch.tensor([[model.config.decoder_start_token_id]])
words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ({words})]
with torch.inference_mode():
    scores = model(**inputs, decoder_input_ids=start).logits[0, 0, words].softmax(-1)
print(dict(zip(({words}), scores.tolist())))"""


def answer(pipe: ReviewPipeline, text: str) -> str:
    """A review's label and its probability in words; ``pipe`` is a ``ReviewPipeline``."""
    if not text.strip():
        return "Write a review first."
    best = pipe(text)[0]
    return f"{best['label']}, with probability {best['score']:.3f}"


def review_form(pipe: ReviewPipeline) -> None:
    """Show a box to type a review in and a button that answers it; a line of text where nobody could press it.

    A form needs a notebook server behind the page, which tells its kernels by JPY_SESSION_NAME. A lesson that is executed
    headless has none, and a widget saved in it would show as an error wherever it is read.
    """
    if "JPY_SESSION_NAME" not in os.environ:
        print('Opened in JupyterLab, this cell shows a form; here, ask by ship.answer(ask, "...").')
        return
    from IPython.display import display
    from ipywidgets import HTML, Button, Textarea, VBox

    box = Textarea(placeholder="Type or paste a review", layout={"width": "100%", "height": "8em"})
    button, said = Button(description="Ask the model", button_style="primary"), HTML()
    button.on_click(lambda _: setattr(said, "value", f"<b>{answer(pipe, box.value)}</b>"))
    display(VBox([box, button, said]))
