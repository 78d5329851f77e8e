"""Rules of a search space: what they allow, how it is distributed, and there and back."""

import numpy as np
import pytest

from distil_ray.studies.space import ZERO_BELOW, Simplex, Space, parse_space

WEIGHTS = ("distill.alpha_ce", "distill.alpha_mlm", "distill.alpha_cos")


def space(**rules) -> Space:
    """A space of rules by key, dots written as two underscores."""
    parsed, problems = parse_space({key.replace("__", "."): rule for key, rule in rules.items()})
    assert problems == []
    return parsed


def only(**rules):
    (rule,) = space(**rules).rules
    return rule


def draws(rule, count=20_000, seed=0) -> np.ndarray:
    """Values that the rule gives for points drawn uniformly."""
    points = np.random.default_rng(seed).random((count, len(rule.distributions())))
    names = list(rule.distributions())
    return np.array([list(rule.settings(dict(zip(names, point, strict=True))).values()) for point in points])


# ------------------------------------------------------------------------------------------------ single rules


def test_a_range_has_its_edges_and_four_digits():
    rule = only(a__b={"uniform": [1, 8]})

    assert rule.settings({"a.b": 2.345678}) == {"a.b": 2.346}
    assert list(rule.examples()) == [{"a.b": 1.0}, {"a.b": 8.0}]
    assert (rule.distribution.low, rule.distribution.high, rule.distribution.log) == (1.0, 8.0, False)


def test_rounding_does_not_leave_the_range():
    rule = only(a__b={"loguniform": [0.00012345, 0.00067896]})

    assert rule.distribution.log
    assert rule.settings({"a.b": 0.00012345}) == {"a.b": 0.00012345}
    assert rule.settings({"a.b": 0.00067896}) == {"a.b": 0.00067896}


def test_randint_leaves_its_upper_end_out():
    rule = only(student__layers={"randint": [1, 4]})

    assert list(rule.examples()) == [{"student.layers": 1}, {"student.layers": 3}]
    assert rule.settings({"student.layers": 3}) == {"student.layers": 3}


def test_a_choice_takes_values_of_any_kind():
    rule = only(student__layers={"choice": [2, [0, 3], None]})

    assert [rule.settings({"student.layers": i}) for i in range(3)] == list(rule.examples())
    assert rule.point({"student.layers": [0, 3]}) == {"student.layers": 1}
    assert rule.point({"student.layers": 3}) is None


def test_grids_are_gone_through_combination_by_combination():
    both = space(a__b={"grid": [1, 2]}, a__c={"grid": ["x", "y", "z"]})

    assert both.num_combinations == 6
    assert both.distributions == {}
    visited = [tuple(both.settings({}, i).values()) for i in range(12)]
    assert visited == [(1, "x"), (1, "y"), (1, "z"), (2, "x"), (2, "y"), (2, "z")] * 2


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        ({"uniform": [1, 4]}, 2.5, 4.5),
        ({"loguniform": [1e-4, 1e-2]}, 1e-3, 1e-1),
        ({"randint": [1, 4]}, 3, 4),
        ({"choice": [1, 2]}, 2, 3),
        ({"uniform": [0, 1]}, 1, None),
    ],
)
def test_a_setting_has_a_point_if_the_rule_allows_it(rule, inside, outside):
    rule = only(a__b=rule)

    point = rule.point({"a.b": inside})
    assert rule.settings(point) == {"a.b": inside}
    assert rule.point({"a.b": outside}) is None


# ----------------------------------------------------------------------------------------------------- simplex


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_simplex_is_covered_uniformly(size):
    """Moments of the flat Dirichlet distribution: mean 1/n, variance (n-1)/(n²(n+1)), covariance -1/(n²(n+1))."""
    rule = Simplex("w", tuple(f"d.{i}" for i in range(size)))
    points = np.random.default_rng(1).random((40_000, size - 1))
    weights = np.array([rule.weights({f"w[{i}]": u for i, u in enumerate(point)}) for point in points])

    assert np.allclose(weights.sum(axis=1), 1)
    assert weights.min() >= 0
    assert np.allclose(weights.mean(axis=0), 1 / size, atol=0.01)
    variance, covariance = (size - 1) / (size**2 * (size + 1)), -1 / (size**2 * (size + 1))
    expected = np.full((size, size), covariance) + np.eye(size) * (variance - covariance)
    assert np.allclose(np.cov(weights.T), expected, atol=0.004)


def test_faces_and_corners_of_the_simplex_are_reached():
    rule = only(w={"simplex": list(WEIGHTS)})
    weights = draws(rule)

    assert np.allclose(weights.sum(axis=1), 1)
    assert ((weights == 0) | (weights >= ZERO_BELOW)).all()
    # A share of 1 - (1 - 3 z)² of the triangle lies within z of an edge, 6 z² near two of them at once.
    assert (weights == 0).any(axis=1).mean() == pytest.approx(1 - (1 - 3 * ZERO_BELOW) ** 2, abs=0.01)
    assert (weights == 1).any(axis=1).mean() == pytest.approx(6 * ZERO_BELOW**2, abs=0.003)
    assert all((weights[:, i] == 1).any() for i in range(3))


@pytest.mark.parametrize("weights", [(5.0, 2.0, 1.0), (0.0, 1.0, 0.0), (1, 0, 0), (0.2, 0.3, 0.5), (0, 0, 3)])
def test_weights_have_a_point_that_gives_their_shares(weights):
    rule = only(w={"simplex": list(WEIGHTS)})

    point = rule.point(dict(zip(WEIGHTS, weights, strict=True)))

    shares = rule.settings(point)
    assert list(shares.values()) == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-3)


@pytest.mark.parametrize("weights", [(0, 0, 0), (1, None, 0), (-1, 1, 1)])
def test_what_is_no_set_of_weights_has_no_point(weights):
    assert only(w={"simplex": list(WEIGHTS)}).point(dict(zip(WEIGHTS, weights, strict=True))) is None


def test_the_corners_and_the_middle_stand_for_the_simplex():
    assert list(only(w={"simplex": ["d.a", "d.b"]}).examples()) == [
        {"d.a": 1.0, "d.b": 0.0},
        {"d.a": 0.0, "d.b": 1.0},
        {"d.a": 0.5, "d.b": 0.5},
    ]


def test_a_space_joins_its_rules():
    both = space(w={"simplex": ["d.a", "d.b"]}, o__lr={"uniform": [0, 1]}, s__l={"grid": [1, 2]})

    assert both.keys == ("d.a", "d.b", "o.lr", "s.l")
    assert list(both.distributions) == ["w[0]", "o.lr"]
    assert both.settings({"w[0]": 1.0, "o.lr": 0.5}, 1) == {"d.a": 1.0, "d.b": 0.0, "o.lr": 0.5, "s.l": 2}
    assert both.point({"d.a": 1, "d.b": 1, "o.lr": 0.5, "s.l": 2}) == {"w[0]": 0.5, "o.lr": 0.5}
    assert both.point({"d.a": 1, "d.b": 1, "o.lr": 0.5, "s.l": 3}) is None


# ----------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (3, "given 3, expected one rule, such as {uniform: [1, 4]}"),
        ({}, "given {}, expected one rule, such as {uniform: [1, 4]}"),
        ({"uniform": [1, 2], "grid": [1]}, "expected one rule, such as {uniform: [1, 4]}"),
        ({"unifrom": [1, 2]}, "unknown rule unifrom, did you mean uniform?"),
        ({"gauss": [1, 2]}, "unknown rule gauss, expected one of choice, uniform, loguniform, randint, grid, simplex"),
        ({"uniform": 3}, "given uniform: 3, expected a list"),
        ({"choice": []}, "given choice: [], expected a list"),
        ({"uniform": [1]}, "given uniform: [1], expected [low, high] with low below high"),
        ({"uniform": [2, 1]}, "given uniform: [2, 1], expected [low, high] with low below high"),
        ({"uniform": [1, 1]}, "given uniform: [1, 1], expected [low, high] with low below high"),
        ({"uniform": ["a", 1]}, 'given uniform: ["a", 1], expected [low, high] with low below high'),
        ({"uniform": [0, float("inf")]}, "expected [low, high] with low below high"),
        ({"loguniform": [0, 1]}, "given loguniform: [0, 1], expected numbers above 0"),
        ({"randint": [1.5, 3]}, "given randint: [1.5, 3], expected two integers"),
        ({"choice": [1, 2, 1]}, "given 1 more than once, expected different values"),
        ({"simplex": ["d.a"]}, 'given simplex: ["d.a"], expected a list of at least two different keys'),
        ({"simplex": ["d.a", "d.a"]}, "expected a list of at least two different keys"),
        ({"simplex": ["d.a", 3]}, "expected a list of at least two different keys"),
    ],
)
def test_a_faulty_rule_is_named(rule, problem):
    _, problems = parse_space({"a.b": rule})

    assert len(problems) == 1
    assert problems[0].startswith("search.space.a.b: ")
    assert problem in problems[0]


def test_a_setting_has_one_rule():
    _, problems = parse_space({"d.a": {"uniform": [0, 1]}, "w": {"simplex": ["d.a", "d.b"]}})

    assert problems == ["search.space: d.a is varied by 2 rules, expected one"]


def test_an_empty_space_is_refused():
    assert parse_space({})[1] == ["search.space: given nothing, expected at least one key with a rule"]
