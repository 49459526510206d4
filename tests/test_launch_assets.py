"""The files for clusters: read by those they are for where that can be had, and their commands really started."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT

from finetuning.distributed import jobs, launch, zero
from finetuning.profiles import ASSETS

FOLDER = ASSETS / "launch"
SLURM = FOLDER / "train.slurm"
FAKES = {
    "scontrol": 'test "$1 $2" = "show hostnames" && printf "localhost\\nlocalhost\\n"',
    # as many copies of the command as the job has nodes; fails when one of them does
    "srun": """
        while [[ $1 == --* ]]; do echo "$1" >> "$SRUN_LOG"; shift; done
        echo "$*" >> "$SRUN_LOG"
        if [ -n "${SRUN_ONLY_LOG:-}" ]; then exit 0; fi
        for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do "$@" & done
        for job in $(jobs -p); do wait "$job" || failed=1; done
        exit ${failed:-0}""",
}


@pytest.fixture
def slurm(tmp_path):
    """Runs the Slurm script with stand-ins for Slurm's commands: (what srun was given, the finished process)."""
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def submit(*arguments, **environment):
        log = tmp_path / "srun.log"
        given = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SRUN_LOG": str(log), "SLURM_JOB_ID": "1234567",
            "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32",
        } | environment  # fmt: skip
        done = subprocess.run(
            ["bash", str(SLURM), *arguments],
            cwd=ROOT,
            env=os.environ | given,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return log.read_text().splitlines() if log.exists() else [], done

    return submit


def options(words):
    """``--name=value`` words as a dict."""
    return dict(re.findall(r"--([\w-]+)=(\S+)", " ".join(words)))


def pods():
    """The pods of the manifest by replica type: (replicas, the whole specification, its only container)."""
    manifest = yaml.safe_load((FOLDER / "pytorchjob.yaml").read_text())
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    return manifest, {name: (one, one["template"]["spec"]["containers"]) for name, one in replicas.items()}


def test_the_hostfile_is_read_by_deepspeed():
    zero.import_deepspeed()
    from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion

    pool = fetch_hostfile(str(FOLDER / "hostfile"))
    assert dict(pool) == {"node-a": 2, "node-b": 2}
    assert parse_inclusion_exclusion(pool, "node-b:1", "") == {"node-b": [1]}


def test_the_commands_in_the_hostfile_are_ones_deepspeed_takes():
    zero.import_deepspeed()
    from deepspeed.launcher.runner import parse_args

    commands = re.findall(r"^#\s+deepspeed (.*)$", (FOLDER / "hostfile").read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        parsed = parse_args(command.split())
        assert (parsed.hostfile, parsed.module) == ("hostfile", True)
        assert (parsed.user_script, parsed.user_args) == ("finetuning.distributed.train", ["train.yaml"])
    assert (parsed.no_ssh, parsed.node_rank, parsed.master_addr) == (True, 0, "node-a")


def test_the_slurm_script_is_bash_and_asks_for_what_it_starts(slurm):
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0
    lines = SLURM.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    asked = {i: line for i, line in enumerate(lines) if line.startswith("#SBATCH ")}
    assert max(asked) < first_command  # sbatch stops reading at the first command
    asked = options(asked.values())
    assert asked["ntasks-per-node"] == "1"  # one launcher per node
    # What Slurm sets for such a job comes out in the command again.
    job = {
        "SLURM_JOB_NUM_NODES": asked["nodes"], "SLURM_GPUS_ON_NODE": asked["gpus-per-node"],
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"], "SRUN_ONLY_LOG": "1",
    }  # fmt: skip
    said, done = slurm("some where/train.yaml", **job)
    assert done.returncode == 0, done.stderr
    *srun, command = said
    assert srun == ["--kill-on-bad-exit=1"]
    words, script = command.split(" -m finetuning.distributed.train ")
    assert words.startswith("python -m torch.distributed.run ") and script == "some where/train.yaml"
    assert options([words]) == {
        "nnodes": "2", "nproc_per_node": "4", "rdzv_id": "1234567", "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:24567",
    }  # fmt: skip


@pytest.mark.slow
def test_the_slurm_script_wants_a_training_and_passes_failures_on(slurm):
    said, done = slurm()
    assert done.returncode != 0 and "name the YAML file of a training" in done.stderr and not said
    _, done = slurm("nowhere.yaml", SLURM_JOB_NUM_NODES="1", SLURM_GPUS_ON_NODE="1")
    assert done.returncode != 0 and "nowhere.yaml" in done.stderr


def test_the_manifest_is_a_pytorchjob():
    manifest, replicas = pods()
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    assert set(manifest["spec"]) <= {"runPolicy", "pytorchReplicaSpecs", "elasticPolicy", "nprocPerNode"}
    assert manifest["spec"]["runPolicy"]["cleanPodPolicy"] in ("All", "Running", "None")
    assert set(replicas) == {"Master", "Worker"} and replicas["Master"][0]["replicas"] == 1
    total = sum(one["replicas"] for one, _ in replicas.values())
    for one, containers in replicas.values():
        assert set(one) == {"replicas", "restartPolicy", "template"}
        assert one["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        (container,) = containers
        assert container["name"] == "pytorch" and ":" in container["image"]
        assert all(isinstance(word, str) for word in container["command"])
        assert all(isinstance(variable["value"], str) for variable in container["env"])
        asked = options(container["command"])
        assert int(asked["nnodes"]) == total
        assert int(asked["nproc_per_node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
        assert (asked["node_rank"], asked["master_addr"], asked["master_port"]) == (
            "$(RANK)",
            "$(MASTER_ADDR)",
            "$(MASTER_PORT)",
        )
        cores = int(container["resources"]["requests"]["cpu"])
        assert cores // int(asked["nproc_per_node"]) == int(container["env"][0]["value"])
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in one["template"]["spec"]["volumes"]}
        assert container["command"][-3:-1] == ["-m", "finetuning.distributed.train"]
        assert container["command"][-1].startswith(mounted["course"])


@pytest.fixture(scope="module")
def training(tiny_model, tmp_path_factory):
    """A short training, what one plain process makes of it, and its file for a launcher."""
    from test_deepspeed import make_workspace

    folder = tmp_path_factory.mktemp("launch")
    workspace = make_workspace(tiny_model, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNING_RUNS", str(folder))
        plain = jobs.training_job(workspace, "plain", steps=3, learning_rate=1e-2)
        expected = launch.run(plain, ranks=1, launcher="python")[0]["losses"]

    def on_cluster(name):
        os.environ["FINETUNING_RUNS"] = str(folder)
        one = jobs.training_job(workspace, name, deepspeed="zero2", steps=3, learning_rate=1e-2)
        config = folder / f"{name}.yaml"
        config.write_text(jobs.trainings_as_yaml([one]))
        return config, one.folder

    return on_cluster, expected


def trained_like(expected, folder):
    answers = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [(answer["rank"], answer["world_size"], answer["engine"]) for answer in answers] == [
        (0, 2, "DeepSpeedEngine"), (1, 2, "DeepSpeedEngine"),
    ]  # fmt: skip
    return np.allclose(answers[0]["losses"], expected, atol=1e-4)


def start_all(commands, environments):
    """Start the commands side by side and wait for them; each must end well."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    started = [
        subprocess.Popen(
            words, cwd=ROOT, env=clean | environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for words, environment in zip(commands, environments, strict=True)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        launch.stop(started, patience=1)
    assert [process.returncode for process in started] == [0] * len(started), said


def is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_nodes(training, slurm):
    on_cluster, expected = training
    config, folder = on_cluster("slurm")
    job = str(
        next(number for number in range(5000, 10_000) if is_free(20_000 + number))
    )  # its port comes from its number
    _, done = slurm(
        str(config), SLURM_JOB_ID=job, SLURM_GPUS_ON_NODE="1", SLURM_CPUS_PER_TASK="1", DS_ACCELERATOR="cpu"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert trained_like(expected, folder)


@pytest.mark.slow
def test_the_manifests_pods_train(training):
    on_cluster, expected = training
    config, folder = on_cluster("pods")
    port = launch.free_port()
    commands, environments = [], []
    for rank, (_, (container,)) in enumerate(pods()[1].values()):
        set_by_operator = {"RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        words = [
            re.sub(r"\$\((\w+)\)", lambda found, given=set_by_operator: given[found[1]], word)
            for word in container["command"]
        ]
        here = {"python": sys.executable, "--nproc_per_node=4": "--nproc_per_node=1", words[-1]: str(config)}
        commands.append([here.get(word, word) for word in words])
        environments.append(set_by_operator | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})
    start_all(commands, environments)
    assert trained_like(expected, folder)


@pytest.mark.slow
def test_the_hostfiles_machines_train(training):
    """The command for machines without ssh, once for each, with one of its two slots and this machine's address."""
    on_cluster, expected = training
    config, folder = on_cluster("hosts")
    written = re.findall(r"^#\s+deepspeed (.*--no_ssh.*)$", (FOLDER / "hostfile").read_text(), re.MULTILINE)[0]
    here = {"hostfile": str(FOLDER / "hostfile"), "node-a": "127.0.0.1", "train.yaml": str(config)}
    start = [sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "1"]
    start += ["--master_port", str(launch.free_port())]
    commands = []
    for rank in range(2):
        words = written.replace("--node_rank 0", f"--node_rank {rank}").split()
        commands.append(start + [here.get(word, word) for word in words])
    start_all(commands, [{"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}] * 2)
    assert trained_like(expected, folder)
