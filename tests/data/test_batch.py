"""Batches: a digest that notices every change and no order of rows, and the way into torch."""

import itertools

import numpy as np
import pytest
import torch

from distil_ray.data.batch import (
    END_OF_SCHEDULE,
    FILLER_GROUP,
    MORE_FOLLOWS,
    READ_FAILED,
    SKIPPED,
    Batch,
    digest,
    filler_rows,
    row_digests,
    to_device,
)

HASHED = ("input_ids", "masked_positions", "masked_labels")


def random_batch(num_rows, seq_length=16, num_masked=4, id_dtype=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    return filler_rows(num_rows, seq_length, num_masked, np.dtype(id_dtype), kind=END_OF_SCHEDULE) | {
        "input_ids": rng.integers(0, np.iinfo(np.uint16).max, (num_rows, seq_length)).astype(id_dtype),
        "masked_positions": np.sort(rng.random((num_rows, seq_length)).argsort(axis=1)[:, :num_masked]).astype(
            np.int16
        ),
        "masked_labels": rng.integers(0, 50_000, (num_rows, num_masked)).astype(id_dtype),
        "group": np.zeros(num_rows, np.int32),
        "row": np.arange(num_rows, dtype=np.int32),
    }


def take(rows, indices):
    return {name: values[indices] for name, values in rows.items()}


def test_the_digest_is_the_sum_of_the_rows_digests_whatever_their_order_and_split():
    rows = random_batch(32)
    whole = digest(rows)
    assert digest(take(rows, np.random.default_rng(0).permutation(32))) == whole
    for edges in ([0, 1, 32], [0, 8, 16, 24, 32], [0, 31, 31, 32]):
        parts = [digest(take(rows, slice(*ends))) for ends in itertools.pairwise(edges)]
        assert sum(parts) % 2**64 == whole
    assert digest(take(rows, slice(0))) == 0


def test_the_digest_changes_with_every_single_value():
    rows = random_batch(2)
    seen = {digest(rows)}
    num_changes = 0
    for name in HASHED:
        for index in np.ndindex(rows[name].shape):
            for change in (1, 2, 256):
                changed = {**rows, name: rows[name].copy()}
                changed[name][index] ^= change
                seen.add(digest(changed))
                num_changes += 1
    assert len(seen) == 1 + num_changes


@pytest.mark.parametrize("name", HASHED)
def test_the_digest_changes_when_two_values_of_a_row_change_places(name):
    rows = random_batch(1)
    rows[name][:] = np.arange(rows[name].shape[1])
    swapped = {**rows, name: rows[name].copy()}
    swapped[name][0, [0, 1]] = swapped[name][0, [1, 0]]
    assert digest(swapped) != digest(rows)


def test_the_digest_changes_when_rows_exchange_their_labels():
    rows = random_batch(2)
    assert digest(rows | {"masked_labels": rows["masked_labels"][::-1]}) != digest(rows)


def test_the_digest_tells_a_row_from_none_and_from_two():
    rows = random_batch(1)
    rows.update({name: np.zeros_like(rows[name]) for name in HASHED})
    assert len({0, digest(rows), digest(take(rows, [0, 0]))}) == 3


def test_the_digest_does_not_depend_on_dtype_layout_or_write_permission():
    rows = random_batch(4)
    wide = rows | {"input_ids": np.asfortranarray(rows["input_ids"].astype(np.int32))}
    for values in wide.values():
        values.flags.writeable = False
    assert digest(wide) == digest(rows)


def test_golden_digest():
    rows = random_batch(3) | {
        "input_ids": np.arange(48, dtype=np.uint16).reshape(3, 16) + 1000,
        "masked_positions": np.array([[1, 2, 3, 4], [5, 6, 7, 8], [3, 7, 11, 14]], np.int16),
        "masked_labels": np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000,
    }
    assert row_digests(rows).tolist() == [0xC6A53816394D708B, 0x17D9750BF27999C4, 0x5B00927EFE4E1050]


@pytest.mark.parametrize("id_dtype", [np.uint16, np.int32])
def test_rows_reach_torch_as_int64_copies(id_dtype):
    rows = random_batch(8, id_dtype=id_dtype)
    rows["input_ids"][0, 0] = 65_535 if id_dtype == np.uint16 else 250_000
    for values in rows.values():
        values.flags.writeable = False  # as blocks in shared memory are
    batch = to_device(rows, 0, 3, torch.device("cpu"))
    assert isinstance(batch, Batch)
    for name, tensor in batch._asdict().items():
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == rows[name][0:3].tolist()
        tensor.zero_()
    assert to_device(rows, 0, 3, torch.device("cpu")).input_ids[0, 0] == rows["input_ids"][0, 0] > 0
    assert to_device(rows, 5, 8, torch.device("cpu")).masked_labels.tolist() == rows["masked_labels"][5:].tolist()
    assert to_device(rows, 3, 3, torch.device("cpu")).input_ids.shape == (0, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_reach_a_gpu():
    rows = random_batch(8)
    batch = to_device(rows, 2, 6, torch.device("cuda"))
    assert batch.input_ids.device.type == "cuda"
    assert batch.input_ids.cpu().tolist() == rows["input_ids"][2:6].tolist()


@pytest.mark.parametrize("row", [END_OF_SCHEDULE, MORE_FOLLOWS, READ_FAILED])
def test_filler_rows_are_marked_and_have_the_form_of_all_others(row):
    filler = filler_rows(5, 16, 4, np.dtype(np.uint16), kind=row)
    assert (filler["group"] == FILLER_GROUP).all()
    assert (filler["row"] == row).all()
    assert (filler["group_rows"] > 0).all()  # rows are divided by it
    assert {name: (values.shape, values.dtype) for name, values in filler.items()} == {
        "input_ids": ((5, 16), np.uint16),
        "masked_positions": ((5, 4), np.int16),
        "masked_labels": ((5, 4), np.uint16),
        "group": ((5,), np.int32),
        "row": ((5,), np.int32),
        "group_rows": ((5,), np.int32),
        "skipped": ((5, len(SKIPPED)), np.int32),
    }
