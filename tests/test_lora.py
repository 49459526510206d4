"""Adapters: without effect at first, read back whole or refused, trained by several processes, counted in theory."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import review_file

from finetuning.distributed import jobs, launch
from finetuning.distributed.memory import expected_bytes, held_bytes
from finetuning.distributed.planner import adapter_parameters, plan, t5_shape
from finetuning.errors import CourseError
from finetuning.labels import score_labels
from finetuning.lora import ADAPTER, add_lora, load_adapter
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import POCKET_T5, choose


@pytest.fixture
def settings(tiny_model):
    return choose(base_model=str(tiny_model))


@pytest.fixture
def batch(settings):
    inputs = load_tokenizer(settings)(["a great film", "an awful one"], padding=True, return_tensors="pt")
    return {**inputs, "decoder_input_ids": torch.zeros(2, 1, dtype=torch.long)}


@pytest.fixture
def adapter(settings, tmp_path):
    """The folder of an adapter that does something, and its model."""
    model = add_lora(load_model(settings), 2, ["q", "v"])
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_at_the_start_an_adapter_changes_nothing_and_the_rest_is_frozen(settings, batch):
    plain, adapted = load_model(settings), add_lora(load_model(settings), 2, ["q", "v"])
    assert torch.equal(adapted(**batch).logits, plain(**batch).logits)
    named = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert named and all("lora_" in name for name in named)
    assert (
        adapted.num_parameters(only_trainable=True)
        == adapter_parameters(plain.config, 2)
        < plain.num_parameters(only_trainable=True)
    )


@pytest.mark.parametrize(("rank", "matrices"), [(0, ["q"]), (2, ["query"]), (2, ["q,", "v"]), (2, ["lm_head"])])
def test_no_rank_and_no_such_matrix_are_refused_with_what_there_is(settings, rank, matrices):
    with pytest.raises(CourseError, match="choose a rank from 1 up and matrices among k, o, q, v, wi, wo"):
        add_lora(load_model(settings), rank, matrices)


def test_an_adapter_read_back_and_merged_answers_as_it_did(settings, batch, adapter):
    folder, model = adapter
    logits, plain = model.eval()(**batch).logits, load_model(settings).eval()(**batch).logits
    assert torch.equal(load_adapter(settings, folder).eval()(**batch).logits, logits)
    merged = load_adapter(settings, folder).merge_and_unload()
    assert torch.allclose(merged.eval()(**batch).logits, logits, atol=1e-4)
    assert not torch.allclose(logits, plain, atol=1e-2)


def spoil(folder, change):
    tensors = load_file(folder / ADAPTER)
    first = next(iter(tensors))
    if change == "empty":
        tensors[first] = torch.empty(0)
    elif change == "missing":
        del tensors[first]
    save_file({} if change == "no tensor" else tensors, folder / ADAPTER)
    if change == "cut short":
        (folder / ADAPTER).write_bytes((folder / ADAPTER).read_bytes()[:200])
    elif change == "gone":
        (folder / ADAPTER).unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("empty", r"1 of the \d+ tensors .* have the size zero.*gather them and save again"),
        ("missing", "lacks tensors or has others.*save the adapter again"),
        ("no tensor", "lacks tensors or has others"),
        ("cut short", "There is no adapter that can be read"),
        ("gone", "There is no adapter that can be read"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(settings, adapter, change, says):
    spoil(adapter[0], change)
    with pytest.raises(CourseError, match=says):
        load_adapter(settings, adapter[0])


def test_the_adapter_of_another_model_is_refused(adapter):
    with pytest.raises(CourseError, match=r"does not fit .*; give the base_model that is named in .*adapter_config"):
        load_adapter(choose(), adapter[0])


def test_bytes_of_frozen_parameters_are_counted_as_in_theory(settings, batch):
    model = add_lora(load_model(settings), 2, ["q", "v"])
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    model(**batch).logits.sum().backward()
    optimizer.step()
    frozen = model.num_parameters() - model.num_parameters(only_trainable=True)
    held = held_bytes(model, optimizer)
    assert {part: held[part] for part in held if part != "buffers"} == expected_bytes(
        model.num_parameters(only_trainable=True), 0, 1, frozen=frozen
    )


def test_the_planner_counts_adapters_as_peft_adds_them_and_finds_room():
    shape = t5_shape(str(POCKET_T5))
    assert adapter_parameters(shape, 4) == add_lora(load_model(choose()), 4, ["q", "v"]).num_parameters(
        only_trainable=True
    )
    whole, little = (plan("t5-3b", memory="80GB", lora=rank).rows[0] for rank in (0, 8))
    assert little.strategy == "plain" and little.total - little.bytes["activations"] < 0.5 * 54e9
    assert whole.strategy == "plain" and little.micro_batch > whole.micro_batch
    for strategy, gpus in (("zero2", 8), ("zero3", 8)):  # frozen weights are shared out by stage 3 alone
        held = {row.strategy: row.bytes for row in plan("t5-3b", gpus=gpus, memory="80GB", lora=8).rows}[strategy]
        share = 2 * 2_851_598_336 / (gpus if strategy == "zero3" else 1)
        assert share <= held["parameters"] < 1.2 * share + 3e8
    assert '"lora_rank": 8' in plan("t5-3b", lora=8, memory="80GB").file
    with pytest.raises(CourseError, match="lora, the rank, must be a whole number"):
        plan("t5-3b", lora=-1)


@pytest.mark.slow
def test_trained_under_zero_3_the_adapter_is_whole_and_merged_it_answers_the_same(tiny_model, tmp_path, runs):
    reviews = review_file(tmp_path / "mine.csv")
    text = f"run: mine\nbase_model: {tiny_model}\nreviews: {reviews}\nepochs: 2\nlearning_rate: 1e-2\nbatch_size: 16\n"
    (tmp_path / "small.yaml").write_text(
        text + "micro_batch: 4\ndeepspeed: zero3\nlora_rank: 2\nlora_matrices: q v wi\n"
    )
    (training,) = jobs.read_trainings(tmp_path / "small.yaml")
    answers = launch.run(training, ranks=2)
    adapter = load_adapter(training.chosen, training.folder / "adapter")
    row = training.workspace.row("small")
    trained = sum(tensor.numel() for tensor in load_file(training.folder / "adapter" / ADAPTER).values())
    for part, size in expected_bytes(trained, 3, 2, frozen=answers[0]["parameters"] - trained).items():
        assert abs(row.bytes_per_rank[part] - size) <= 0.02 * size, part
    texts = ["A great film number 3", "An awful film number 4 really"]
    options = {"prompt": training.chosen.prompt, "max_length": training.chosen.max_length}
    tokenizer = load_tokenizer(training.chosen)
    apart, _ = score_labels(adapter, tokenizer, texts, **options)
    merged, _ = score_labels(load_model(choose(base_model=str(training.folder))), tokenizer, texts, **options)
    assert np.allclose(apart, merged, atol=1e-4)
    assert not (training.folder / "checkpoints").exists()
