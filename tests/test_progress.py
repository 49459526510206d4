"""What a learner has done is kept on their machine, survives damage, and makes a class's table."""

import csv
import json
import re

import pytest

from authoring import grade
from finetuning import check
from finetuning.check.progress import read_progress, tasks
from finetuning.check.quiz import questions
from finetuning.errors import CourseError


def leaks(train, test):
    from finetuning.data import fingerprint

    return sum(fingerprint(text) in {fingerprint(other) for other in test} for text in train)


def shown(capsys):
    capsys.readouterr()
    check.progress()
    return capsys.readouterr().out.splitlines()


def test_every_exercise_and_quiz_of_the_lessons_is_a_task():
    named = {lesson: {one.__name__ for one in found} for lesson, found in check.EXERCISES.items()}
    assert {lesson: set(names) - {"quiz"} for lesson, names in tasks().items() if len(names) > 1} == named
    assert all("quiz" in names for names in tasks().values())


def test_what_is_right_is_noted_once_and_what_is_not_is_not(runs, capsys):
    before = shown(capsys)
    assert before[0].startswith("01  0 of ") and "leaks" in before[0] and not (runs / "progress.json").exists()
    check.leaks(...)
    check.leaks(lambda train, test: 0)
    check.quiz("01", "a a a a a")
    assert shown(capsys) == before
    check.leaks(leaks)
    first = read_progress(runs / "progress.json")
    check.leaks(leaks)
    assert read_progress(runs / "progress.json") == first
    assert list(first) == ["01"] and re.match(r"\d{4}-\d\d-\d\dT", first["01"]["leaks"])
    after = shown(capsys)
    assert after[0].startswith("01  1 of ") and "leaks" not in after[0] and after[1:] == before[1:]


def test_a_quiz_is_done_when_all_of_it_is_right(runs, capsys):
    right = " ".join(question["right"] for question in questions("01"))
    check.quiz("01", right)
    assert list(read_progress(runs / "progress.json")["01"]) == ["quiz"]
    assert not any("01" in line and "quiz" in line for line in shown(capsys))


@pytest.mark.parametrize("damage", ["", "{", '{"01": {"leaks": "never"}}', "[]"])
def test_a_damaged_file_is_put_aside_and_begun_anew(runs, capsys, damage):
    runs.mkdir()
    (runs / "progress.json").write_text(damage)
    said = shown(capsys)
    assert "is damaged" in said[0] and said[1].startswith("01  0 of ")
    check.leaks(leaks)
    assert "Right." in capsys.readouterr().out
    assert list(read_progress(runs / "progress.json")["01"]) == ["leaks"]
    assert (runs / "progress.damaged.json").read_text() == damage


def test_an_answer_is_right_also_where_nothing_can_be_written(runs, capsys):
    runs.parent.mkdir(exist_ok=True)
    runs.write_text("a file where the folder should be")
    check.leaks(leaks)
    assert capsys.readouterr().out.startswith("Right.")


def test_a_class_becomes_a_table(runs, tmp_path, capsys, monkeypatch):
    check.leaks(leaks)
    handed_in = (runs / "progress.json").read_text()
    folder = tmp_path / "class"
    for place in ("anna/progress.json", "ben.json", "=cmd.json"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(handed_in)
    changed = json.loads(handed_in)
    changed["01"]["quiz"] = "2030-01-01T00:00:00+0000"
    (folder / "cleo.json").write_text(json.dumps(changed))
    monkeypatch.setattr(grade, "home", lambda: tmp_path)
    grade.main([str(folder)])
    rows = {row["learner"]: row for row in csv.DictReader((tmp_path / "build" / "grades.csv").open(newline=""))}
    assert set(rows) == {"anna", "ben", "cmd", "cleo"}
    lesson = f"lesson 01 (of {len(tasks()['01'])})"
    assert [rows[name][lesson] for name in ("anna", "ben", "cleo")] == ["1", "1", "0"]
    assert (
        rows["anna"]["all"] == "1" and rows["anna"]["last"] == read_progress(runs / "progress.json")["01"]["leaks"][:10]
    )
    assert rows["cleo"]["note"].startswith("cannot be read") and rows["ben"]["note"] == ""
    assert "4 learners" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "said"), [([""], "name the folder"), (["here"], "no progress file")])
def test_without_files_a_sentence_says_so(arguments, said, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match=said):
        grade.main(arguments)
