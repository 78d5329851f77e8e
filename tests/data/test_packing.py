"""Full rows: nothing of the stream is lost, and nothing but the stream is in them."""

import numpy as np
import pytest

from distil_ray.data.rows import pack_rows

CLS, SEP = 1, 2


def pack(stream, max_seq_length, dtype=np.uint16):
    return pack_rows(np.array(stream, dtype), max_seq_length=max_seq_length, cls_id=CLS, sep_id=SEP)


def reference(stream, max_seq_length):
    """Take T - 2 ids at a time; go round to the beginning where the stream ends."""
    rows = []
    position = 0
    while position < len(stream):
        body = [stream[(position + offset) % len(stream)] for offset in range(max_seq_length - 2)]
        rows.append([CLS, *body, SEP])
        position += max_seq_length - 2
    return rows


@pytest.mark.parametrize("max_seq_length", [3, 4, 8, 17])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 6, 7, 12, 13, 100])
def test_rows_equal_the_reference(num_tokens, max_seq_length):
    stream = np.random.default_rng(num_tokens).integers(3, 1000, num_tokens).tolist()
    rows = pack(stream, max_seq_length)
    assert rows.tolist() == reference(stream, max_seq_length)
    assert rows.shape == (-(-num_tokens // (max_seq_length - 2)), max_seq_length)


def test_the_last_row_is_filled_from_the_beginning():
    assert pack([11, 12, 13, 14, 15], 5).tolist() == [[CLS, 11, 12, 13, SEP], [CLS, 14, 15, 11, SEP]]


def test_a_stream_shorter_than_a_row_goes_round_until_the_row_is_full():
    assert pack([11, 12, SEP], 10).tolist() == [[CLS, 11, 12, SEP, 11, 12, SEP, 11, 12, SEP]]


def test_documents_run_on_behind_their_separator():
    documents = [[11, 12, SEP], [21, SEP], [31, 32, 33, SEP]]
    rows = pack([piece for document in documents for piece in document], 6)
    assert rows.tolist() == [[CLS, 11, 12, SEP, 21, SEP], [CLS, SEP, 31, 32, 33, SEP], [CLS, SEP, 11, 12, SEP, SEP]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_an_empty_stream_gives_no_row_and_dtypes_are_kept(dtype):
    empty = pack([], 8, dtype)
    assert (empty.shape, empty.dtype) == ((0, 8), dtype)
    assert pack([7, 8, 9], 8, dtype).dtype == dtype


def test_the_stream_is_left_as_it_was():
    stream = np.arange(3, 10, dtype=np.uint16)
    pack_rows(stream, max_seq_length=5, cls_id=CLS, sep_id=SEP)[:] = 0
    assert stream.tolist() == list(range(3, 10))
