"""Rows -> masked rows, after Devlin et al. 2019, section 3.1, with the same number of masks in every row.

Every draw is a counter-based hash of the row's key and the position, so a row's masks depend on nothing else: not on
the worker, the batch or the time. Shapes: B rows, T tokens per row, K masked positions per row, V pieces.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distil_ray.data.hashing import UInt64Array, draws, stream_key, to_unit_interval

# A position's sort key is 48 random bits above its 16-bit index: keys differ, and the index can be read back.
_POSITION_BITS = np.uint64(0xFFFF)
_NEVER = np.uint64(0xFFFFFFFFFFFF0000)

_SELECT, _REPLACE, _PIECE = (stream_key("masking", name) for name in ("select", "replace", "piece"))


class MaskedRows(NamedTuple):
    """Masked rows: ``input_ids [B, T]``, ascending ``masked_positions [B, K]`` int16, ``masked_labels [B, K]``."""

    input_ids: npt.NDArray[np.integer]
    masked_positions: npt.NDArray[np.int16]
    masked_labels: npt.NDArray[np.integer]


def num_masked_positions(max_seq_length: int, mlm_probability: float) -> int:
    """K = round(mlm_probability · (T - 2)): the first and the last position of a row are special."""
    return round(mlm_probability * (max_seq_length - 2))


def special_table(vocab_size: int, special_ids: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return a bool table ``[V]`` that is true at special ids."""
    table = np.zeros(vocab_size, dtype=bool)
    table[list(special_ids)] = True
    return table


def count_maskable(rows: npt.NDArray[np.integer], is_special: npt.NDArray[np.bool_]) -> npt.NDArray[np.integer]:
    """Return for each of ``rows [B, T]`` how many positions could be masked, ``[B]``."""
    counts: npt.NDArray[np.intp] = np.count_nonzero(~is_special[rows], axis=1)
    return counts


def mask_rows(
    rows: npt.NDArray[np.integer],
    row_keys: UInt64Array,
    *,
    num_masked: int,
    mask_id: int,
    is_special: npt.NDArray[np.bool_],
    mask_replace_prob: float = 0.8,
    random_replace_prob: float = 0.1,
    piece_weights: npt.NDArray[np.float64] | None = None,
) -> MaskedRows:
    """Mask exactly ``num_masked`` positions of every row, never a special piece.

    Args:
        rows: ids ``[B, T]``, T <= 32,767, each row with at least ``num_masked`` ordinary pieces.
        row_keys: ``[B]`` keys that name the rows in the whole run.
        num_masked: K.
        mask_id: id of [MASK].
        is_special: bool table ``[V]``.
        mask_replace_prob: share of the K positions (in expectation) that become [MASK].
        random_replace_prob: share that becomes a random ordinary piece; the rest keeps its piece.
        piece_weights: ``[V]`` positive weights of being chosen (weighted sampling without replacement; Efraimidis and
            Spirakis 2006); None = uniform.

    Returns:
        New arrays; ``rows`` is left as it was.
    """
    seq_length = rows.shape[1]
    assert seq_length <= np.iinfo(np.int16).max
    keys = draws((row_keys ^ _SELECT)[:, None], np.arange(seq_length, dtype=np.uint64)[None, :])
    special = is_special[rows]
    if piece_weights is None:
        positions = _smallest(keys, special, num_masked)
    else:
        positions = _weighted(keys, special, piece_weights[rows], num_masked)
    labels = np.take_along_axis(rows, positions, axis=1)

    counters = positions.astype(np.uint64)
    choice = to_unit_interval(draws((row_keys ^ _REPLACE)[:, None], counters))
    ordinary_ids = np.flatnonzero(~is_special)
    piece = draws((row_keys ^ _PIECE)[:, None], counters) % np.uint64(len(ordinary_ids))
    replacement = np.where(choice < mask_replace_prob + random_replace_prob, ordinary_ids[piece], labels)
    replacement = np.where(choice < mask_replace_prob, mask_id, replacement)

    input_ids = rows.copy()
    np.put_along_axis(input_ids, positions, replacement.astype(rows.dtype), axis=1)
    return MaskedRows(input_ids, positions.astype(np.int16), labels)


def _smallest(keys: UInt64Array, special: npt.NDArray[np.bool_], num_masked: int) -> npt.NDArray[np.intp]:
    """Positions ``[B, K]`` of the K smallest keys, ascending by position."""
    keys &= ~_POSITION_BITS
    keys[special] = _NEVER
    keys |= np.arange(keys.shape[1], dtype=np.uint64)
    keys.partition(num_masked - 1, axis=1)
    chosen = keys[:, :num_masked]
    assert (chosen < _NEVER).all(), "a row has fewer ordinary pieces than masks"
    return np.sort((chosen & _POSITION_BITS).astype(np.intp), axis=1)


def _weighted(
    keys: UInt64Array,
    special: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64],
    num_masked: int,
) -> npt.NDArray[np.intp]:
    """The same with P(chosen first) in proportion to the weight: the K smallest of -log(1 - u) / weight."""
    waiting_times = -np.log1p(-to_unit_interval(keys)) / weights
    waiting_times[special] = np.inf
    positions = np.argpartition(waiting_times, num_masked - 1, axis=1)[:, :num_masked]
    assert np.isfinite(np.take_along_axis(waiting_times, positions, axis=1)).all()
    return np.sort(positions, axis=1)
