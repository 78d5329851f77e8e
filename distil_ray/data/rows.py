"""A group's documents -> masked rows: ids packed into full rows, then shuffled and masked.

Shapes: N tokens, B rows, T tokens per row, K masked positions per row, V pieces.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distil_ray.data.batch import SKIPPED, Arrays
from distil_ray.data.hashing import draws, stream_key
from distil_ray.data.masking import MaskedRows, count_maskable, mask_rows, num_masked_positions, special_table
from distil_ray.data.tally import Tally
from distil_ray.data.tokenization import Vocabulary, token_stream


def pack_rows(
    stream: npt.NDArray[np.integer], *, max_seq_length: int, cls_id: int, sep_id: int
) -> npt.NDArray[np.integer]:
    """Cut a stream into rows ``[CLS] … [SEP]`` that are always full: no padding is ever trained on.

    Args:
        stream: ids ``[N]``; documents are already separated by ``sep_id``. A long one continues in the next row.
        max_seq_length: T, tokens per row, the two special ones included.
        cls_id: id that begins every row.
        sep_id: id that ends every row.

    Returns:
        ids ``[B, T]`` of the stream's dtype, B = ceil(N / (T - 2)). The last row is filled up from the stream's
        beginning, so nothing of the text is lost; an empty stream gives no row.
    """
    body_length = max_seq_length - 2
    num_rows = -(-len(stream) // body_length)
    rows = np.empty((num_rows, max_seq_length), dtype=stream.dtype)
    rows[:, 0] = cls_id
    rows[:, -1] = sep_id
    num_full = len(stream) // body_length
    rows[:num_full, 1:-1] = stream[: num_full * body_length].reshape(num_full, body_length)
    if num_rows > num_full:
        rows[-1, 1:-1] = np.take(stream, np.arange(num_full * body_length, num_rows * body_length), mode="wrap")
    return rows


_TOKENS_AT_ONCE = 2**18


@dataclass(frozen=True)
class RowSettings:
    """Everything besides text and tokenizer that decides a row. ``piece_weights``: see `mask_rows`."""

    max_seq_length: int
    mlm_probability: float
    mask_replace_prob: float
    random_replace_prob: float
    seed: int
    piece_weights: npt.NDArray[np.float64] | None = None

    @property
    def num_masked(self) -> int:
        """K, masked positions per row."""
        return num_masked_positions(self.max_seq_length, self.mlm_probability)


def make_rows(
    documents: Iterable[str],
    tally: Tally,
    vocabulary: Vocabulary,
    settings: RowSettings,
    *,
    split: str,
    group: int,
) -> Arrays:
    """Make the masked rows of one group, in their final order.

    Args:
        documents: the group's texts, in reading order.
        tally: of ``documents``, which their reader counts; pieces and rows are counted here.
        vocabulary: the tokenizer.
        settings: row length, masking and seed.
        split: ``"train"`` or ``"eval"``: names the stream of random draws.
        group: the group's number in the run; epochs have numbers of their own, so masks differ between them.

    Returns:
        The arrays of `batch`, with the tally's counts at the first row. Rows with fewer than K ordinary pieces carry no
        signal and are left out.
    """
    stream = token_stream(vocabulary, documents)
    rows = pack_rows(
        stream,
        max_seq_length=settings.max_seq_length,
        cls_id=vocabulary.cls_id,
        sep_id=vocabulary.sep_id,
    )
    is_special = special_table(vocabulary.size, vocabulary.special_ids)
    has_targets = count_maskable(rows, is_special) >= settings.num_masked
    tally.num_rows = len(rows)
    tally.counted["skipped_rows"] = int(np.count_nonzero(~has_targets))
    tally.counted["pieces"] = len(stream)
    if vocabulary.unk_id is not None:
        tally.counted["unknown_pieces"] = int(np.count_nonzero(stream == vocabulary.unk_id))
    del stream

    row_numbers = np.arange(np.count_nonzero(has_targets), dtype=np.uint64)
    order = np.argsort(draws(stream_key(settings.seed, split, "shuffle", group), row_numbers))
    rows = rows[np.flatnonzero(has_targets)[order]]
    row_keys = draws(stream_key(settings.seed, split, "mask", group), row_numbers)
    positions = np.empty((len(rows), settings.num_masked), dtype=np.int16)
    labels = np.empty((len(rows), settings.num_masked), dtype=rows.dtype)
    # In slices, and in place: masking takes some thirty bytes per token, and a group may be of hundreds of megabytes.
    for part in _slices(len(rows), max(_TOKENS_AT_ONCE // settings.max_seq_length, 1)):
        rows[part], positions[part], labels[part] = mask_rows(
            rows[part],
            row_keys[part],
            num_masked=settings.num_masked,
            mask_id=vocabulary.mask_id,
            is_special=is_special,
            mask_replace_prob=settings.mask_replace_prob,
            random_replace_prob=settings.random_replace_prob,
            piece_weights=settings.piece_weights,
        )
    skipped = np.zeros((len(rows), len(SKIPPED)), dtype=np.int32)
    skipped[:1] = list(tally.counts().values())
    return {
        **MaskedRows(rows, positions, labels)._asdict(),
        "group": np.full(len(rows), group, dtype=np.int32),
        "row": row_numbers.astype(np.int32),
        "group_rows": np.full(len(rows), len(rows), dtype=np.int32),
        "skipped": skipped,
    }


def count_pieces(documents: Iterable[str], vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """Return how often each piece occurs in ``documents``, ``[V]``."""
    stream = token_stream(vocabulary, documents)
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for part in _slices(len(stream), _TOKENS_AT_ONCE):
        counts += np.bincount(stream[part], minlength=vocabulary.size)
    return counts


def _slices(length: int, size: int) -> Iterator[slice]:
    """Cut ``length`` into slices of ``size``, the last one shorter."""
    return (slice(start, start + size) for start in range(0, length, size))
