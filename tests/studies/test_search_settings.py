"""The configuration of a search: what is refused before anything starts, and in which words."""

import copy

import pytest
import yaml

from distil_ray.config import difference, load_config, parse_config, to_yaml
from distil_ray.errors import InputError
from distil_ray.studies.settings import load_search, plan_of

BASE = {
    "run": {"name": "search", "storage_path": "/runs"},
    "teacher": {"path": "org/teacher"},
    "data": {"sources": "/text"},
    "optim": {"num_steps": 100},
    "eval": {"every_steps": 25},
    "search": {"space": {"distill.temperature": {"uniform": [1, 8]}}},
}


def settings(**values):
    """The base with dotted keys set, dots written as two underscores."""
    changed = copy.deepcopy(BASE)
    for key, value in values.items():
        section, _, name = key.partition("__")
        changed.setdefault(section, {})[name] = value
    return changed


def plan(**values):
    return plan_of(settings(**values))


def problems(**values) -> list[str]:
    with pytest.raises(InputError) as caught:
        plan(**values)
    return str(caught.value).splitlines()[1:]


def space(**rules):
    return {"search__space": {key.replace("__", "."): rule for key, rule in rules.items()}}


# ------------------------------------------------------------------------------------------------ what it comes to


def test_defaults():
    search = plan()

    assert search.num_trials == 16
    assert (search.search.metric, search.direction) == ("eval/mlm_loss", "min")
    assert (search.search.searcher, search.search.scheduler) == ("optuna", "asha")
    assert (search.folder, search.trials_folder) == ("/runs/search", "/runs/search/trials")


def test_a_grid_is_gone_through_once_by_default():
    grid = space(student__layers={"grid": [1, 2, 3]}, distill__temperature={"grid": [1, 2]})

    assert plan(**grid, search__searcher="random").num_trials == 7


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("eval/mlm_loss", "min"),
        ("eval/kl_to_teacher", "min"),
        ("eval/mlm_accuracy", "max"),
        ("eval/teacher_agreement", "max"),
    ],
)
def test_objectives_have_a_direction(metric, direction):
    assert plan(search__metric=metric).direction == direction


@pytest.mark.parametrize("name", ["relation_loss", "hidden_loss"])
def test_an_objective_inside_the_models_must_be_evaluated_by_every_trial(name):
    with pytest.raises(InputError, match=f'"eval/{name}", which not every trial evaluates; expected eval.{name}: true'):
        plan(search__metric=f"eval/{name}")
    assert plan(search__metric=f"eval/{name}", **{f"eval__{name}": True}).direction == "min"


def test_a_trial_is_the_configuration_with_its_settings_in_the_folder_of_the_search():
    search = plan(distill__alpha_ce=3.0)

    config = search.trial_config("trial-003", {"distill.temperature": 4.5})

    expected = settings(distill__alpha_ce=3.0, distill__temperature=4.5)
    del expected["search"]
    expected["run"] = {"name": "trial-003", "storage_path": "/runs/search/trials"}
    assert config == parse_config(expected)


def test_all_trials_share_the_seed():
    search = plan(run__seed=7)

    assert search.trial_config("trial-000", {}).run.seed == search.trial_config("trial-001", {}).run.seed == 7


def test_what_a_trial_has_for_each_key():
    weights = {"simplex": ["distill.alpha_ce", "distill.alpha_mlm"]}
    search = plan(**space(w=weights, student__layers={"choice": [2, 3]}))

    assert search.values({}) == {"distill.alpha_ce": 5 / 7, "distill.alpha_mlm": 2 / 7, "student.layers": None}
    assert search.values({"distill.alpha_ce": 0.25, "distill.alpha_mlm": 0.75, "student.layers": 3}) == {
        "distill.alpha_ce": 0.25,
        "distill.alpha_mlm": 0.75,
        "student.layers": 3,
    }


def test_keys_below_a_mapping_can_be_searched():
    config = {"model_type": "bert", "hidden_size": 32}
    search = plan(**space(student__config__hidden_size={"choice": [64, 128]}), student__config=config)

    assert search.values({}) == {"student.config.hidden_size": 32}
    assert search.trial_config("t", {"student.config.hidden_size": 64}).student.config["hidden_size"] == 64


def test_files_and_single_settings(tmp_path):
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings()))

    search = load_search([str(tmp_path / "search.yaml")], ["search.num_trials=5", "optim.learning_rate=1e-4"])

    assert search.num_trials == 5
    assert search.config.optim.learning_rate == 1e-4


def test_its_yaml_reads_back_as_an_equal_one(tmp_path):
    search = plan(search__num_trials=3, **{"data__eval_sources": "/held-out"})
    (tmp_path / "search.yaml").write_text(search.to_yaml())

    assert load_search([str(tmp_path / "search.yaml")], []) == search


def test_a_trials_configuration_reads_back(tmp_path):
    config = plan().trial_config("trial-001", {"distill.temperature": 3.25})
    (tmp_path / "trial.yaml").write_text(to_yaml(config))

    assert load_config([str(tmp_path / "trial.yaml")], []) == config


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"search__num_trials": 40}, True),
        ({"search__max_concurrent": 1}, True),
        ({"search__max_failures": 5}, True),
        ({"runtime__num_workers": 2, "optim__global_batch_size": 256}, True),
        ({"search__seed": 1}, False),
        ({"search__metric": "eval/mlm_accuracy"}, False),
        ({"search__scheduler": "none"}, False),
        ({"search__searcher": "random"}, False),
        ({"search__startup_trials": 3}, False),
        ({"search__grace_fraction": 0.5}, False),
        ({"search__reduction_factor": 3.0}, False),
        ({"search__space": {"distill.temperature": {"uniform": [1, 4]}}}, False),
        ({"optim__learning_rate": 1e-4}, False),
        ({"run__seed": 1}, False),
    ],
)
def test_what_makes_it_another_search(change, is_same):
    assert (difference(plan().identity(), plan(**change).identity()) == []) == is_same


# ---------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"search__space": {}}, ["search.space: given nothing, expected at least one key with a rule"]),
        ({"search__num_trials": 0}, ["search.num_trials: given 0, expected integer >= 1, or null"]),
        ({"search__seeed": 0}, ["unknown key search.seeed, did you mean search.seed?"]),
        ({"search__searcher": "bayes"}, ['search.searcher: given "bayes", expected optuna or random']),
        ({"search__grace_fraction": 1.0}, ["search.grace_fraction: given 1.0, expected number > 0 and < 1"]),
        ({"search__reduction_factor": 1.0}, ["search.reduction_factor: given 1.0, expected number > 1"]),
        (
            {"search__metric": "eval/nonsense"},
            [
                'search.metric: given "eval/nonsense", expected eval/mlm_loss or eval/kl_to_teacher or '
                "eval/mlm_accuracy or eval/teacher_agreement or eval/relation_loss or eval/hidden_loss"
            ],
        ),
        (
            space(distill__temprature={"uniform": [1, 2]}),
            ["search.space: unknown key distill.temprature, did you mean"],
        ),
        (
            space(distill__temperature={"uniform": [0, 2]}),
            ["search.space: distill.temperature: given 0.0, expected number > 0"],
        ),
        (
            space(student__layers={"uniform": [1, 4]}),
            ["search.space: student.layers: given 1.0, expected", "search.space: student.layers: given 4.0, expected"],
        ),
        (
            space(optim__lr_schedule={"choice": ["linear", "cosin"]}),
            ['search.space: optim.lr_schedule: given "cosin", expected linear or cosine or constant'],
        ),
        (
            space(w={"simplex": ["distill.alpha_ce", "distill.temperature"]}),
            ["search.space: distill.temperature: given 0.0, expected number > 0"],
        ),
        (
            {"data__eval_fraction": 0.0},
            ['search.metric: given "eval/mlm_loss" without held-out text; expected data.eval_fraction above 0'],
        ),
        (
            space(distill__temperature={"grid": [1, 2]}),
            ["search.searcher: given optuna with a grid, which TPE cannot follow; expected random, or no grid"],
        ),
        (
            {**space(student__layers={"grid": [1, 2, 3]}), "search__searcher": "random", "search__num_trials": 9},
            ["search.num_trials: given 9, expected 1 (the unchanged settings) and a multiple of the grid's 3"],
        ),
        (
            {"eval__every_steps": 50},
            ["eval.every_steps: given 50, but ASHA first compares a trial after 25 steps (search.grace_fraction 0.25"],
        ),
        (
            {"optim__num_steps": 0},
            ["optim.num_steps: given 0, after which all trials are as they start; expected at least 1"],
        ),
    ],
)
def test_a_mistake_is_named(change, expected):
    found = problems(**change)

    assert len(found) == len(expected)
    assert all(line.strip().startswith(start) for line, start in zip(found, expected, strict=True)), found


@pytest.mark.parametrize("metric", ["train/loss", "train/loss_ce", "train/loss_mlm"])
def test_a_training_loss_is_no_objective(metric):
    (problem,) = problems(search__metric=metric)

    assert f'search.metric: given "{metric}", which depends on the loss weights and the temperature' in problem


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        ("pbt", "take over each other's weights"),
        ("PB2", "take over each other's weights"),
        ("hyperband", "pauses trials"),
        ("bohb", "pauses trials"),
    ],
)
def test_schedulers_that_do_not_work_are_refused_with_the_reason(scheduler, reason):
    (problem,) = problems(search__scheduler=scheduler)

    assert problem.strip().startswith(f'search.scheduler: given "{scheduler}", which cannot be used: ')
    assert reason in problem
    assert problem.endswith("expected asha or none")


@pytest.mark.parametrize("metric", ["eval/kl_to_teacher", "eval/teacher_agreement", "eval/relation_loss"])
def test_objectives_against_a_teacher_need_one(metric):
    config = {"model_type": "bert"}
    alone = settings(search__metric=metric, student__config=config, student__tokenizer="/t", distill__alpha_mlm=1.0)
    del alone["teacher"]
    alone["distill"] |= {"alpha_ce": 0.0, "alpha_cos": 0.0}
    alone["search"]["space"] = {"optim.learning_rate": {"uniform": [0.1, 1]}}

    with pytest.raises(InputError, match=f'search.metric: given "{metric}" without a teacher'):
        plan_of(alone)


@pytest.mark.parametrize(
    "key",
    [
        "run.seed",
        "teacher.path",
        "data.mlm_probability",
        "student.tokenizer",
        "student.path",
        "optim.num_steps",
        "optim.num_epochs",
        "optim.global_batch_size",
        "optim.max_skipped_updates",
        "eval.num_rows",
        "metrics.every_steps",
        "checkpoint.keep",
        "runtime.precision",
        "search.seed",
    ],
)
def test_what_trials_must_share_is_not_searched(key):
    (problem,) = problems(search__space={key: {"choice": [1, 2]}})

    assert problem.strip().startswith(f"search.space.{key}: cannot be searched, as ")


def test_a_section_is_no_setting():
    (problem,) = problems(search__space={"distill": {"choice": [1, 2]}})

    assert 'expected a key such as distill.temperature, given "distill"' in problem


def test_all_problems_at_once():
    found = problems(
        optim__learning_rate=-1.0, search__seed=-1, search__space={"run.seed": {"choice": [1]}, "a.b": {"normal": [1]}}
    )

    assert len(found) == 2  # a faulty section hides what rests on it
    found = problems(optim__learning_rate=-1.0, search__space={"run.seed": {"choice": [1]}, "a.b": {"normal": [1]}})
    assert [line.split(":")[0].strip() for line in found] == [
        "optim.learning_rate",
        "search.space.a.b",
        "search.space.run.seed",
    ]


def test_a_search_without_a_space():
    incomplete = settings()
    del incomplete["search"]

    with pytest.raises(InputError, match=r"search.space: missing, expected mapping. Key of a setting: its rule"):
        plan_of(incomplete)


def test_training_with_the_configuration_of_a_search_is_refused():
    with pytest.raises(InputError, match=r"search: belongs to distil-ray tune"):
        parse_config(settings())


def test_combinations_that_do_not_go_together_are_refused_when_they_come_up():
    with pytest.raises(InputError, match="expected one of them above 0"):
        plan().trial_config("trial-001", {"distill.alpha_ce": 0.0, "distill.alpha_mlm": 0.0, "distill.alpha_cos": 0.0})
