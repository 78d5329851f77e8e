"""The counter-based hash: the published sequence, uniform draws, and streams that are unrelated to each other."""

import numpy as np
import pytest

from distil_ray.data.hashing import draws, mix, stream_key, to_unit_interval

MODULUS = 2**64


def splitmix64(state):
    """The published generator's next output, on Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) % MODULUS
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % MODULUS
    return z ^ (z >> 31)


def test_mix_is_splitmix64():
    words = [0, 1, 2**32, MODULUS - 1, *(splitmix64(i) for i in range(100))]
    assert mix(np.array(words, np.uint64)).tolist() == [splitmix64(word) for word in words]
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first output for seed 0 that is published everywhere


def test_mix_leaves_its_argument_alone():
    words = np.arange(10, dtype=np.uint64)
    mix(words)
    assert words.tolist() == list(range(10))


def test_golden_draws():
    key = stream_key(1, "mask", 2)
    assert int(key) == 0x9BC53904FEB0A92C
    words = [0x13D76889A51EFEDF, 0x69BB6B6D93FC9CFA, 0x5755F78B8EAB0D47]
    assert draws(key, np.arange(3, dtype=np.uint64)).tolist() == words


def test_a_draw_depends_on_key_and_counter_alone():
    counters = np.arange(1000, dtype=np.uint64)
    keys = np.array([stream_key("a"), stream_key("b")])
    table = draws(keys[:, None], counters)
    assert table.shape == (2, 1000)
    for row, key in enumerate(keys):
        assert (table[row] == draws(key, counters)).all()
        assert (table[row, ::-7] == draws(key, counters[::-7])).all()


@pytest.mark.parametrize(
    "other",
    [
        (0, "mask", 4),
        (1, "mask", 3),
        (0, "shuffle", 3),
        (0, "mask"),
        (0, 3, "mask"),
        ("0", "mask", 3),
        (0, "mask", "3"),
    ],
)
def test_every_part_of_a_name_makes_another_stream(other):
    key = stream_key(0, "mask", 3)
    assert key == stream_key(0, "mask", 3)
    assert key != stream_key(*other)


def test_draws_of_one_stream_are_all_different():
    words = draws(stream_key("x"), np.arange(100_000, dtype=np.uint64))
    assert len(np.unique(words)) == len(words)


def test_every_bit_is_a_fair_coin_and_streams_are_unrelated():
    num_draws = 40_000
    counters = np.arange(num_draws, dtype=np.uint64)
    bits = [
        np.unpackbits(draws(stream_key(name), counters).view(np.uint8).reshape(num_draws, 8), axis=1).astype(int)
        for name in ("x", "y")
    ]
    limit = 5 / 2 / np.sqrt(num_draws)  # five standard deviations of a mean of fair coins
    assert np.abs(bits[0].mean(axis=0) - 0.5).max() < limit
    assert np.abs((bits[0] ^ bits[1]).mean(axis=0) - 0.5).max() < limit
    assert np.abs((bits[0][1:] ^ bits[0][:-1]).mean(axis=0) - 0.5).max() < limit


def test_to_unit_interval_is_uniform_and_excludes_one():
    ends = to_unit_interval(np.array([0, MODULUS - 1], np.uint64))
    assert ends.tolist() == [0.0, 1 - 2.0**-53]
    values = to_unit_interval(draws(stream_key("u"), np.arange(50_000, dtype=np.uint64)))
    counts = np.histogram(values, bins=50, range=(0, 1))[0]
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert 20 < chi_squared < 90  # 49 degrees of freedom: 49 ± 4 standard deviations
