"""The planner: its counts are the models' and DeepSpeed's, its activations are what PyTorch saves, its answers fit."""

import json
import weakref
from itertools import pairwise

import pytest

from finetuning.distributed.activations import activation_bytes, saved_bytes
from finetuning.distributed.planner import (
    FAMILY,
    STRATEGIES,
    card_bytes,
    count_parameters,
    family_bytes,
    needed_bytes,
    plan,
    state_bytes,
    t5_shape,
)
from finetuning.distributed.zero import configuration, import_deepspeed
from finetuning.errors import CourseError
from finetuning.profiles import POCKET_T5, PROFILES

SMALL = {
    "vocab_size": 500, "d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 3, "num_heads": 4,
    "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
# What differs from SMALL, reviews, (input, label) tokens
SHAPES = {
    "small": ({}, 4, (64, 2)),
    "one review": ({}, 1, (96, 2)),
    "narrow and long": ({"d_model": 32}, 2, (160, 16)),
    "heads wider than the model": ({"num_heads": 12}, 3, (96, 2)),
    "heads narrower than the model": ({"d_kv": 8, "d_model": 128}, 3, (96, 2)),
    "gated": ({"feed_forward_proj": "gated-gelu"}, 4, (48, 24)),
    "another gate": ({"feed_forward_proj": "gated-silu", "d_ff": 300}, 2, (64, 32)),
    "uneven stacks": ({"num_layers": 6, "num_decoder_layers": 1}, 2, (100, 2)),
    "large vocabulary": ({"vocab_size": 8000}, 8, (32, 16)),
    "deep": ({"num_layers": 10}, 2, (128, 4)),
}


def build(changes, reviews, tokens, precision):
    """A T5 of random weights in eager attention, and a batch with padding: (model, batch)."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(**SMALL | changes)).train()
    model.set_attn_implementation("eager")
    if precision == "bf16":
        model = model.bfloat16()
    mask = torch.ones(reviews, tokens[0], dtype=torch.long)
    mask[0, -3:] = 0
    labels = torch.randint(2, model.config.vocab_size, (reviews, tokens[1]))
    inputs = torch.randint(2, model.config.vocab_size, (reviews, tokens[0]))
    decoder = model.prepare_decoder_input_ids_from_labels(labels)
    return model, {"input_ids": inputs, "attention_mask": mask, "decoder_input_ids": decoder, "labels": labels}


def estimate(model, reviews, tokens, **options):
    parts = activation_bytes(model.config, reviews, tokens, **options)
    return sum(parts.values()) - parts["backward"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_activations_are_what_pytorch_saves(name, precision):
    changes, reviews, tokens = SHAPES[name]
    model, batch = build(changes, reviews, tokens, precision)
    assert estimate(model, reviews, tokens, precision=precision) == pytest.approx(saved_bytes(model, batch), rel=0.01)


@pytest.mark.parametrize("name", SHAPES)
def test_the_activations_under_autocast(name):
    import torch

    changes, reviews, tokens = SHAPES[name]
    model, batch = build(changes, reviews, tokens, "autocast")
    with torch.autocast("cpu", torch.bfloat16):
        saved = saved_bytes(model, batch)
    copies = 2 * model.num_parameters()  # of the weights, which state_bytes counts
    assert estimate(model, reviews, tokens, precision="autocast") == pytest.approx(saved - copies, rel=0.1)


def live_bytes(model, batch):
    """Measured: bytes of all tensors alive after the forward pass, and at the most during a step: (after, peak)."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from finetuning.trainer import label_token_loss

    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    known = {part.untyped_storage()._cdata for weight in model.parameters() for part in (weight, weight.grad)}

    class Live(TorchDispatchMode):
        now, peak = 0, 0
        alive = {}  # noqa: RUF012

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.count(tensor.untyped_storage())
            return result

        def count(self, storage):
            address, size = storage._cdata, storage.nbytes()
            if address not in known and address not in self.alive:
                self.now += size
                self.peak = max(self.peak, self.now)
                self.alive[address] = weakref.ref(storage, lambda _: self.free(address, size))

        def free(self, address, size):
            self.now -= size
            self.alive.pop(address, None)

    with Live() as live:
        loss = label_token_loss(model(**{k: v for k, v in batch.items() if k != "labels"}), batch["labels"])
        after = live.now
        loss.backward()
    return after, live.peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_activations_of_a_whole_step(name, checkpointing, precision):
    changes, reviews, tokens = SHAPES[name]
    model, batch = build(changes, reviews, tokens, precision)
    if checkpointing:
        model.activation_checkpointing_enable()
    after, peak = live_bytes(model, batch)
    options = {"precision": precision, "checkpointing": checkpointing}
    assert estimate(model, reviews, tokens, **options) == pytest.approx(after, rel=0.02)
    estimated = sum(activation_bytes(model.config, reviews, tokens, **options).values())
    if checkpointing:  # an estimate from above: a layer computed again frees its parts one by one
        assert 0.98 * peak <= estimated <= 1.2 * peak
    else:
        assert estimated == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_activations_of_t5_small_on_whole_reviews(checkpointing):
    changes = FAMILY["google-t5/t5-small"]
    model, batch = build(changes, 2, (512, 2), "bf16")
    if checkpointing:
        model.activation_checkpointing_enable()
    estimated = sum(activation_bytes(model.config, 2, (512, 2), checkpointing=checkpointing).values())
    assert estimated == pytest.approx(live_bytes(model, batch)[1], rel=0.03)


def test_the_family_has_the_published_sizes():
    sizes = [count_parameters(t5_shape(name))[0] for name in FAMILY]
    assert sizes == [60_506_624, 222_903_552, 737_668_096, 2_851_598_336, 11_307_321_344]
    assert count_parameters(t5_shape(POCKET_T5))[0] < sizes[0]


@pytest.mark.parametrize("gpus", [1, 2, 8, 64])
def test_stages_2_and_3_and_offload_are_deepspeeds_estimates(gpus):
    import_deepspeed()
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as three
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as two

    machines = {"num_gpus_per_node": min(gpus, 8), "num_nodes": max(1, gpus // 8)}
    for name in FAMILY:
        counts = count_parameters(t5_shape(name))
        sizes = {strategy: sum(state_bytes(*counts, strategy, gpus)[0].values()) for strategy in STRATEGIES}
        assert sizes["zero2"] == two(counts[0], cpu_offload=False, **machines)[1]
        assert sizes["zero3"] == three(*counts, cpu_offload=False, **machines)[1]
        assert sizes["zero2_offload"] == two(counts[0], **machines)[1]
        assert sizes["zero3_offload"] == three(*counts, **machines)[1]
        assert state_bytes(*counts, "zero3_offload", gpus)[1] == three(*counts, **machines)[0]


def test_one_gpu_takes_what_a_plain_training_holds():
    import torch

    model, batch = build({}, 2, (32, 2), "autocast")
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch).loss.backward()
    optimizer.step()
    from finetuning.distributed.memory import held_bytes

    counted = sum(held_bytes(model, optimizer).values())
    copies = 2 * model.num_parameters()
    assert sum(state_bytes(model.num_parameters(), 0, "plain", 1)[0].values()) == counted + copies


def test_more_gpus_and_higher_stages_never_take_more():
    for name in FAMILY:
        counts = count_parameters(t5_shape(name))
        by_gpus = {
            n: {strategy: sum(state_bytes(*counts, strategy, n)[0].values()) for strategy in STRATEGIES}
            for n in (2, 3, 4, 8, 16, 64)
        }
        for sizes in by_gpus.values():
            assert sizes["zero3"] <= sizes["zero2"] <= sizes["zero1"] <= sizes["plain"]
            assert sizes["zero2_offload"] <= sizes["zero2"] and sizes["zero3_offload"] <= sizes["zero3"]
        for fewer, more in pairwise(by_gpus.values()):
            assert all(more[strategy] <= fewer[strategy] for strategy in STRATEGIES)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", [*FAMILY, POCKET_T5])
@pytest.mark.parametrize(("gpus", "memory"), [(1, "80GB"), (4, "24GB"), (8, "16GB"), (64, "40 GiB")])
def test_the_micro_batch_fits_and_twice_it_does_not(gpus, memory, name, checkpointing):
    setting = {"tokens": (256, 4), "checkpointing": checkpointing}
    answer = plan(name, gpus=gpus, memory=memory, **setting)
    shape = t5_shape(name)
    for row in answer.rows:
        taken = {
            n: sum(needed_bytes(shape, row.strategy, gpus, n, **setting)[0].values())
            for n in (1, row.micro_batch, 2 * row.micro_batch)
            if n
        }
        if row.micro_batch:
            assert row.total == taken[row.micro_batch] <= answer.usable < taken[2 * row.micro_batch]
        else:
            assert row.total == taken[1] > answer.usable
    fits = [row.strategy for row in answer.rows if row.micro_batch]
    assert (
        fits == [strategy for strategy in STRATEGIES if strategy in fits]
        and [row.strategy for row in answer.rows][: len(fits)] == fits
    )
    assert {row.strategy for row in answer.rows} == set(STRATEGIES)


def test_the_ways_are_the_courses_configurations():
    for strategy, (stage, offload) in STRATEGIES.items():
        if strategy != "plain":
            zero = configuration(strategy)["zero_optimization"]
            assert zero["stage"] == stage
            assert ("offload_optimizer" in zero, "offload_param" in zero) == (
                "optimizer" in offload,
                "parameters" in offload,
            )


def test_the_answer_in_words():
    small = plan("google-t5/t5-small", gpus=1, memory="16GB")
    assert small.rows[0].strategy == "plain" and small.advice.endswith("you do not need DeepSpeed.")
    large = plan("google-t5/t5-11b", gpus=8, memory="16GB")
    assert large.rows[0].strategy == "zero3_offload" and "main memory" in large.advice
    lines = str(large).splitlines()
    assert "11,307,321,344 parameters on 8 GPUs of 16.0 GB" in lines[0] and lines[-3] == large.advice
    table = lines[2:-3]
    assert [line.split()[0] for line in table] == ["strategy", *(row.strategy for row in large.rows)]
    assert len({len(line) for line in table}) == 1 and sum("too large" in line for line in table) == 5


def test_checkpointing_and_shorter_reviews_leave_room_for_more():
    plainly = plan("google-t5/t5-large", memory="40GB").rows[0].micro_batch
    assert plan("google-t5/t5-large", memory="40GB", checkpointing=True).rows[0].micro_batch > plainly
    assert plan("google-t5/t5-large", memory="40GB", tokens=(128, 2)).rows[0].micro_batch > plainly


def test_what_fits_nowhere_is_told_what_would_help():
    with pytest.raises(CourseError, match=r"not even with zero3_offload.* checkpointing=True") as failure:
        plan("google-t5/t5-11b", gpus=2, memory="6GB")
    needed = int(str(failure.value).split("cards of ")[1].split()[0])
    assert plan("google-t5/t5-11b", gpus=2, memory=f"{needed}GB").rows[0].micro_batch == 1
    assert plan("google-t5/t5-11b", gpus=2, memory="6GB", checkpointing=True).rows[0].micro_batch


def test_the_family_plots_numbers_are_the_planners():
    drawn = family_bytes((1, 8))
    assert "zero1" not in drawn[1] and set(drawn[8]) == set(STRATEGIES)
    shape = t5_shape("google-t5/t5-3b")
    assert drawn[8]["zero2"][2_851_598_336] == sum(needed_bytes(shape, "zero2", 8, 1, tokens=(512, 2))[0].values())


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("16GB", 16 * 10**9),
        ("80 GiB", 80 * 2**30),
        ("1.5tb", 1_500_000_000_000),
        (2**34, 2**34),
        ("17000000000", 17 * 10**9),
    ],
)
def test_sizes_are_read(written, size):
    assert card_bytes(written) == size


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"memory": "16 GIGA"}, "such as '16GB'"),
        ({"memory": "-16GB"}, "such as '16GB'"),
        ({"memory": None}, "such as '16GB'"),
        ({"memory": True}, "such as '16GB'"),
        ({"memory": 16}, "forget the unit"),
        ({"gpus": 0}, "gpus must be a whole number from 1 up"),
        ({"gpus": 2.0}, "gpus must be a whole number"),
        ({"gpus": True}, "gpus must be a whole number"),
        ({"tokens": 512}, "tokens is a pair"),
        ({"tokens": (512, 0)}, "whole number from 1 up"),
        ({"model": "t5-tiny"}, "t5-small"),
        ({"model": None}, "folders with a config.json"),
    ],
)
def test_wrong_input_is_told_the_way_out(wrong, says):
    with pytest.raises(CourseError, match=says) as failure:
        plan(**{"model": "google-t5/t5-small"} | wrong)
    assert "\n" not in str(failure.value)


def test_an_unknown_precision_is_refused():
    with pytest.raises(CourseError, match="one of fp32, bf16, autocast"):
        activation_bytes(t5_shape("google-t5/t5-small"), 1, (512, 2), precision="fp16")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model_type": "bert"}', '{"model_type": "t5", "d_model": "wide"}', "\x00"]
)
def test_a_folder_that_holds_no_t5(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CourseError, match="is not the configuration of a T5") as failure:
        plan(tmp_path)
    assert "\n" not in str(failure.value)


def test_a_folder_of_your_own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", **FAMILY["google-t5/t5-base"]}))
    assert plan(tmp_path).parameters == plan("google-t5/t5-base").parameters


@pytest.mark.parametrize("name", ["small", "base"])
def test_the_batch_of_a_profile_fits_a_card_of_16_gb(name):
    profile = PROFILES[name]
    plainly = next(
        row
        for row in plan(profile.model, memory="16GB", tokens=(profile.max_length, 2)).rows
        if row.strategy == "plain"
    )
    assert plainly.micro_batch >= profile.batch_size
