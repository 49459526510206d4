"""The course itself: executed headless, whole, on the shipped defaults."""

import json
import re
from dataclasses import fields

import nbformat
import pytest
from conftest import NOTEBOOKS, finetuning
from datasets import load_from_disk
from processes import outputs, small_course

from finetuning.course.runner import run_course
from finetuning.data import prepare
from finetuning.distributed.memory import COMPONENTS, expected_bytes
from finetuning.errors import CourseError
from finetuning.models import load_tokenizer
from finetuning.profiles import choose
from finetuning.results import ResultRow
from finetuning.workspace import LESSONS


@pytest.fixture(scope="module")
def rows(pocket_run):
    results = json.loads((pocket_run[1] / "results.json").read_text())
    return {row["method"]: row for row in results["rows"]}


def test_the_whole_course_runs_and_ends_with_the_table(pocket_run):
    done, folder = pocket_run
    assert done.returncode == 0, done.stdout + done.stderr
    for lesson in LESSONS:
        assert re.search(rf"{lesson}  done in \d+ s", done.stdout)
    for method in ("majority", "tfidf", "as_shipped", "trainer", "from_scratch"):
        assert method in done.stdout.split("accuracy")[-1]
    assert len(done.stdout.splitlines()) < 90  # progress, no flood
    assert str(folder / "report.html") in done.stdout


def test_results_are_complete(pocket_run):
    results = json.loads((pocket_run[1] / "results.json").read_text())
    assert results["schema"] == 1 and results["run"]["seconds"] > 10
    assert results["run"]["hardware"]["cores"] and results["run"]["versions"]["torch"]
    for row in results["rows"]:
        assert set(row) == {field.name for field in fields(ResultRow)}
        assert row["n_test"] == results["rows"][0]["n_test"]
        assert 0 < row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1
    trained = [row for row in results["rows"] if row["train_seconds"]]
    deepspeed = {*(f"deepspeed_zero{stage}" for stage in range(4)), "deepspeed_zero2_offload"}
    one_process = {"tfidf", "trainer", "from_scratch", "trainer_short", "lora"}
    assert {row["method"] for row in trained} == one_process | deepspeed | {"lora_zero3"}
    for row in results["rows"]:
        if row["method"] in deepspeed:
            assert row["world_size"] == 2 and row["stage"] == int(row["method"][len("deepspeed_zero")])
            assert {"parameters", "gradients", "optimizer"} <= set(row["bytes_per_rank"]) and row[
                "peak_rss_bytes"
            ] > 1e8


def test_the_course_teaches_what_it_claims(rows):
    """Fine-tuning pays: the intervals of fine-tuned and majority, and of fine-tuned and from-scratch, do not touch."""
    assert rows["trainer"]["accuracy_low"] > rows["majority"]["accuracy_high"] + 0.15
    assert rows["trainer"]["accuracy_low"] > rows["from_scratch"]["accuracy_high"]
    assert rows["trainer"]["accuracy"] > rows["as_shipped"]["accuracy"] + 0.03
    assert rows["as_shipped"]["accuracy_low"] > rows["majority"]["accuracy_high"]
    assert rows["tfidf"]["accuracy_low"] > rows["majority"]["accuracy_high"]


def test_sharding_costs_memory_and_no_accuracy(rows):
    """Each stage holds less than the one before, and predicts as the plain Trainer of the same steps does."""
    held = [
        sum(rows[f"deepspeed_zero{stage}"]["bytes_per_rank"][part] for part in COMPONENTS)  # buckets are no shards
        for stage in range(4)
    ]
    assert held == sorted(held, reverse=True) and held[3] < 0.7 * held[0]
    plain = rows["trainer_short"]
    for method, row in rows.items():
        if method.startswith("deepspeed"):
            assert plain["accuracy_low"] <= row["accuracy"] <= plain["accuracy_high"], method


def test_reviews_prepared_in_one_go_are_those_of_lesson_01(pocket_run):
    settings = choose()
    made = prepare(settings, load_tokenizer(settings))
    left = load_from_disk(pocket_run[1] / "data" / "reviews")
    assert {name: split.to_dict() for name, split in made.items()} == {name: left[name].to_dict() for name in left}


def test_adapters_cost_the_bytes_of_theory_and_no_answer(pocket_run, rows):
    shown = outputs(pocket_run[1] / "notebooks" / "06_fewer_parameters_with_lora.ipynb")
    row, whole, lora = (rows[method] for method in ("lora_zero3", "trainer", "lora"))
    adapters = row["parameters"] - whole["parameters"]
    theory = sum(expected_bytes(adapters, 3, row["world_size"], frozen=whole["parameters"]).values())
    assert abs(sum(row["bytes_per_rank"][part] for part in COMPONENTS) / theory - 1) < 0.01
    assert f"{row['n_test']:,} of {row['n_test']:,} answers the same" in shown["06-save-check"]
    inside = whole["accuracy_low"] <= lora["accuracy"] <= whole["accuracy_high"]
    assert ("lies inside the interval" if inside else "lies OUTSIDE the interval") in shown["06-winner-words"]
    assert lora["accuracy_low"] > rows["majority"]["accuracy_high"]
    assert "gathered before it" in " ".join(shown["06-save-empty"].split())


def test_notebooks_show_what_results_json_holds(pocket_run, rows):
    table = outputs(pocket_run[1] / "notebooks" / "07_evaluate_and_ship.ipynb")["07-table-show"]
    for method, row in rows.items():
        line = next(line for line in table.splitlines() if f" {method} " in line)
        assert f"{row['accuracy']:.3f}" in line and f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}" in line
    shown = outputs(pocket_run[1] / "notebooks" / "02_baselines.ipynb")
    assert f"accuracy {rows['tfidf']['accuracy']:.3f}" in shown["02-tfidf-row"]


def test_lesson_07_calls_better_only_what_is_and_compares_everything(pocket_run, rows):
    shown = outputs(pocket_run[1] / "notebooks" / "07_evaluate_and_ship.ipynb")
    said = shown["07-paired-all"]
    for better, worse, p in re.findall(r"^- (\w+) is better than (\w+): .* p = (\S+)\.$", said, re.MULTILINE):
        assert float(p) < 0.05 and rows[better]["accuracy"] > rows[worse]["accuracy"]
    assert "trainer is better than tfidf: by" in said  # what the course is for
    for method in set(rows) - {"trainer"}:
        assert re.search(rf"trainer (is better than|and) {method}\b|{method} is better than trainer", said), method
    assert "100.0% with the verdict of lesson 03" in shown["07-ship-batch-compare"]


def test_lesson_05_ends_with_a_training_from_a_file(pocket_run):
    """It tells its accuracy with the interval, and leaves a model that labels a file."""
    folder = pocket_run[1]
    shown = outputs(folder / "notebooks" / "05_train_on_a_cluster.ipynb")
    row = json.loads((folder.with_name(f"{folder.name}-own") / "results.json").read_text())["rows"][0]
    assert f"accuracy {row['accuracy']:.3f} (95 % interval {row['accuracy_low']:.3f}" in shown["05-own-start"]
    assert re.search(r"^1,positive,.*\n2,negative,", shown["05-own-use"], re.MULTILINE)


def test_lessons_keep_the_minutes_they_announce(pocket_run):
    """Beside the others: how slow this machine is, on one of its cores beside other tests, all lessons say together."""
    minutes, seconds = {}, {}
    for path in NOTEBOOKS:
        said = nbformat.read(path, as_version=4).cells[0].source
        minutes[path.stem] = int(re.search(r"cells run in (\d+) minute", said).group(1))
        executed = nbformat.read(pocket_run[1] / "notebooks" / path.name, as_version=4)
        seconds[path.stem] = executed.metadata["finetuning"]["seconds"]
    slowness = sum(seconds.values()) / 60 / sum(minutes.values())
    assert slowness < 4
    for lesson in minutes:
        assert seconds[lesson] <= 60 * minutes[lesson] * 1.6 * max(1, slowness), lesson


def test_executed_copies_are_free_of_noise(pocket_run):
    for lesson in LESSONS:
        for cell_id, text in outputs(pocket_run[1] / "notebooks" / f"{lesson}.ipynb").items():
            assert not re.search(r"warning|deprecat|\| *\d+/\d+ \[", text, re.IGNORECASE), (cell_id, text)


def test_the_source_notebooks_stay_as_they_were(pocket_run):
    for path in NOTEBOOKS:
        assert all(not cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


def test_report_is_linked_and_fetches_nothing(pocket_run):
    report = pocket_run[1] / "report.html"
    pages = [report, *(pocket_run[1] / "notebooks" / f"{lesson}.html" for lesson in LESSONS)]
    for page in pages:
        text = page.read_text()
        assert not re.search(r'<(script|img|link)[^>]+(src|href)="?(https?:)?//', text), page.name
        for target in re.findall(r'<a[^>]+href="([^"#:]+\.html)"', text):
            assert (page.parent / target).is_file(), (page.name, target)
        assert '<img src="../img' not in text and 'src="../img' not in text
    assert report.read_text().index("<table") < report.read_text().index("The lessons")


def test_a_second_run_skips_what_is_done_and_a_changed_setting_is_refused(pocket_run):
    again = finetuning("run", runs=pocket_run[1].parent)
    assert again.returncode == 0 and again.stdout.count("done before") == len(LESSONS)
    other = finetuning("run", "--seed", 2, runs=pocket_run[1].parent)
    assert other.returncode == 1 and "run with seed 1, not 2" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.slow
def test_a_failing_cell_ends_the_run_in_a_few_lines(tmp_path, monkeypatch, capsys):
    course, failing = tmp_path / "course", "print('so far')\nraise ValueError('planted')"
    monkeypatch.chdir(small_course(course, "print('fine')", failing))
    with pytest.raises(CourseError) as error:
        run_course(lessons=LESSONS[:2])
    assert re.search(r"01_prepare_data, cell 3: ValueError: planted", str(error.value))
    assert len(str(error.value).splitlines()) < 12 and "\x1b" not in str(error.value)
    copy = re.search(r"executed so far: (.*)\)", str(error.value)).group(1)
    assert outputs(copy)["01-code"].startswith("so far")
    # mended, the run goes on where it stopped
    small_course(course, "print('fine')", "print('mended')")
    capsys.readouterr()
    run_course(lessons=LESSONS[:2])
    said = capsys.readouterr().out
    assert "00_welcome  done before" in said and "01_prepare_data  done in" in said


@pytest.mark.slow
def test_a_dying_kernel_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(small_course(tmp_path / "course", "import os\nos._exit(9)"))
    with pytest.raises(CourseError, match="00_welcome: the kernel died"):
        run_course(lessons=LESSONS[:1])


@pytest.mark.slow
def test_a_lesson_without_its_forerunner_says_which_one_to_run():
    with pytest.raises(CourseError, match=r"02_baselines, cell \d+: .*run 01_prepare_data\.ipynb first"):
        run_course(lessons=["02_baselines"])
