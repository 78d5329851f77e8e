"""What a search says at its end: sentences, tables, charts, importance, files."""

import json
from pathlib import Path

import pytest
import yaml
from browser import assert_readable
from html_checker import Checker
from test_trials import leave_behind

from distil_ray.config import load_config
from distil_ray.errors import InputError
from distil_ray.reporting.plots import scatter_chart, ternary_chart
from distil_ray.runs.storage import FINISHED_FILE, RunFolder
from distil_ray.studies.search_report import findings, read_search, remarks, report_on, table
from distil_ray.studies.settings import SEARCH_FILE, SearchPlan, plan_of
from distil_ray.studies.suggest import MIN_TRIALS, importances
from distil_ray.studies.trials import TRIALS_FILE, Score, Trial, Trials, write_results

WEIGHTS = ("distill.alpha_ce", "distill.alpha_mlm", "distill.alpha_cos")


def plan_in(folder: Path, **search) -> SearchPlan:
    return plan_of(
        {
            "run": {"name": "search", "storage_path": str(folder)},
            "teacher": {"path": "org/teacher"},
            "data": {"sources": "/text"},
            "optim": {"num_steps": 100},
            "eval": {"every_steps": 25},
            "search": {
                "num_trials": 4,
                "space": {
                    "distill.temperature": {"loguniform": [1, 8]},
                    "weights": {"simplex": list(WEIGHTS)},
                    "student.layers": {"choice": [2, [0, 3]]},
                },
                **search,
            },
        }
    )


def settings(temperature: float, *weights: float, layers=2) -> dict:
    return {"distill.temperature": temperature, **dict(zip(WEIGHTS, weights, strict=True)), "student.layers": layers}


@pytest.fixture
def searched(tmp_path) -> tuple[SearchPlan, Trials]:
    """A search of four trials: two finished, one stopped, one still open."""
    plan = plan_in(tmp_path)
    folder = RunFolder(str(tmp_path), "search")
    trials = Trials(plan.folder, plan.search.metric)
    curves = ({0: 9.0, 25: 5.0, 50: 4.5, 100: 4.0}, {25: 4.8, 50: 4.3, 100: 3.75}, {25: 5.5}, {})
    given = ({}, settings(4.0, 0.5, 0, 0.5), settings(8.0, 0, 1, 0), settings(1.0, 1, 0, 0, layers=[0, 3]))
    for values, curve in zip(given, curves, strict=True):
        trial = trials.add(values, plan.space.point(plan.values(values)))
        run = leave_behind(folder, trial.name, curve)
        digests = "".join(f"{step},{step:016x},0,{step}\n" for step in range(1, max(curve, default=0) + 1))
        (run / "digests.csv").write_text(f"step,digest,group,row\n{digests}")
        if max(curve, default=0) == 100:
            (run / FINISHED_FILE).write_text("{}")
        if curve:
            trials.settle(trial.name)
    folder.write_text(SEARCH_FILE, plan.to_yaml())
    return plan, trials


def test_findings_name_the_best_and_compare_it(searched):
    plan, trials = searched

    assert findings(plan, list(trials)) == [
        "4 of 4 trials: 2 finished, 1 stopped early, 1 not finished.",
        "Best: trial-001, held-out MLM loss 3.7500, with distill.temperature 4, distill.alpha_ce 0.5, "
        "distill.alpha_mlm 0, distill.alpha_cos 0.5, student.layers 2.",
        "The unchanged settings (trial-000) reach 4.0000: the best is lower by 0.2500.",
    ]


def test_findings_when_nothing_is_better(searched):
    plan, trials = searched
    listed = [trial for trial in trials if trial.name != "trial-001"]

    assert "No trial did better than the unchanged settings." in findings(plan, listed)


def test_findings_when_nothing_has_finished(searched):
    plan, trials = searched

    assert findings(plan, list(trials)[2:]) == ["2 of 4 trials: 1 stopped early, 1 not finished."]


def test_the_table_has_the_best_first(searched):
    plan, trials = searched
    header, *rows = table(plan, list(trials))

    assert " ".join(header) == "trial eval/mlm_loss status step temperature alpha_ce alpha_mlm alpha_cos layers"
    assert [row[0] for row in rows] == ["trial-001", "trial-000", "trial-002", "trial-003"]
    assert rows[0][1:] == ["3.7500", "finished", "100", "4", "0.5", "0", "0.5", "2"]
    assert rows[1][4:] == ["2", "0.625", "0.25", "0.125", "None"]
    assert rows[3][1:] == ["–", "not finished", "0", "1", "1", "0", "0", "[0, 3]"]


def test_a_larger_accuracy_comes_first(searched):
    plan, trials = searched
    upwards = plan_in(Path(plan.config.run.storage_path), metric="eval/mlm_accuracy")

    assert [row[0] for row in table(upwards, list(trials))[1:3]] == ["trial-000", "trial-001"]


def test_equal_digests_are_confirmed_and_others_named(searched):
    plan, trials = searched
    assert remarks(plan, trials)[0].endswith("in the same order: up to 100 steps of equal digests.")

    stray = Path(trials.run_folder("trial-002").join("digests.csv"))
    stray.write_text(stray.read_text().replace("20,0000000000000014", "20,00000000000000ff"))

    assert "the digests of trial-002 differ" in remarks(plan, trials)[0]


def test_the_page_is_well_formed_and_loads_nothing(searched):
    plan, trials = searched
    report = report_on(plan, trials)
    page = report.to_html()
    checker = Checker()
    checker.feed(page)

    assert checker.open == []
    assert [address for address in checker.loaded if not address.startswith("data:image/png;base64,")] == []
    for text in (
        "Best: trial-001",
        "Held-out MLM loss of every trial",
        "Held-out MLM loss over weights, after 25 steps",
        "Held-out MLM loss against distill.temperature",
        "trial-000, the unchanged settings",
        f"at least {MIN_TRIALS} with different figures are needed",
    ):
        assert text in page
    assert "against student.layers" not in page  # which are not all numbers
    assert '<td class="right">trial-001</td>' in page
    assert "\ntrial      eval/mlm_loss " in report.to_text()
    best = json.loads(report.to_json())["trials"][1]
    assert best["values"]["distill.temperature"] == 4.0
    assert best["scores"][-1]["value"] == 3.75


@pytest.mark.slow
def test_the_page_is_readable_in_a_browser(searched, tmp_path):
    page = report_on(*searched).to_html()
    assert_readable(page, tmp_path, num_charts=page.count("<svg"))


def test_a_search_is_read_back_from_where_it_lies(searched, tmp_path):
    plan, trials = searched
    (tmp_path / "search").rename(tmp_path / "moved")

    again, same = read_search(str(tmp_path / "moved"))

    assert again == plan
    assert list(same) == list(trials)
    with pytest.raises(InputError, match=f"is not the folder of a search \\(it has no {TRIALS_FILE}\\)"):
        read_search(str(tmp_path / "search"))


def test_the_files(searched, tmp_path):
    plan, trials = searched

    write_results(plan, trials)

    lines = (tmp_path / "search/trials.csv").read_text().splitlines()
    assert lines[0].startswith('"trial","status","objective","step","progress","distill.temperature"')
    assert lines[2].startswith('"trial-001","finished",3.75,100,1,4,0.5,0,0.5,"2"')
    assert '"[0, 3]"' in lines[4]
    text = (tmp_path / "search/best.yaml").read_text()
    assert text.startswith(
        "# The best of 4 trials of the search search: trial-001, eval/mlm_loss 3.7500 after 100 steps"
    )
    best = load_config([str(tmp_path / "search/best.yaml")], [])
    assert (best.run.name, best.run.storage_path) == ("search-best", str(tmp_path))
    assert (best.distill.temperature, best.distill.alpha_mlm, best.student.layers) == (4.0, 0.0, 2)
    assert "search" not in yaml.safe_load(text)


def test_columns_that_the_first_trial_lacks_are_there(searched, tmp_path):
    plan, trials = searched
    with Path(trials.run_folder("trial-001").join("metrics.jsonl")).open("a") as file:
        file.write(json.dumps({"step": 100, "time": 9e9, "eval/kl_to_teacher": 0.5}) + "\n")

    write_results(plan, trials)

    header, first, second, *_ = (tmp_path / "search/trials.csv").read_text().splitlines()
    place = header.split(",").index('"eval/kl_to_teacher"')
    assert (first.split(",")[place], second.split(",")[place]) == ("", "0.5")


# -------------------------------------------------------------------------------------------------- importance


def scored(temperature: float, weight: float, layers, value: float, number: int) -> Trial:
    given = settings(temperature, weight, 1 - weight, 0.0, layers=layers)
    return Trial(f"trial-{number:03d}", given, None, "finished", scores=(Score(25, 0.25, value),))


@pytest.mark.parametrize("decisive", ["distill.temperature", "distill.alpha_ce", "student.layers"])
def test_what_decides_the_objective_matters_most(tmp_path, decisive):
    plan = plan_in(tmp_path)
    trials = []
    for number in range(24):
        values = (1 + (number * 5) % 7, ((number * 7) % 11) / 10, [2, [0, 3]][(number // 2) % 2])
        effect = {
            "distill.temperature": values[0],
            "distill.alpha_ce": 7 * values[1],
            "student.layers": 7.0 * (values[2] == 2),
        }
        trials.append(scored(*values, value=effect[decisive], number=number))

    shares = importances(plan, trials, 25)

    mirrored = {"distill.alpha_mlm"} if decisive == "distill.alpha_ce" else set()  # the two sum to 1 here
    assert max(shares, key=shares.get) in {decisive, *mirrored}
    assert sum(shares.values()) == pytest.approx(1)
    assert "distill.alpha_cos" not in shares  # the same everywhere


def test_importance_needs_trials_and_differences(tmp_path):
    plan = plan_in(tmp_path)
    few = [scored(1 + i, 0.5, 2, float(i), i) for i in range(MIN_TRIALS - 1)]
    equal = [scored(1 + i % 7, 0.5, 2, 1.0, i) for i in range(20)]
    same_settings = [scored(1, 0.5, 2, float(i), i) for i in range(20)]
    not_finite = [scored(1 + i % 7, 0.5, 2, float("inf"), i) for i in range(20)]

    for trials in (few, equal, same_settings, not_finite):
        assert importances(plan, trials, 25) == {}
    assert importances(plan, [*few, scored(8, 0.5, 2, 9.0, 8)], 25) != {}


# ------------------------------------------------------------------------------------------------------ charts


def test_charts_show_their_data_and_are_the_same_each_time():
    def ternary() -> str:
        points = [(1, 0, 0, 3.0), (0, 1, 0, 4.0), (0.2, 0.3, 0.5, 5.0)]
        return ternary_chart(points, corners=("ce", "mlm", "cos"), label="loss")

    def scatter() -> str:
        return scatter_chart(
            {"end": [(1, 2.0), (8, 3.0)], "early": []}, x_label="temperature", y_label="loss", is_logarithmic=True
        )

    assert ternary() == ternary()
    assert scatter() == scatter()
    for text in ("ce", "mlm", "cos", "loss"):
        assert f">{text}<" in ternary()
    for text in ("end", "early", "temperature", "loss"):
        assert f">{text}<" in scatter()
