"""The schedule: every unit once an epoch, in an order and in groups that only its arguments decide."""

import pickle

import numpy as np
import pytest

from distil_ray.data.schedule import START, Position, Schedule, split_units
from distil_ray.errors import InputError


def make_schedule(num_units=300, seed=0, num_epochs=None, mean_bytes=100_000):
    sizes = np.random.default_rng(num_units).integers(1, 2 * mean_bytes, num_units)
    return Schedule(np.arange(num_units) * 3, sizes, seed, num_epochs)


def epoch_of(schedule, epoch):
    first = epoch * schedule.groups_per_epoch
    return [schedule.units_of(first + group).tolist() for group in range(schedule.groups_per_epoch)]


@pytest.mark.parametrize("num_units", [1, 2, 63, 64, 65, 1000, 10_000])
def test_an_epoch_holds_every_unit_exactly_once_and_no_group_is_empty(num_units):
    schedule = make_schedule(num_units)
    for epoch in (0, 1, 7):
        groups = epoch_of(schedule, epoch)
        assert sorted(unit for group in groups for unit in group) == schedule.units.tolist()
        assert all(groups)


@pytest.mark.parametrize("trial", range(20))
def test_groups_partition_the_epoch_whatever_the_sizes_of_the_units(trial):
    rng = np.random.default_rng(trial)
    sizes = (rng.pareto(0.5, size=int(rng.integers(1, 500))) * 1000).astype(np.int64) + 1
    schedule = Schedule(np.arange(len(sizes)), sizes, seed=trial)
    groups = epoch_of(schedule, 0)
    assert sorted(unit for group in groups for unit in group) == list(range(len(sizes)))
    assert all(groups)


@pytest.mark.parametrize(
    ("num_units", "unit_bytes", "groups_per_epoch"),
    [
        (10, 1000, 10),  # never more groups than units
        (1000, 1000, 64),  # a small corpus: smaller groups
        (1000, 2**20, 125),  # 8 MiB a group
        (40_000, 2**20, 4096),  # a huge corpus: larger groups
    ],
)
def test_number_of_groups_follows_the_size_of_the_corpus(num_units, unit_bytes, groups_per_epoch):
    schedule = Schedule(np.arange(num_units), np.full(num_units, unit_bytes), seed=5)
    assert schedule.groups_per_epoch == groups_per_epoch


def test_groups_differ_from_their_mean_by_no_more_than_the_largest_unit():
    schedule = make_schedule(5000)
    sizes = dict(zip(schedule.units.tolist(), schedule.unit_bytes.tolist(), strict=True))
    totals = np.array([sum(sizes[unit] for unit in group) for group in epoch_of(schedule, 0)])
    assert np.abs(totals - totals.mean()).max() <= max(sizes.values())


def test_golden_order():
    schedule = Schedule(np.arange(12), np.full(12, 100), seed=42)
    units = [unit for group in range(24) for unit in schedule.units_of(group).tolist()]
    assert units[:12] == [2, 8, 11, 4, 5, 10, 0, 7, 1, 6, 3, 9]
    assert units[12:] == [4, 7, 9, 8, 10, 2, 5, 0, 1, 11, 3, 6]
    assert Schedule(np.arange(200), np.arange(1, 201), seed=1).units_of(0).tolist() == [64, 33, 78, 126]


def test_epochs_and_seeds_differ_and_nothing_else_matters():
    schedule = make_schedule(seed=1)
    assert epoch_of(schedule, 0) != epoch_of(schedule, 1)
    assert epoch_of(schedule, 0) != epoch_of(make_schedule(seed=2), 0)
    # Neither the number of epochs, nor which groups were asked for before, nor a trip through pickle.
    other = make_schedule(seed=1, num_epochs=9)
    other.units_of(500)
    assert epoch_of(pickle.loads(pickle.dumps(other)), 3) == epoch_of(schedule, 3)


def test_the_schedule_ends_after_its_epochs():
    schedule = make_schedule(100, num_epochs=2)
    assert schedule.num_groups == 128
    assert len(schedule.units_of(127)) > 0
    for group in (128, -1):
        with pytest.raises(IndexError, match=f"group {group} "):
            schedule.units_of(group)
    assert make_schedule(100).num_groups is None
    assert len(make_schedule(100).units_of(10**6)) > 0


def test_pickle_holds_no_permutation():
    schedule = make_schedule(10_000)
    size = len(pickle.dumps(schedule))
    schedule.units_of(0)
    assert len(pickle.dumps(schedule)) < size + 200


def test_the_position_starts_before_the_first_row():
    assert Position(0, -1) == START
    assert Position(0, 0) > START
    assert Position(1, 0) > Position(0, 999)


@pytest.mark.parametrize("eval_fraction", [0.001, 0.1, 0.5, 0.99])
def test_split_holds_out_the_share_and_loses_nothing(eval_fraction):
    sizes = np.random.default_rng(0).integers(1, 1000, 2000)
    train, held_out = split_units(sizes, eval_fraction, seed=3)
    assert sorted([*train, *held_out]) == list(range(2000))
    share = sizes[held_out].sum() / sizes.sum()
    assert eval_fraction <= share < eval_fraction + 1000 / sizes.sum()
    assert train.tolist() == sorted(train)


def test_split_follows_its_seed():
    sizes = np.full(100, 7)
    assert split_units(sizes, 0.1, 0)[1].tolist() == split_units(sizes, 0.1, 0)[1].tolist()
    assert split_units(sizes, 0.1, 0)[1].tolist() != split_units(sizes, 0.1, 1)[1].tolist()


def test_split_leaves_a_unit_on_either_side():
    for fraction in (1e-9, 0.999):
        train, held_out = split_units(np.array([1000, 1]), fraction, seed=0)
        assert len(train) == len(held_out) == 1


def test_split_of_nothing_holds_out_nothing():
    train, held_out = split_units(np.array([5]), 0, seed=0)
    assert train.tolist() == [0]
    assert held_out.tolist() == []


def test_split_says_what_to_do_when_it_cannot():
    with pytest.raises(InputError, match=r"eval_sources, or set eval_fraction: 0"):
        split_units(np.array([5]), 0.1, seed=0)
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=f"eval_fraction is {fraction}"):
            split_units(np.array([5, 6]), fraction, seed=0)
