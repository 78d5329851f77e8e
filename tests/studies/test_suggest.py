"""Suggestions: a pure function of the trials so far, that learns from them."""

import pytest

from distil_ray.studies.settings import Search
from distil_ray.studies.space import parse_space
from distil_ray.studies.suggest import suggest
from distil_ray.studies.trials import Score, Trial

SPACE, _ = parse_space(
    {
        "distill.temperature": {"uniform": [1, 8]},
        "w": {"simplex": ["distill.alpha_ce", "distill.alpha_mlm", "distill.alpha_cos"]},
        "student.layers": {"choice": [2, [0, 3]]},
        "optim.learning_rate": {"loguniform": [1e-4, 1e-2]},
    }
)


def search(**values) -> Search:
    return Search(space={}, **values)


def trial(number: int, point, value: float | None, status="finished", step=100) -> Trial:
    scores = () if value is None else (Score(step // 2, 0.5, value + 1), Score(step, 1.0, value))
    return Trial(f"trial-{number:03d}", SPACE.settings(point, 0), point, status, scores=scores)


def history(rule, count=12, direction="min", **values) -> list[Trial]:
    """Trials whose value is a function of their temperature."""
    trials: list[Trial] = []
    for number in range(count):
        point = suggest(SPACE, search(**values), direction, trials, number)
        trials.append(trial(number, point, rule(point["distill.temperature"])))
    return trials


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_the_same_trials_give_the_same_suggestion(searcher):
    trials = history(lambda t: t, searcher=searcher)

    first, again = (suggest(SPACE, search(searcher=searcher), "min", trials, 12) for _ in range(2))

    assert first == again
    assert first != suggest(SPACE, search(searcher=searcher, seed=1), "min", trials, 12)
    assert first != suggest(SPACE, search(searcher=searcher), "min", trials, 13)


def test_chance_does_not_look_at_the_trials():
    trials = history(lambda t: t, searcher="random")

    assert suggest(SPACE, search(searcher="random"), "min", trials, 12) == suggest(
        SPACE, search(searcher="random"), "min", [], 12
    )


@pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
def test_tpe_goes_where_the_objective_is_better(direction, sign):
    trials = history(lambda t: sign * (t - 6) ** 2, count=40, direction=direction, startup_trials=10)
    by_chance = history(lambda t: t, count=40, searcher="random")

    def distance(listed: list[Trial]) -> float:
        return sum(abs(trial.point["distill.temperature"] - 6) for trial in listed) / len(listed)

    assert distance(trials[20:]) < 0.6 * distance(by_chance[20:])


def test_the_first_trials_are_random():
    trials = history(lambda t: t, count=5, startup_trials=6)
    others = history(lambda t: -t, count=5, startup_trials=6)

    assert [trial.point for trial in trials] == [trial.point for trial in others]
    trials, others = history(lambda t: t, startup_trials=3), history(lambda t: -t, startup_trials=3)
    assert [trial.point for trial in trials] != [trial.point for trial in others]


def test_trials_of_every_kind_are_taken_into_account():
    points = [trial.point for trial in history(lambda t: t, count=6)]
    trials = [
        trial(0, points[0], 2.0),
        trial(1, points[1], 3.0, "stopped", step=50),
        trial(2, points[2], None, "failed"),
        trial(3, points[3], None, "open"),
        trial(4, points[4], 3.0, "open", step=50),
        trial(5, points[5], None, "finished"),
    ]
    outside = Trial("trial-006", {}, None, "finished", scores=(Score(1, 1.0, 1.0),))

    point = suggest(SPACE, search(startup_trials=1), "min", [*trials, outside], 7)

    assert point.keys() == SPACE.distributions.keys()


def test_a_stopped_trial_counts_as_worse_than_those_that_went_further():
    """Its loss is the lower one, but only because the others have been measured later on another scale."""
    low, high = ({"distill.temperature": t} for t in (1.5, 7.5))
    rest = {"w[0]": 0.5, "w[1]": 0.5, "student.layers": 0, "optim.learning_rate": 1e-3}
    settings = search(startup_trials=1)

    def mean_temperature(low_status: str, high_status: str) -> float:
        trials = []
        for i in range(10):
            is_low = i % 2 == 0
            status, value = (low_status, 5.0) if is_low else (high_status, 5.0)
            trials.append(trial(i, (low if is_low else high) | rest, value, status, 20 if status == "stopped" else 100))
        drawn = [suggest(SPACE, settings, "min", trials, n)["distill.temperature"] for n in range(20, 60)]
        return sum(drawn) / len(drawn)

    assert mean_temperature("finished", "stopped") < mean_temperature("stopped", "finished") - 1


def test_a_grid_has_nothing_to_suggest():
    space, _ = parse_space({"student.layers": {"grid": [1, 2]}})

    assert suggest(space, search(searcher="random"), "min", [], 3) == {}
