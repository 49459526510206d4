"""The pieces of lesson 03, on a tiny random T5."""

import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainingArguments, set_seed

from finetuning.files import seal
from finetuning.labels import label_tokens, score_labels
from finetuning.machine import bf16_is_fast
from finetuning.metrics import wilson_interval
from finetuning.models import load_model, load_tokenizer, parameter_table, save_model
from finetuning.profiles import choose
from finetuning.trainer import (
    COIN_TOSS,
    curves,
    first_step_logits,
    label_accuracy,
    label_token_loss,
    last_whole_checkpoint,
    resume_point,
)


@pytest.fixture
def settings(tiny_model):
    return choose(base_model=str(tiny_model))


def reviews(tokenizer, count):
    texts = [
        f"sentiment: {'great stuff' if i % 2 else 'awful, plain awful'} number {i} " + "really " * (i % 5)
        for i in range(count)
    ]
    words = ["positive" if i % 2 else "negative" for i in range(count)]
    return Dataset.from_dict({**tokenizer(texts), "labels": tokenizer(text_target=words)["input_ids"]}).select_columns(
        ["input_ids", "labels"]
    )


def train(settings, folder, *, rows=32, **options):
    tokenizer = load_tokenizer(settings)
    set_seed(0)
    model = load_model(settings)
    options = {"per_device_train_batch_size": 16, "max_steps": 4, "logging_steps": 1, **options}
    args = Seq2SeqTrainingArguments(
        output_dir=folder,
        learning_rate=1e-2,
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=0,
        disable_tqdm=True,
        **options,
    )
    split = reviews(tokenizer, rows)
    trainer = Seq2SeqTrainer(
        model, args, train_dataset=split, eval_dataset=split,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_loss_func=label_token_loss, compute_metrics=label_accuracy(label_tokens(tokenizer)),
        preprocess_logits_for_metrics=first_step_logits(label_tokens(tokenizer)),
    )  # fmt: skip
    trainer.train()
    return trainer


def test_accumulation_does_not_change_the_loss(settings, tmp_path):
    """Four steps of 16, and of 4 x 4: T5's own loss would be four times too large in the second."""
    whole = train(settings, tmp_path / "a")
    parts = train(settings, tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=4)
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, parts)]
    assert len(losses[0]) == 4 and np.allclose(*losses, atol=1e-4)


def test_training_learns_what_can_be_learnt(settings, tmp_path):
    trainer = train(settings, tmp_path, max_steps=40)
    assert trainer.evaluate()["eval_accuracy"] == 1.0


def test_reload_gives_identical_predictions_and_only_safetensors(settings, tmp_path):
    model, tokenizer = load_model(settings), load_tokenizer(settings)
    folder = save_model(model, tokenizer, tmp_path / "model", [{"loss": 1.0, "epoch": 0.5}])
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert not folder.with_name("model.partial").exists()
    saved = choose(base_model=str(folder))
    options = {"prompt": "sentiment: {text}", "max_length": 32}
    before, _ = score_labels(model, tokenizer, ["fine", "not so fine"], **options)
    after, _ = score_labels(load_model(saved), load_tokenizer(saved), ["fine", "not so fine"], **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_model(saved).parameters(), strict=True))
    assert np.allclose(before, after, atol=1e-5)  # other memory, other rounding


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (15, '{"global_st'), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state:
            (folder / "trainer_state.json").write_text(state)
            seal(folder, seconds=1.0)
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-10")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 10, "epoch": 1}')  # changed since
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-5")
    (tmp_path / "checkpoint-5" / "sha256.json").unlink()  # killed before it was sealed
    assert last_whole_checkpoint(tmp_path) is None
    assert last_whole_checkpoint(tmp_path / "nothing") is None


def test_a_training_with_other_arguments_or_reviews_begins_at_the_start(tmp_path):
    reviews, folder = tmp_path / "reviews", tmp_path / "checkpoints"
    reviews.mkdir()
    seal(reviews)

    def point(rate):
        return resume_point(TrainingArguments(output_dir=folder, learning_rate=rate, use_cpu=True), reviews)

    assert point(1e-3) is None
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "trainer_state.json").write_text('{"global_step": 7}')
    seal(folder / "checkpoint-7", seconds=1.0)
    assert point(1e-3) == str(folder / "checkpoint-7")
    (reviews / "more").write_text("another review")
    seal(reviews)
    assert point(1e-3) is None and not (folder / "checkpoint-7").exists()
    (folder / "checkpoint-7").mkdir()
    assert point(1e-4) is None and not (folder / "checkpoint-7").exists()


def test_from_scratch_is_random_and_seeded(settings):
    first, again = load_model(settings, from_scratch=True), load_model(settings, from_scratch=True)
    trained = load_model(settings)
    assert torch.equal(first.shared.weight, again.shared.weight)
    assert not torch.equal(first.shared.weight, trained.shared.weight)


def test_parameter_table_counts_every_parameter_once(settings):
    model = load_model(settings)
    assert sum(parameter_table(model).values()) == model.num_parameters()


def test_who_is_sure_of_the_end_and_tosses_a_coin_for_the_word_pays_half_of_ln_2():
    logits = torch.full((1, 2, 8), -50.0)
    logits[0, 0, [3, 4]] = 0.0
    logits[0, 1, 1] = 0.0
    assert np.isclose(label_token_loss({"logits": logits}, torch.tensor([[3, 1]])).item(), COIN_TOSS)


@pytest.mark.parametrize(
    ("accuracies", "kept", "near"),
    [
        ([0.80, 0.86, 0.85], "kept: epoch 2, 0.860", "epoch 3; the choice may be noise"),
        ([0.55, 0.90, 0.70], "kept: epoch 2, 0.900", "no other epoch is in that interval"),
        ([0.80, 0.80, 0.60], "kept: epoch 1, 0.800", "epoch 2; the choice may be noise"),  # as the Trainer: the first
        ([0.80, 0.81, 0.82], "kept: epoch 3, 0.820", "epoch 1, 2; the choice may be noise"),
    ],
)
def test_lesson_03_says_whether_the_kept_epoch_was_a_choice_or_noise(accuracies, kept, near, capsys):
    cells = nbformat.read(ROOT / "notebooks" / "03_finetune_with_trainer.ipynb", as_version=4).cells
    log = [{"epoch": i, "eval_accuracy": value} for i, value in enumerate(accuracies, 1)]
    given = {"np": np, "curves": curves, "wilson_interval": wilson_interval, "seed": 1, "history": log}
    exec(
        next(cell.source for cell in cells if cell.id == "03-curves-choice"),
        {**given, "data": {"validation": range(200)}},
    )
    said = capsys.readouterr().out
    assert kept in said and near in said


def test_curves_are_read_from_the_log():
    log = [{"loss": 2.0, "epoch": 0.5}, {"eval_loss": 1.0, "eval_accuracy": 0.7, "epoch": 1.0}, {"train_runtime": 3}]
    found = curves(log)
    assert found["loss"][1].tolist() == [2.0] and found["eval_accuracy"][0].tolist() == [1.0]


def test_numbers_too_small_to_matter_cost_no_time(settings):
    """A loaded model has the processor take them for zero; where it cannot, the library says so."""
    supported = torch.set_flush_denormal(False)
    load_model(settings)
    if supported:
        assert (torch.tensor([1e-38]) * torch.tensor([1e-2])).item() == 0


def test_a_busy_machine_computes_in_the_same_type():
    """Else the same seed would give another model while other programs run."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        answers = {bf16_is_fast.__wrapped__() for _ in range(20)}
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert answers == {bf16_is_fast()}
