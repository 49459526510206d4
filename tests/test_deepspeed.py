"""Lesson 04's pieces: real trainings of two processes on a small model, their bytes, their crashes and their ends."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from finetuning.data import save_splits
from finetuning.distributed import jobs, launch, memory, zero
from finetuning.errors import CourseError
from finetuning.labels import LABEL_WORDS, score_labels
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import choose
from finetuning.results import ResultRow
from finetuning.trainer import last_whole_checkpoint
from finetuning.workspace import Workspace

trains = pytest.mark.slow
STEPS = 6


def make_workspace(model, folder):
    """A run with 44 short reviews, ready to train on: fewer than the trainings take, so that they are repeated."""
    settings = choose(base_model=str(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNING_RUNS", str(folder))
        workspace = Workspace("ds", settings)
    tokenizer = load_tokenizer(settings)
    splits = {}
    for name, count in (("train", 44), ("test", 21)):
        labels = [i % 2 for i in range(count)]
        texts = [f"{('awful', 'great')[i % 2]} thing {i} " + "really " * (i % 7) for i in range(count)]
        ids = tokenizer([settings.prompt.format(text=text) for text in texts])["input_ids"]
        words = tokenizer([LABEL_WORDS[label] for label in labels])["input_ids"]
        rows = Dataset.from_dict({"text": texts, "label": labels, "input_ids": ids, "labels": words})
        splits[name] = rows.cast_column("label", ClassLabel(names=list(LABEL_WORDS)))
    save_splits(DatasetDict(splits), workspace.data / "reviews")
    return workspace


@pytest.fixture(scope="module")
def workspace(tiny_model, tmp_path_factory):
    """The run of all tests here, also while fixtures of the module are made."""
    made = make_workspace(tiny_model, tmp_path_factory.mktemp("ds") / "course (1)")  # as a second download is named
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNING_RUNS", str(made.path.parent))
        yield made


@pytest.fixture(autouse=True)
def runs(workspace, monkeypatch):
    """All tests here work in one run."""
    monkeypatch.setenv("FINETUNING_RUNS", str(workspace.path.parent))


@pytest.fixture(scope="module")
def trained(workspace):
    """Plain and every stage in both precisions: a dict of name -> what the ranks measured."""
    options = {"steps": STEPS, "learning_rate": 1e-2, "save": True}
    plain = jobs.training_job(workspace, "plain", **options)
    found = {"plain": launch.run(plain, ranks=1, launcher="python")}
    several = [
        jobs.training_job(
            workspace, f"zero{s}{'_bf16' * bf16}", deepspeed=f"zero{s}", micro_batch=4, bf16=bf16, **options
        )
        for bf16 in (False, True)
        for s in range(4)
    ]
    several.append(jobs.training_job(workspace, "zero2_offload", deepspeed="zero2_offload", micro_batch=4, **options))
    return found | dict(zip([one.name for one in several], launch.run(several), strict=True))


@trains
def test_every_stage_takes_the_steps_of_the_plain_trainer(trained):
    for name in ("zero0", "zero1", "zero2", "zero3", "zero2_offload"):
        assert trained[name][0]["engine"] == "DeepSpeedEngine" and trained[name][0]["world_size"] == 2
        assert len(trained[name][0]["losses"]) == STEPS
        assert np.allclose(trained[name][0]["losses"], trained["plain"][0]["losses"], atol=1e-4), name


@trains
@pytest.mark.skipif(zero.built_cpu_adam() is None, reason="DeepSpeed's CPU Adam has not been built on this machine")
def test_offload_uses_the_cpu_adam_that_is_there(trained):
    assert trained["zero2_offload"][0]["optimizer"] == "DeepSpeedCPUAdam"


@trains
def test_counted_bytes_are_those_of_theory(trained):
    for s in range(4):
        for bf16 in (False, True):
            for answer in trained[f"zero{s}{'_bf16' * bf16}"]:
                expected = memory.expected_bytes(answer["parameters"], s, 2, bf16=bf16)
                for part, size in expected.items():
                    assert abs(answer["bytes_per_rank"][part] - size) <= 0.02 * size, (answer["name"], part)


def test_theory_is_what_the_paper_says():
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 GPUs take 120, 31.4, 16.6 and 1.9 GB."""
    gb = [sum(memory.expected_bytes(7.5e9, s, 64, bf16=True).values()) / 1e9 for s in range(4)]
    assert np.allclose(gb, [120, 31.4, 16.6, 1.9], atol=0.05)


@trains
def test_saved_models_are_ordinary_ones_and_predict_the_same(trained, workspace):
    test = Dataset.load_from_disk(workspace.data / "reviews" / "test")
    plain_size = (workspace.models / "plain" / "model.safetensors").stat().st_size
    for name in ("zero1", "zero2", "zero3"):
        folder = workspace.models / name
        assert (folder / "model.safetensors").stat().st_size <= plain_size
        saved = choose(base_model=str(folder))
        scores, _ = score_labels(
            load_model(saved), load_tokenizer(saved), test["text"], prompt=saved.prompt, max_length=saved.max_length
        )
        assert np.allclose(scores, trained[name][0]["scores"], atol=1e-5)
        assert np.allclose(scores, trained["plain"][0]["scores"], atol=1e-2)


@trains
@pytest.mark.alone  # the system counts what all programs send
def test_traffic_is_that_of_theory(tmp_path, monkeypatch):
    """On the shipped model, where the weights outweigh what the processes say to each other besides."""
    from finetuning.profiles import POCKET_T5

    mine = make_workspace(POCKET_T5, tmp_path)
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path))
    cases = [(s, a) for s in range(4) for a in (1, 2)]
    several = [jobs.training_job(mine, f"t{s}{a}", deepspeed=f"zero{s}", steps=5, micro_batch=8 // a) for s, a in cases]
    for (s, a), answers in zip(cases, launch.run(several), strict=True):
        if answers[0]["bytes_sent_per_step"] is None:
            pytest.skip("this system does not count what it sends to itself (/proc/net/dev)")
        expected = memory.expected_traffic(answers[0]["parameters"], s, 2, a)
        assert abs(answers[0]["bytes_sent_per_step"] / expected - 1) < 0.05, (s, a)


COUNTED = """
import collections, sys
import torch

asked = collections.Counter()
def count(name, function):
    def counting(*given, **named):
        tensors = [t.numel() for t in [*given, *named.values()] if torch.is_tensor(t)]
        asked[name] += max(tensors, default=0)
        return function(*given, **named)
    setattr(torch.distributed, name, counting)
for name in ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "reduce", "broadcast", "all_gather"):
    count(name, getattr(torch.distributed, name))

from finetuning.distributed import memory, zero
from finetuning.models import load_model
from finetuning.profiles import choose

deepspeed = zero.import_deepspeed()
deepspeed.init_distributed()
for stage in range(4):
    for accumulation in (1, 2):
        filled = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": accumulation,
                  "gradient_clipping": 1.0, "bf16": {"enabled": False}}
        model = load_model(choose(base_model=sys.argv[1]))
        parameters, adam = model.num_parameters(), torch.optim.AdamW(model.parameters())
        config = zero.configuration(f"zero{stage}") | filled
        engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
        for step in range(3):  # in the first one stage 3 learns the order of the layers
            asked.clear()
            for _ in range(accumulation):
                words = torch.tensor([[7, 8, 1]])
                engine.backward(engine(input_ids=words, labels=words).loss)
                engine.step()
        sent = 2 * asked["all_reduce"] + asked["reduce_scatter_tensor"] + asked["all_gather_into_tensor"]
        sent += asked["all_gather"] + asked["reduce"] + asked["broadcast"]
        theory = memory.expected_traffic(parameters, stage, 2, accumulation, network="nccl")
        assert abs(4 * sent / 2 / theory - 1) < 0.05, (stage, accumulation, dict(asked), parameters)
print("as in theory")
"""


@trains
def test_gpus_send_what_deepspeed_asks_for(tiny_model, tmp_path):
    """What a GPU's network would send: every collective that DeepSpeed calls, at NCCL's price of it in passes."""
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, tiny_model]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"DS_ACCELERATOR": "cpu"})
    assert "as in theory" in done.stdout, done.stderr[-2000:]


def test_the_papers_traffic():
    """Rajbhandari et al. 2020, section 7: without accumulation stages 0 to 2 send the model twice, stage 3 thrice."""
    passes = [memory.expected_traffic(10**6, s, 1000, 1, network="paper") / 4e6 for s in range(4)]
    assert np.allclose(passes, [2, 2, 2, 3], rtol=0.01)
    large = [memory.expected_traffic(3 * 10**9, 3, 2, 4, network=name) for name in ("nccl", "paper")]
    assert large[0] == large[1] == 3 * 4 * 4 * 3e9 / 2  # too large to be kept: gathered twice


@pytest.fixture(scope="module")
def killed(workspace):
    """A training of each stage that was killed before its fifth step: a list of them, without the order to die."""
    several = []
    for s in (1, 2, 3):
        one = jobs.training_job(
            workspace,
            f"killed{s}",
            deepspeed=f"zero{s}",
            steps=STEPS,
            learning_rate=1e-2,
            micro_batch=4,
            save_steps=2,
            die_at=5,
        )
        with pytest.raises(CourseError, match=f"'killed{s}' stopped, a rank was killed"):
            launch.run(one)
        several.append(replace(one, die_at=0))
    return several


def copied(one, suffix):
    """The training with a copy of its folder in place of it."""
    other = replace(one, name=one.name + suffix)
    shutil.copytree(one.folder, other.folder)
    return other


@trains
def test_killed_trainings_go_on_with_the_same_losses(killed, trained):
    for answers in launch.run([copied(one, "_on") for one in killed]):
        assert answers[0]["steps"] == [*range(1, STEPS + 1)]
        assert np.allclose(answers[0]["losses"], trained["plain"][0]["losses"], atol=1e-4)


@trains
def test_killed_trainings_go_on_on_one_rank_from_a_universal_checkpoint(killed, trained):
    with pytest.raises(CourseError, match="another number of ranks; start as many as before, or make a universal one"):
        launch.run(copied(killed[1], "_wrong"), ranks=1)
    universal = [launch.universal_checkpoint(copied(one, "_alone")) for one in killed]
    for answers in launch.run(universal, ranks=1):
        assert answers[0]["world_size"] == 1
        assert np.allclose(answers[0]["losses"], trained["plain"][0]["losses"], atol=1e-4)


@trains
def test_a_torn_deepspeed_checkpoint_is_passed_over(killed, tmp_path):
    one = copied(killed[0], "_torn")
    newest = one.folder / "checkpoints" / "checkpoint-4"
    assert last_whole_checkpoint(newest.parent) == str(newest)
    for torn in ("latest", "rng_state_1.pth", next(newest.glob("global_step*/*optim_states.pt")).relative_to(newest)):
        (newest / torn).rename(tmp_path / "aside")
        assert last_whole_checkpoint(newest.parent).endswith("checkpoint-2"), torn
        (tmp_path / "aside").rename(newest / torn)


@pytest.mark.soak  # lesson 04 starts all three as well, and test_launch_assets the commands for clusters
@pytest.mark.parametrize("launcher", ["deepspeed", "two nodes"])
def test_other_launchers_give_the_same_losses(workspace, trained, launcher):
    """The other launchers of lesson 04 on two ranks: the losses of the plain Trainer."""
    one = jobs.training_job(workspace, "other", deepspeed="zero2", steps=STEPS, learning_rate=1e-2)
    answers = launch.run(one, launcher=launcher)
    assert [answer["rank"] for answer in answers] == [0, 1]
    assert np.allclose(answers[0]["losses"], trained["plain"][0]["losses"], atol=1e-4)


def namespaces_work():
    return os.geteuid() == 0 and subprocess.run(["ip", "netns", "add", "ft-probe"], capture_output=True).returncode == 0


@pytest.fixture
def two_nodes():
    """Two network namespaces joined by a cable: (name, address) of each."""
    try:
        if not namespaces_work():
            pytest.skip("this machine lets nobody make network namespaces (root and iproute2 are needed)")
    except FileNotFoundError:
        pytest.skip("iproute2 is not installed")
    subprocess.run(["ip", "netns", "del", "ft-probe"], check=True)
    nodes = [("ft-node0", "10.77.0.1"), ("ft-node1", "10.77.0.2")]
    try:
        for name, _ in nodes:
            subprocess.run(["ip", "netns", "add", name], check=True)
        link = [
            "ip",
            "link",
            "add",
            "ft0",
            "netns",
            "ft-node0",
            "type",
            "veth",
            "peer",
            "name",
            "ft1",
            "netns",
            "ft-node1",
        ]
        if subprocess.run(link, capture_output=True).returncode:
            pytest.skip("this machine's kernel has no virtual cables (veth)")
        for i, (name, address) in enumerate(nodes):
            inside = ["ip", "netns", "exec", name, "ip"]
            subprocess.run([*inside, "addr", "add", f"{address}/24", "dev", f"ft{i}"], check=True)
            for device in (f"ft{i}", "lo"):
                subprocess.run([*inside, "link", "set", device, "up"], check=True)
        yield nodes
    finally:
        for name, _ in nodes:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.soak
def test_two_nodes_with_networks_of_their_own(workspace, trained, two_nodes, tmp_path):
    """The commands of two machines, typed by hand: nothing but the cable joins them, and the losses are the same."""
    one = jobs.training_job(workspace, "nodes", deepspeed="zero2", steps=STEPS, learning_rate=1e-2)
    config = tmp_path / "nodes.yaml"
    config.write_text(jobs.trainings_as_yaml([one]))
    agents = []
    for rank, (name, _) in enumerate(two_nodes):
        words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        words += ["--node_rank", str(rank), "--master_addr", two_nodes[0][1], "--master_port", "29555"]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": f"ft{rank}", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        agents.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *words, "-m", "finetuning.distributed.train", str(config)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    answers = [json.loads((one.folder / f"rank{r}.json").read_text()) for r in range(2)]
    assert np.allclose(answers[0]["losses"], trained["plain"][0]["losses"], atol=1e-4)


def processes_with(text):
    """The ids of all processes whose command line holds ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


LONG = """
import sys
from finetuning.distributed import jobs, launch
from finetuning.profiles import choose
from finetuning.workspace import Workspace
workspace = Workspace("ds", choose(base_model=sys.argv[1]))
launch.run(jobs.training_job(workspace, "orphan", deepspeed="zero1", steps=5_000), launcher=sys.argv[2])
"""


@trains
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("launcher", "end"),
    [
        ("torchrun", signal.SIGKILL),
        ("deepspeed", signal.SIGINT),
        pytest.param("torchrun", signal.SIGINT, marks=pytest.mark.soak),
        pytest.param("deepspeed", signal.SIGKILL, marks=pytest.mark.soak),
    ],
)
def test_no_process_outlives_an_interrupt_or_a_dead_kernel(workspace, tiny_model, end, launcher):
    """No launcher and no rank is left ten seconds after an interrupt or the death of the kernel."""
    environment = os.environ | {"FINETUNING_RUNS": str(workspace.path.parent)}
    kernel = subprocess.Popen(
        [sys.executable, "-c", LONG, str(tiny_model), launcher],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # ignored when tests run in the background
    )
    assert b"orphan" in kernel.stdout.readline()  # it trains
    config = str(workspace.logs / "orphan.yaml")
    assert len(processes_with(config)) >= 3  # the launcher and two ranks
    kernel.send_signal(end)
    kernel.wait(timeout=20)
    ends = time.monotonic() + 10
    while processes_with(config) and time.monotonic() < ends:
        time.sleep(0.2)
    assert not processes_with(config)


@trains
def test_a_time_limit_ends_it(workspace):
    one = jobs.training_job(workspace, "slow", deepspeed="zero1", steps=100_000)
    with pytest.raises(CourseError, match="did not end within 8 s and was stopped"):
        launch.run(one, limit=8)
    assert not processes_with(str(workspace.logs / "slow.yaml"))


@trains
def test_too_little_memory_is_named(workspace):
    """A model whose first large matrix takes 16 GiB, under a limit of 8 GiB of address space."""
    shape = {"vocab_size": 128, "d_model": 2**16, "d_ff": 2**16, "num_heads": 8, "decoder_start_token_id": 0}
    one = jobs.training_job(workspace, "large", deepspeed="zero3", steps=3, shape=shape)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, before[1]))
    try:
        with pytest.raises(CourseError, match=r"ran out of memory or was killed; take a smaller micro_batch"):
            launch.run(one)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@trains
def test_a_key_that_deepspeed_does_not_know_is_named(workspace, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(zero.configuration("zero1") | {"comms_logger": {"loud": True}}))  # a section left to it
    with pytest.raises(CourseError, match="a key that DeepSpeed does not know"):
        launch.run(jobs.training_job(workspace, "wrong", deepspeed=str(path), steps=3))


def test_configurations_are_read_by_deepspeed_itself():
    zero.import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    for path in zero.CONFIGURATIONS.glob("*.json"):
        filled = json.loads(path.read_text()) | {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        sizes = [key for key, value in filled["zero_optimization"].items() if value == "auto"]
        filled["zero_optimization"] |= dict.fromkeys(sizes, 1)  # the Trainer fills them in from the model's width
        read = DeepSpeedConfig(filled | {"gradient_clipping": 1.0, "bf16": {"enabled": False}})
        assert read.zero_config.stage == int(path.stem[4])
        assert (read.zero_config.offload_optimizer is not None) == path.stem.endswith("offload")


def test_a_verdict_is_what_the_numbers_say():
    parts = lambda size: dict.fromkeys(memory.COMPONENTS, size)  # noqa: E731
    sizes = {"trainer_short": None, "deepspeed_zero0": 2**20, "deepspeed_zero3": 2**19}
    rows = {
        method: ResultRow("04", method, 0.8, 0, 1, 0.5, 9, bytes_per_rank=size and parts(size), world_size=2)
        for method, size in sizes.items()
    }
    said = memory.verdict_lines(rows, {"plain": [1.0, 1.1], "zero0": [0.5, 0.55], "zero3": [1.0, 1.1]})
    assert said == [
        "2 ranks without sharding (zero0): 0.50 times as long a step as the plain Trainer.",
        "zero3: holds 0.50 of zero0's bytes per rank, 2.00 times as long a step as zero0.",
        "The least memory per rank: zero3, 2.0 MiB.",
    ]
    assert memory.pace([1.0, 1.2, 1.4], [1.1, 1.3, 1.5], "zero0").startswith(
        "about as long a step as zero0 (0.92 times"
    )
