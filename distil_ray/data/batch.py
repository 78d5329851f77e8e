"""What a batch is: its arrays, their dtypes and shapes, its digest, and the way into torch.

Shapes: B rows, T tokens per row, K masked positions per row, S counts.

======================  ================  ====================================================
``input_ids``           [B, T] uint16     ids after masking (int32 above 65,536 pieces)
``masked_positions``    [B, K] int16      ascending
``masked_labels``       [B, K] as ids     the pieces that stood there
``group``, ``row``      [B] int32         place in the run's sequence of rows; group -1 = filler after its end
``group_rows``          [B] int32         rows in that group: row / group_rows of it are done
``skipped``             [B, S] int32      at a group's first row: the counts `SKIPPED` of its text
======================  ================  ====================================================
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from distil_ray.data.hashing import UInt64Array, draws, mix, stream_key
from distil_ray.data.tally import COUNTS

if TYPE_CHECKING:  # torch is imported late: the tasks that read and mask do without it
    import torch

Arrays = dict[str, npt.NDArray[np.generic]]

FILLER_GROUP = -1
END_OF_SCHEDULE, MORE_FOLLOWS, READ_FAILED = -1, -2, -3
"""The ``row`` of filler: the run's sequence ends there, or only the pipeline does, or its text could not be read."""

SKIPPED = COUNTS
"""Names of the columns of ``skipped``. More may be added at the end: a run resumes with any number of them."""

_DIGEST_KEYS = {name: stream_key("digest", name) for name in ("input_ids", "masked_positions", "masked_labels")}


class Batch(NamedTuple):
    """A micro-batch on the device: ``input_ids [B, T]``, ``masked_positions``, ``masked_labels [B, K]``, all int64."""

    input_ids: "torch.Tensor"
    masked_positions: "torch.Tensor"
    masked_labels: "torch.Tensor"


def filler_rows(num_rows: int, max_seq_length: int, num_masked: int, id_dtype: np.dtype, *, kind: int) -> Arrays:
    """Rows without content, which mark an end (``kind``, their ``row``) for every worker alike."""
    return {
        "input_ids": np.zeros((num_rows, max_seq_length), dtype=id_dtype),
        "masked_positions": np.zeros((num_rows, num_masked), dtype=np.int16),
        "masked_labels": np.zeros((num_rows, num_masked), dtype=id_dtype),
        "group": np.full(num_rows, FILLER_GROUP, dtype=np.int32),
        "row": np.full(num_rows, kind, dtype=np.int32),
        "group_rows": np.ones(num_rows, dtype=np.int32),
        "skipped": np.zeros((num_rows, len(SKIPPED)), dtype=np.int32),
    }


def row_digests(rows: Arrays) -> UInt64Array:
    """Return a 64-bit hash of each row's ids, masked positions and labels, ``[B]``."""
    total = np.zeros(len(rows["group"]), dtype=np.uint64)
    for name, key in _DIGEST_KEYS.items():
        values = rows[name]
        # One odd multiplier per column makes the sum depend on the order within a row.
        multipliers = draws(key, np.arange(values.shape[1], dtype=np.uint64)) | np.uint64(1)
        total += mix((values.astype(np.uint64) + np.uint64(1)) @ multipliers)
    return mix(total)


def digest(rows: Arrays) -> int:
    """Return the sum of the rows' hashes modulo 2**64: the same for any order and any split of the rows."""
    return int(row_digests(rows).sum(dtype=np.uint64))


def to_device(rows: Arrays, start: int, stop: int, device: "torch.device") -> Batch:
    """Copy rows ``start:stop`` to ``device``, widening to int64 there; on a GPU the copy does not wait."""
    return Batch(*(_to_device(rows[name][start:stop], device) for name in Batch._fields))


def _to_device(values: npt.NDArray[np.generic], device: "torch.device") -> "torch.Tensor":
    import torch

    tensor = torch.from_numpy(np.array(values))  # a copy: blocks are read-only views of shared memory
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).to(torch.int64)
