"""Masks: exactly K a row, drawn from the row's key and the position alone."""

import hashlib

import numpy as np
import pytest

from distil_ray.data.hashing import draws, stream_key, to_unit_interval
from distil_ray.data.masking import count_maskable, mask_rows, num_masked_positions, special_table

VOCAB_SIZE = 50
CLS, SEP, MASK, UNK = SPECIAL_IDS = (1, 2, 4, 9)
ORDINARY_IDS = [i for i in range(VOCAB_SIZE) if i not in SPECIAL_IDS]
IS_SPECIAL = special_table(VOCAB_SIZE, SPECIAL_IDS)


def random_rows(num_rows, seq_length=40, special_share=0.2, seed=0):
    """Rows [CLS] … [SEP] with special pieces in between."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(ORDINARY_IDS, (num_rows, seq_length)).astype(np.uint16)
    rows[rng.random(rows.shape) < special_share] = SEP
    rows[:, 0], rows[:, -1] = CLS, SEP
    return rows


def keys_of(num_rows, name="test"):
    return draws(stream_key(name), np.arange(num_rows, dtype=np.uint64))


def mask(rows, row_keys=None, num_masked=5, **options):
    row_keys = keys_of(len(rows)) if row_keys is None else row_keys
    return mask_rows(rows, row_keys, num_masked=num_masked, mask_id=MASK, is_special=IS_SPECIAL, **options)


def reference(row, row_key, num_masked, piece_weights=None):
    """Mask one row, position by position."""

    def draw(name, position):
        return draws(row_key ^ stream_key("masking", name), np.array([position], np.uint64))

    def order(position):
        word = draw("select", position)
        if piece_weights is None:
            return int(word[0]) >> 16
        return -np.log1p(-to_unit_interval(word)[0]) / piece_weights[row[position]]

    ordinary = [position for position, piece in enumerate(row) if piece not in SPECIAL_IDS]
    positions = sorted(sorted(ordinary, key=order)[:num_masked])
    input_ids, labels = list(row), [row[position] for position in positions]
    for position in positions:
        choice = to_unit_interval(draw("replace", position))[0]
        if choice < 0.8:
            input_ids[position] = MASK
        elif choice < 0.9:
            input_ids[position] = ORDINARY_IDS[int(draw("piece", position)[0]) % len(ORDINARY_IDS)]
    return input_ids, positions, labels


WEIGHTS = np.random.default_rng(1).uniform(0.1, 10, VOCAB_SIZE)


@pytest.mark.parametrize("piece_weights", [None, WEIGHTS], ids=["uniform", "weighted"])
@pytest.mark.parametrize("num_masked", [1, 5, 16])
def test_rows_equal_the_reference(num_masked, piece_weights):
    rows, row_keys = random_rows(60), keys_of(60)
    masked = mask(rows, row_keys, num_masked, piece_weights=piece_weights)
    for row, key, *arrays in zip(rows.tolist(), row_keys, *masked, strict=True):
        assert tuple(array.tolist() for array in arrays) == reference(row, key, num_masked, piece_weights)


@pytest.mark.parametrize("piece_weights", [None, WEIGHTS], ids=["uniform", "weighted"])
def test_what_holds_for_every_row(piece_weights):
    rows = random_rows(500)
    original = rows.copy()
    input_ids, positions, labels = mask(rows, piece_weights=piece_weights)
    assert (rows == original).all()
    assert (input_ids.dtype, positions.dtype, labels.dtype) == (np.uint16, np.int16, np.uint16)
    assert input_ids.shape == rows.shape
    assert positions.shape == labels.shape == (500, 5)
    assert (np.diff(positions, axis=1) > 0).all()
    assert (labels == np.take_along_axis(rows, positions.astype(int), axis=1)).all()
    assert not IS_SPECIAL[labels].any()
    untouched = np.ones_like(rows, dtype=bool)
    np.put_along_axis(untouched, positions.astype(int), False, axis=1)
    assert (input_ids[untouched] == rows[untouched]).all()


def test_a_row_with_just_enough_ordinary_pieces_has_them_all_masked():
    row = np.array([[CLS, SEP, 20, UNK, 21, 22, SEP, SEP]], np.uint16)
    assert count_maskable(row, IS_SPECIAL).tolist() == [3]
    for weights in (None, WEIGHTS):
        assert mask(row, num_masked=3, piece_weights=weights).masked_positions.tolist() == [[2, 4, 5]]


def test_no_rows():
    for weights in (None, WEIGHTS):
        input_ids, positions, labels = mask(random_rows(0), piece_weights=weights)
        assert (input_ids.shape, positions.shape, labels.shape) == ((0, 40), (0, 5), (0, 5))


def test_large_ids_survive():
    rows = np.full((4, 12), 249_000, np.int32)
    is_special = special_table(250_002, (0, 2, 250_001))
    masked = mask_rows(rows, keys_of(4), num_masked=6, mask_id=250_001, is_special=is_special)
    assert masked.input_ids.dtype == masked.masked_labels.dtype == np.int32
    assert (masked.masked_labels == 249_000).all()
    assert masked.input_ids.max() == 250_001


def test_masks_do_not_depend_on_the_other_rows():
    rows, row_keys = random_rows(64), keys_of(64)
    for weights in (None, WEIGHTS):
        whole = mask(rows, row_keys, piece_weights=weights)
        for chosen in (np.arange(64)[::-1], np.array([3]), np.random.default_rng(0).permutation(64)[:20]):
            part = mask(rows[chosen], row_keys[chosen], piece_weights=weights)
            for one, other in zip(part, whole, strict=True):
                assert (one == other[chosen]).all()


def test_another_key_gives_other_masks():
    rows = random_rows(50)
    first, again, other = mask(rows, keys_of(50, "a")), mask(rows, keys_of(50, "a")), mask(rows, keys_of(50, "b"))
    assert (first.masked_positions == again.masked_positions).all()
    assert (first.masked_positions != other.masked_positions).any(axis=1).all()


def test_replacements_have_their_shares():
    rows = random_rows(20_000, special_share=0)
    for shares in ((0.8, 0.1), (0.5, 0.5), (1.0, 0.0)):
        input_ids, positions, labels = mask(rows, mask_replace_prob=shares[0], random_replace_prob=shares[1])
        now = np.take_along_axis(input_ids, positions.astype(int), axis=1)
        # A random piece is the original one, by chance, once in as many pieces as there are.
        changed_share = shares[1] * (1 - 1 / len(ORDINARY_IDS))
        tolerance = 5 * 0.5 / np.sqrt(now.size)
        assert (now == MASK).mean() == pytest.approx(shares[0], abs=tolerance)
        assert ((now != MASK) & (now != labels)).mean() == pytest.approx(changed_share, abs=tolerance)


def test_random_pieces_are_ordinary_and_all_of_them_occur_equally_often():
    rows = random_rows(20_000)
    input_ids, positions, _ = mask(rows, mask_replace_prob=0, random_replace_prob=1)
    drawn = np.take_along_axis(input_ids, positions.astype(int), axis=1)
    counts = np.bincount(drawn.ravel(), minlength=VOCAB_SIZE)
    assert not counts[list(SPECIAL_IDS)].any()
    expected = drawn.size / len(ORDINARY_IDS)
    assert np.abs(counts[ORDINARY_IDS] - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("piece_weights", [None, np.full(VOCAB_SIZE, 0.3)], ids=["uniform", "equal weights"])
def test_every_position_is_masked_equally_often(piece_weights):
    num_rows, num_masked = 20_000, 5
    rows = random_rows(num_rows, special_share=0)
    positions = mask(rows, num_masked=num_masked, piece_weights=piece_weights).masked_positions
    counts = np.bincount(positions.ravel(), minlength=40)
    assert counts[0] == counts[-1] == 0
    share = num_masked / 38
    assert np.abs(counts[1:-1] - num_rows * share).max() < 5 * np.sqrt(num_rows * share * (1 - share))


def test_positions_of_a_row_are_chosen_independently_of_each_other():
    """Two positions fall together as often as without replacement: K (K - 1) / (n (n - 1))."""
    num_rows, num_masked, num_ordinary = 20_000, 6, 10
    rows = random_rows(num_rows, seq_length=num_ordinary + 2, special_share=0)
    chosen = np.zeros(rows.shape, dtype=int)
    np.put_along_axis(chosen, mask(rows, num_masked=num_masked).masked_positions.astype(int), 1, axis=1)
    together = (chosen.T @ chosen)[1:-1, 1:-1][~np.eye(num_ordinary, dtype=bool)]
    share = num_masked * (num_masked - 1) / (num_ordinary * (num_ordinary - 1))
    assert np.abs(together - num_rows * share).max() < 5 * np.sqrt(num_rows * share * (1 - share))


def test_smoothing_masks_pieces_in_proportion_to_their_weight():
    num_rows = 20_000
    rows = np.tile(np.array([CLS, 20, 21, 22, 23, SEP], np.uint16), (num_rows, 1))
    weights = np.ones(VOCAB_SIZE)
    weights[[20, 21, 22, 23]] = [1, 2, 3, 10]
    # With one mask a row the shares are the weights'.
    labels = mask(rows, num_masked=1, piece_weights=weights).masked_labels
    shares = np.bincount(labels.ravel(), minlength=VOCAB_SIZE)[20:24] / num_rows
    assert shares == pytest.approx(np.array([1, 2, 3, 10]) / 16, abs=5 * 0.5 / np.sqrt(num_rows))
    # With more, the order stays and no piece is masked twice.
    labels = mask(rows, num_masked=2, piece_weights=weights).masked_labels
    counts = np.bincount(labels.ravel(), minlength=VOCAB_SIZE)[20:24]
    assert (np.diff(counts) > 0).all()
    assert counts.max() <= num_rows


@pytest.mark.parametrize(
    ("piece_weights", "expected"),
    [(None, "58fcd7abfd9a7f8c"), (np.arange(1.0, VOCAB_SIZE + 1), "4fdde0ed677cda6c")],
    ids=["uniform", "weighted"],
)
def test_golden_masks(piece_weights, expected):
    """A change of the sequence would break the resume of every run that is under way."""
    rows = (np.arange(8 * 30, dtype=np.uint16) % 40 + 10).reshape(8, 30)
    masked = mask(rows, keys_of(8, "golden"), piece_weights=piece_weights)
    content = b"".join(array.astype("<i4").tobytes() for array in masked)
    assert hashlib.sha256(content).hexdigest()[:16] == expected


@pytest.mark.parametrize(
    ("max_seq_length", "mlm_probability", "num_masked"),
    [(128, 0.15, 19), (512, 0.15, 76), (512, 0.3, 153), (12, 0.5, 5)],
)
def test_number_of_masked_positions(max_seq_length, mlm_probability, num_masked):
    assert num_masked_positions(max_seq_length, mlm_probability) == num_masked


def test_the_table_of_special_pieces():
    assert special_table(6, (0, 5)).tolist() == [True, False, False, False, False, True]
