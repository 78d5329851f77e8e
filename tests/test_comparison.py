"""What a comparison of runs says of their text."""

from training_parts import small_config

from distil_ray.comparison.comparison import _of_the_text
from distil_ray.training.history import History
from distil_ray.training.storage import RunFolder


def history(tmp_path, **counts):
    record = {"step": 1, **{f"data/{name}": count for name, count in counts.items()}}
    folder, config = RunFolder(str(tmp_path), "small"), small_config()
    return History(folder, config, {}, {}, {}, None, records=[record], digests=[], is_finished=False)


def test_text_that_could_not_be_used_is_remarked_on(tmp_path):
    lost = history(tmp_path, documents=100, skipped_not_utf8=20, skipped_null=5, pieces=1000, unknown_pieces=100)
    name = lost.name
    assert list(_of_the_text([lost])) == [
        f"{name}: 25 of 100 documents skipped (25.0%): 20 not UTF-8, 5 null.",
        f"{name}: warning: 21.1% of the documents that hold something cannot be used (warned of above "
        "data.warn_skipped_fraction = 0.01): 25 of 100 documents skipped (25.0%): 20 not UTF-8, 5 null.",
        f"{name}: warning: 10.0% of the pieces are [UNK], from which nothing is learned: the tokenizer does not know "
        "this text's language or script; take a teacher or a vocabulary that does.",
    ]
    assert list(_of_the_text([history(tmp_path, documents=100, pieces=1000)])) == []
    assert list(_of_the_text([history(tmp_path, skipped_documents=3)])) == []  # of a version that counted only these
