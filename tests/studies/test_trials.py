"""The trials of a search: what is kept, what is read back, and which is best."""

import json
import time
from pathlib import Path

import pytest

from distil_ray.errors import InputError
from distil_ray.runs.storage import FINISHED_FILE, RunFolder
from distil_ray.studies.trials import (
    FAILED_FILE,
    FIRST_TRIAL,
    Score,
    Trial,
    Trials,
    best,
    common_step,
    scores_of,
    value_at,
)

METRIC = "eval/mlm_loss"


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(str(tmp_path), "search")


def opened(folder: RunFolder) -> Trials:
    return Trials(folder.path, METRIC)


def leave_behind(folder: RunFolder, name: str, values: dict[int, float | None], steps: int = 100) -> Path:
    """Write the records that a run would have left behind: objectives by step."""
    run = Path(folder.join(f"trials/{name}"))
    run.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"step": step, "time": time.time(), "run/progress": step / steps, METRIC: value})
        for step, value in values.items()
    ]
    lines.append(json.dumps({"step": 99, "time": time.time(), "train/loss": 1.0}))
    (run / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    return run


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_notes_are_named(folder, content):
    opened(folder).add({}, None)
    folder.write_text("trials.json", content)
    with pytest.raises(InputError, match=r"search/trials\.json is damaged"):
        opened(folder)


def test_a_trial_whose_reason_is_damaged_has_failed(folder):
    opened(folder).add({}, None)
    RunFolder(folder.join("trials"), FIRST_TRIAL).write_text(FAILED_FILE, "")
    (trial,) = opened(folder)
    assert trial.status == "failed"
    assert "failed.json is damaged" in trial.message


def finished(name: str, value: float) -> Trial:
    return Trial(name, {}, {}, "finished", scores=(Score(100, 1.0, value),))


def test_a_trial_is_on_disk_before_it_starts(folder):
    trials = opened(folder)

    trials.add({}, {"distill.temperature": 2.0})
    trials.add({"student.layers": [0, 3], "distill.alpha_ce": 0.5}, None)

    again = list(opened(folder))
    assert again == list(trials)
    assert [trial.name for trial in again] == [FIRST_TRIAL, "trial-001"]
    assert again[1].settings == {"student.layers": [0, 3], "distill.alpha_ce": 0.5}
    assert [trial.status for trial in again] == ["open", "open"]


def test_what_a_trial_achieved_is_read_from_its_run(folder):
    trials = opened(folder)
    for _ in range(3):
        trials.add({}, None)
    leave_behind(folder, "trial-000", {0: 9.0, 25: 5.0, 100: 4.0}).joinpath(FINISHED_FILE).write_text("{}")
    leave_behind(folder, "trial-001", {0: 9.0, 25: 6.0})
    leave_behind(folder, "trial-002", {}).joinpath(FAILED_FILE).write_text('{"message": "no such layer"}')

    first, second, third = opened(folder)

    assert (first.status, first.value, [score.step for score in first.scores]) == ("finished", 4.0, [25, 100])
    assert (second.status, second.value) == ("open", 6.0)
    assert (third.status, third.message, third.value) == ("failed", "no such layer", None)


def test_a_trial_that_was_stopped_stays_so(folder):
    trials = opened(folder)
    trials.add({}, None)
    leave_behind(folder, "trial-000", {25: 6.0})

    settled = trials.settle("trial-000")

    assert (settled.status, settled.value) == ("stopped", 6.0)
    assert [trial.status for trial in opened(folder)] == ["stopped"]


def test_a_trial_that_came_to_its_end_was_not_stopped(folder):
    trials = opened(folder)
    trials.add({}, None)
    leave_behind(folder, "trial-000", {100: 6.0}).joinpath(FINISHED_FILE).write_text("{}")

    assert trials.settle("trial-000").status == "finished"


def test_a_failed_trial_can_be_tried_again(folder):
    trials = opened(folder)
    trials.add({}, None)
    leave_behind(folder, "trial-000", {}).joinpath(FAILED_FILE).write_text('{"message": "lost"}')
    trials.settle("trial-000")

    trials.reopen("trial-000")

    assert [(trial.status, trial.message) for trial in opened(folder)] == [("open", "")]


def test_steps_that_are_done_again_replace_their_scores(folder):
    trials = opened(folder)
    trials.add({}, None)

    for step, value in ((25, 6.0), (50, 5.0), (25, 6.1)):
        trials.score("trial-000", Score(step, step / 100, value))

    assert trials["trial-000"].scores == (Score(25, 0.25, 6.1),)


def test_objectives_that_are_not_finite_are_left_out():
    records = [{"step": 25, "time": 1.0, "run/progress": 0.25, METRIC: None}, {"step": 30, "train/loss": 1.0}]

    assert list(scores_of(records, METRIC)) == []


@pytest.mark.parametrize(("direction", "expected"), [("min", "b"), ("max", "c")])
def test_the_best_has_finished(direction, expected):
    stopped = Trial("d", {}, {}, "stopped", scores=(Score(25, 0.25, 1.0 if direction == "min" else 9.0),))
    trials = [finished("a", 4.0), finished("b", 3.0), finished("c", 5.0), finished("e", 3.0), stopped]

    assert best(trials, direction).name == expected
    assert best([stopped], direction) is None


def test_trials_are_compared_where_all_have_been():
    def trial(*steps: int) -> Trial:
        return Trial("x", {}, {}, scores=tuple(Score(step, step / 100, float(step)) for step in steps))

    trials = [trial(25, 50, 75, 100), trial(25, 50), trial(25), trial()]

    assert common_step(trials[:2]) == 50
    assert common_step(trials) == 25
    assert common_step([trial(25), trial(50)]) is None
    assert common_step([]) is None
    assert [value_at(trial, 25) for trial in trials] == [25.0, 25.0, 25.0, None]
