"""A stream of token ids -> full rows. Shapes: N tokens, B rows, T tokens a row."""

import numpy as np
import numpy.typing as npt


def pack_rows(
    stream: npt.NDArray[np.integer], *, max_seq_length: int, cls_id: int, sep_id: int
) -> npt.NDArray[np.integer]:
    """Cut a stream into rows ``[CLS] … [SEP]`` that are always full: no padding is ever trained on.

    Args:
        stream: ids ``[N]``; documents are already separated by ``sep_id``. A long one runs on in the next row.
        max_seq_length: T, tokens a row, the two special ones included.
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
