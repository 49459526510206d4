"""The training script for real use: its file, its crashes, what it leaves, and the planner's file for it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest
import yaml
from conftest import ROOT, finetuning
from datasets import load_from_disk
from processes import wait_until

from finetuning.data import prepare, save_splits
from finetuning.distributed import jobs, launch
from finetuning.distributed.planner import FAMILY, plan
from finetuning.distributed.run_files import prepared_reviews
from finetuning.distributed.zero import KEYS, configuration, import_deepspeed, stage_of
from finetuning.errors import CourseError
from finetuning.metrics import measure
from finetuning.models import load_tokenizer
from finetuning.profiles import POCKET_T5, choose
from finetuning.shipping.predict import predict_file
from finetuning.workspace import Workspace, read_results, shipped_folder

MINE = """run: mine
base_model: {model}
reviews: {reviews}
epochs: 3
learning_rate: 1e-2
batch_size: 16
micro_batch: 4
save_steps: 3
deepspeed: zero2
"""


def review_file(path):
    """Some reviews that a small model can learn to tell apart."""
    rng = random.Random(3)
    rows = ["text,label"]
    for i in range(210):
        word = rng.choice(("awful", "boring") if i % 2 else ("great", "moving"))
        rows.append(f"A {word} film number {i}{' really' * rng.randrange(8)},{1 - i % 2}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def written(tmp_path):
    """A function that writes a training's file and returns its path."""

    def write(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3", "line 1: there is no option 'epoch'; did you mean 'epochs'?"),
        ("seed: 1\nlr: 1", "line 2: there is no option 'lr'; there are name, run, profile"),
        ("seed: 1\nepochs: three", "line 2: epochs must be a number from 0 up, not 'three'."),
        ("learning_rate: -1", "line 1: learning_rate must be a number from 0 up, not -1.0."),
        ("micro_batch: 2.5", "line 1: micro_batch must be a whole number from 0 up, not 2.5."),
        ("limit: yes", "line 1: limit must be a whole number from 0 up, not True."),
        ("bf16: 1", "line 1: bf16 must be true or false, not 1."),
        ("reviews:", "line 1: reviews must be a text, not nothing (give a value, or leave the line out)."),
        ("epochs: 3\nseed: 1\nepochs: 4", "line 3: epochs is given a second time; keep one of the two."),
        ("epochs: 3\nsteps: 10", "Give epochs (3) or steps (10), not both."),
        ("seed: [", "this is no YAML"),
        ("seed: 1\n\tepochs: 3", "line 2: this is no YAML"),
        ("just words", "holds no training; expected are lines such as 'reviews: mine.csv'"),
        ("", "holds no training"),
        ("profile: pockt", "There is no profile 'pockt'; choose one of pocket"),
        ("reviews: nowhere.csv", "There is no file or folder 'nowhere.csv', seen from /"),
        ("deepspeed: zero9", "There is no DeepSpeed configuration 'zero9'; choose one of zero0"),
        ("name: ../x", "is not possible; give one of letters, digits"),
        ("name: trainer", "none of the lessons' own, as 'trainer'"),
        ("name: zero2", "none of the lessons' own"),
        ("lora_matrices: q k", "give lora_rank as well, or leave it out"),
        ("[]", "holds no training"),
        ("rating: 5", "line 1: rating must be a text, not 5."),
        ("limit: 3", "limit must be 0 (all reviews) or at least 40"),
        ("max_length: 100000", "reads 256 tokens at most"),
    ],
)
def test_a_wrong_file_is_answered_in_a_sentence(written, text, says):
    with pytest.raises(CourseError) as failure:
        jobs.read_trainings(written(text))
    assert "mine.yaml" in str(failure.value) and says in str(failure.value) and "\n" not in str(failure.value)


def test_wrong_deepspeed_configurations_are_named_before_the_start(tmp_path):
    path = tmp_path / "own.json"
    for text, says in (
        ('{"gradient_cliping": 1.0}', "has no key 'gradient_cliping'; did you mean 'gradient_clipping'"),
        ('{"zero_optimization.stage": 1}', "has no key 'zero_optimization.stage'; did you mean 'zero_optimization'"),
        ('{"zero_optimization": {"stge": 2}}', "has no key 'stge' in zero_optimization; did you mean 'stage'"),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}}',
            "has no key 'devise' in zero_optimization.offload_optimizer; did you mean 'device'",
        ),
        ('{"bf16": {"qwert": true}}', "has no key 'qwert' in bf16; take it out"),
        ('{"zero_optimization": 2}', "is no DeepSpeed configuration that can be read"),
        ('{"zero_optimization": {"stage": 2, "offload_param": {}}}', "ZeRO stage 2 cannot do offload_param"),
        ('{"zero_optimization": {"stage": 3}}', "stage 3 saves no weights without stage3_gather"),
    ):
        path.write_text(text)
        with pytest.raises(CourseError, match=says):
            jobs.Training("x", deepspeed=str(path))
    path.write_text('{"bf16": {"enabled": "auto"}}')
    assert stage_of(jobs.Training("x", deepspeed=str(path)).deepspeed_settings) == 0
    path.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}')
    assert jobs.Training("x", deepspeed=str(path)).deepspeed_settings == configuration("zero2")


def test_the_keys_that_are_known_are_those_of_the_installed_deepspeed():
    import_deepspeed()
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero import config, offload_config

    sections = {
        "bf16": DeepSpeedBF16Config,
        "bfloat16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "zero_optimization": config.DeepSpeedZeroConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
    }
    for section, model in sections.items():
        theirs = {name for key, field in model.model_fields.items() for name in (key, field.alias or key)}
        assert {key.rpartition(".")[2] for key in KEYS if key.rpartition(".")[0] == section} == theirs


def test_a_missing_file_and_a_step_that_cannot_be_shared_out(tmp_path):
    with pytest.raises(CourseError, match=r"nowhere.yaml cannot be read .*No such file.*; copy .*train.yaml"):
        jobs.read_trainings(tmp_path / "nowhere.yaml")
    with pytest.raises(CourseError, match="among 3 processes; take 15 or 18"):
        jobs.Training("x", batch_size=16).shares(3)


@pytest.mark.slow
def test_starting_over_leaves_what_the_lessons_left(written, tmp_path, monkeypatch):
    """A training of the run's own name, started over where the lessons have been; 16 reviews are no three shares."""
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path / "runs"))
    lessons = Workspace("pocket", choose())
    lessons.add_rows(measure("02", "majority", [1, 0], [1, 1]))
    for name in ("trainer", "pocket"):
        (lessons.models / name).mkdir(parents=True)
    file = written("batch_size: 16", "pocket.yaml")
    for processes, says in ((-1, "a number from 1 up, not -1"), (3, "among 3 processes")):
        done = finetuning("train", file, "--processes", processes, "--fresh", runs=tmp_path / "runs")
        assert done.returncode == 1 and says in done.stderr
    assert lessons.row("majority") and [path.name for path in lessons.models.glob("[!.]*")] == ["trainer"]


def test_reviews_that_a_lesson_prepared_are_not_taken_for_the_files_own(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNING_RUNS", str(tmp_path))
    training = jobs.Training("mine", run="lessons", reviews=str(review_file(tmp_path / "reviews.csv")))
    tokenizer = load_tokenizer(training.settings)
    save_splits(prepare(choose(limit=60), tokenizer), training.workspace.data / "reviews")
    assert all("film number" in text for text in prepared_reviews(training, tokenizer)["test"]["text"])


def test_a_step_is_cut_into_micro_batches_that_fit():
    assert jobs.Training("x", batch_size=16).shares(2) == (8, 1)
    for most in range(1, 20):
        for ranks in (1, 2, 4, 8):
            micro_batch, accumulation = jobs.Training("x", batch_size=16, micro_batch=most).shares(ranks)
            assert micro_batch <= most and micro_batch * accumulation * ranks == 16


def test_the_shipped_example_shows_every_option_with_its_default():
    text = jobs.EXAMPLE.read_text()
    (example,) = jobs.read_trainings(jobs.EXAMPLE)
    assert example == jobs.Training("train")
    shown = re.findall(r"^(\w+): \S", text, re.MULTILINE)
    assert sorted(shown) == sorted(field.name for field in fields(jobs.Training))


def test_what_the_lessons_write_is_read_again(written):
    several = [
        jobs.Training("a", steps=3, record=False, save=False),
        jobs.Training("b", deepspeed="zero3", bf16=True, shape={"d_model": 8}),
    ]
    assert jobs.read_trainings(written(jobs.trainings_as_yaml(several))) == several


@pytest.mark.parametrize("name", FAMILY)
def test_the_planners_last_line_starts_the_training_it_recommends(written, name):
    for model in (name, name.removeprefix("google-t5/")):
        answer = plan(model, gpus=4, memory="40GB", checkpointing=True)
        (training,) = jobs.read_trainings(written(str(answer).splitlines()[-1]))
        best = answer.rows[0]
        assert training.settings.model == name and training.checkpointing and training.bf16
        assert training.deepspeed == ("" if best.strategy == "plain" else best.strategy)
        assert training.shares(4)[0] <= best.micro_batch


def test_the_planner_recommends_nothing_that_barely_fits():
    answer = plan("t5-3b", gpus=4, memory="24GB")
    assert answer.rows[0].strategy == "zero3" and answer.rows[0].total < 0.85 * answer.memory


def test_the_planner_reads_a_configuration_of_your_own(written, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "t5", **FAMILY["google-t5/t5-base"]}))
    assert plan(file).parameters == plan("T5-Base").parameters == plan(FAMILY["google-t5/t5-base"]).parameters
    (training,) = jobs.read_trainings(written(plan(file).file))  # weights it has none
    assert training.shape == str(file) and not training.base_model


def test_printed_commands_can_be_typed():
    for launcher in ("python", "torchrun", "two nodes", "deepspeed"):
        for program, *words in launch.command(launcher, "train.yaml", 2):
            assert os.access(program, os.X_OK) and words[-2:] == ["finetuning.distributed.train", "train.yaml"]
            assert subprocess.run([program, "--help"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [("torch.distributed.run", "--nproc_per_node=2", "-m"), ()])
def test_without_the_command_line_a_wrong_file_is_named_too(written, words):
    file = written("epoch: 3")
    script = [sys.executable, *(["-m"] if words else []), *words]
    done = subprocess.run(
        [*script, *([] if words else ["-m"]), "finetuning.distributed.train", str(file)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "did you mean 'epochs'?" in done.stdout + done.stderr and "KeyError" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """A file of a user's own, trained on two processes from the command line: (file, runs, what was printed)."""
    folder = tmp_path_factory.mktemp("user")
    file = folder / "mine.yaml"
    file.write_text(MINE.format(model=tiny_model, reviews=review_file(folder / "reviews.csv")))
    done = finetuning("train", file, "--processes", 2, runs=folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return file, folder / "runs", done.stdout


def answer_of(runs):
    return json.loads((runs / "mine" / "models" / "mine" / "rank0.json").read_text())


@pytest.mark.slow
def test_from_a_file_to_an_accuracy_a_row_and_a_model_in_use(trained, monkeypatch, tmp_path):
    file, runs, said = trained
    monkeypatch.setenv("FINETUNING_RUNS", str(runs))
    (row,) = read_results("mine").rows
    assert (row.method, row.stage, row.world_size, row.n_test) == ("mine", 2, 2, 42)
    assert (
        f"accuracy {row.accuracy:.3f} (95 % interval {row.accuracy_low:.3f} to {row.accuracy_high:.3f}) on 42" in said
    )
    judged = [float(found) for found in re.findall(r"validation accuracy ([\d.]+)", said)]
    assert len(judged) == 10 and "the best so far" in said
    history = json.loads((runs / "mine" / "models" / "mine" / "history.json").read_text())
    shares = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    assert shares == pytest.approx(judged, abs=1e-3)
    count = len(load_from_disk(runs / "mine" / "data" / "reviews")["validation"])
    assert 128 % count and count * np.array(shares) == pytest.approx(np.round(count * np.array(shares)))  # each once
    reviews = tmp_path / "some.csv"
    reviews.write_text("text\nA great film\nAn awful film\n")
    with (tmp_path / "out.csv").open("w") as output:
        assert predict_file(str(reviews), shipped_folder("mine", "mine"), output) == (2, 0)
    with pytest.raises(CourseError, match=r"there are mine \(--model\)"):
        shipped_folder("mine")
    again = finetuning("train", file, "--processes", 2, runs=runs)
    assert again.returncode == 0 and "was trained to its end before" in again.stdout and "step" not in again.stdout


@pytest.mark.slow
def test_the_model_saved_is_the_one_of_the_best_checkpoint(trained, tmp_path, tiny_model):
    """The accuracy of every checkpoint's weights on the validation reviews, by the course's own scoring."""
    import numpy as np
    from datasets import load_from_disk

    from finetuning.labels import score_labels
    from finetuning.models import load_model, load_tokenizer
    from finetuning.profiles import choose

    _, runs, _ = trained
    folder = runs / "mine" / "models" / "mine"
    data = load_from_disk(runs / "mine" / "data" / "reviews")["validation"]
    saved = choose(base_model=str(folder))
    scores, _ = score_labels(
        load_model(saved), load_tokenizer(saved), data["text"], prompt=saved.prompt, max_length=saved.max_length
    )
    history = json.loads((folder / "history.json").read_text())
    best = max(entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry)
    assert np.mean(scores.argmax(1) == np.array(data["label"])) == pytest.approx(best, abs=1e-6)


def kill_and_go_on(config, folder, runs, checkpoints):
    """Start a training as a user would, kill its launcher after so many checkpoints and a random moment; its answer."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += ["-m", "finetuning.distributed.train", str(config)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for after in checkpoints:
        started = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"FINETUNING_RUNS": str(runs)}, **quiet)
        checkpoint = folder / f"checkpoint-{3 * after}"
        assert wait_until(lambda: checkpoint.exists() or started.poll() is not None, 600)  # noqa: B023
        time.sleep(random.random() / 3)  # the tiny model takes the steps that are left in a second
        started.send_signal(signal.SIGKILL)  # the launcher alone: its ranks must not go on behind its back
        started.wait()
    done = finetuning("train", config, "--processes", 2, runs=runs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on after step" in done.stdout
    return answer_of(runs)


def assert_as_if_nothing_had_been(found, expected):
    assert found["steps"] == expected["steps"] == [*range(1, max(expected["steps"]) + 1)]
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert found["scores"] == expected["scores"]


@pytest.mark.slow
def test_killed_once_it_ends_as_if_nothing_had_been(trained, tmp_path):
    file, runs, _ = trained
    found = kill_and_go_on(file, tmp_path / "mine" / "models" / "mine" / "checkpoints", tmp_path, [4])
    assert_as_if_nothing_had_been(found, answer_of(runs))


@pytest.mark.soak
@pytest.mark.parametrize("deepspeed", ["zero3", ""])
def test_killed_three_times_it_ends_as_if_nothing_had_been(trained, deepspeed, tmp_path):
    """A training killed at three random moments takes no step twice and ends with the same scores."""
    config = tmp_path / "mine.yaml"
    config.write_text(trained[0].read_text().replace("deepspeed: zero2", f'deepspeed: "{deepspeed}"'))
    assert finetuning("train", config, "--processes", 2, runs=tmp_path / "whole").returncode == 0
    folder = tmp_path / "broken" / "mine" / "models" / "mine" / "checkpoints"
    found = kill_and_go_on(config, folder, tmp_path / "broken", [1, 3, 5])
    assert_as_if_nothing_had_been(found, answer_of(tmp_path / "whole"))


@pytest.mark.slow
def test_another_training_under_the_same_name_is_refused(trained, tmp_path):
    file, runs, _ = trained
    (tmp_path / "mine.yaml").write_text(file.read_text().replace("1e-2", "1e-3"))
    done = finetuning("train", tmp_path / "mine.yaml", runs=runs)
    assert done.returncode == 1 and done.stderr.count("\n") <= 3
    assert "holds a training with learning_rate 0.01, not 0.001; give this one another name, or FRESH=1" in done.stderr


@pytest.mark.slow
def test_where_another_process_trains_nothing_is_started_or_removed(trained, monkeypatch):
    file, runs, _ = trained
    monkeypatch.setenv("FINETUNING_RUNS", str(runs))
    (training,) = jobs.read_trainings(file)
    with training.held():  # as rank 0 of a training that runs
        by_hand = [sys.executable, "-m", "finetuning.distributed.train", str(file)]
        script = subprocess.Popen(by_hand, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        command = finetuning("train", file, "--fresh", runs=runs)
        said = script.communicate(timeout=120)[1]
    for code, words in ((script.returncode, said), (command.returncode, command.stderr)):
        assert code == 1 and "Another process trains in " in words and "Traceback" not in words
    assert (training.folder / "model.safetensors").exists()


def test_trainings_of_a_list_need_names_of_their_own(written):
    with pytest.raises(CourseError, match=r"2 trainings have the name 'mine'; give each its own \(name: \.\.\.\)"):
        jobs.read_trainings(written("- {epochs: 1}\n- {epochs: 2}"))
    assert len(jobs.read_trainings(written("- {epochs: 1}\n- {epochs: 2, name: longer}"))) == 2


def test_every_configuration_leaves_the_sizes_to_the_model():
    for path in jobs.EXAMPLE.parents[1].joinpath("deepspeed").glob("*.json"):
        sizes = [
            v for k, v in json.loads(path.read_text())["zero_optimization"].items() if re.search("bucket|threshold", k)
        ]
        assert all(size == "auto" for size in sizes)


def test_the_shipped_model_can_be_named(written):
    (training,) = jobs.read_trainings(written(yaml.safe_dump({"base_model": str(POCKET_T5)})))
    assert training.settings.model == str(POCKET_T5)
