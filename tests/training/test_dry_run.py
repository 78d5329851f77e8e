"""`--dry-run` on a real cluster: what it says of the text, and which text it refuses."""

import json
import re

import pytest
from runs import changed

from distil_ray.config import parse_config
from distil_ray.errors import InputError
from distil_ray.runs.console import Console
from distil_ray.training.dry_run import dry_run

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def lines(settings, words, tmp_path):
    """Gives what a dry run prints on JSON lines of its own."""

    def printed(records, capsys, **changes):
        folder = tmp_path / "text"
        folder.mkdir(exist_ok=True)
        text = "".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records)
        (folder / "a.jsonl").write_bytes(text.encode("latin-1"))
        (folder / "README.md").write_text("# Text")
        dry_run(parse_config(changed(settings, data__sources=str(folder), **changes)), Console())
        return capsys.readouterr().out

    return printed


def sentences(words, num_documents):
    return [{"text": " ".join(words[i : i + 40])} for i in range(num_documents)]


def test_what_is_skipped_is_counted_by_reason_and_warned_of(lines, words, capsys):
    records = [
        *sentences(words, 200),
        *[{"text": None}] * 3,
        *[{"text": ["a", "list"]}] * 20,
        '{"text": "M\xfcll"}\n' * 10,
        *[{"texts": "another key"}] * 5,
    ]
    shown = lines(records, capsys, data__eval_fraction=0.0)

    place = r"\(the first: \S*a\.jsonl, byte \d+\)"
    assert re.search(
        rf"38 of 238 documents skipped \(16\.0%\): 20 of another type than text {place}, 10 not UTF-8 {place}, "
        rf"5 without the source's key {place}, 3 null {place}",
        shown,
    )
    assert "warning: 14.9% of the documents that hold something cannot be used" in shown
    assert re.search(r"left out \S*README\.md: documentation beside the data files", shown)
    assert "of the pieces are [UNK]" in shown

    shown = lines(records, capsys, data__eval_fraction=0.0, data__warn_skipped_fraction=0.15)
    assert "38 of 238 documents skipped" in shown
    assert "warning:" not in shown


def test_null_and_blank_texts_are_no_reason_to_warn(lines, words, capsys):
    shown = lines([*sentences(words, 50), *[{"text": ""}] * 30], capsys, data__eval_fraction=0.0)
    assert "30 of 80 documents skipped (37.5%): 30 blank" in shown
    assert "warning:" not in shown


def test_pieces_that_the_tokenizer_does_not_know_are_warned_of(lines, words, capsys):
    known = sentences(words, 50)
    unknown = [{"text": "\uac00\ub098\ub2e4 \ub77c\ub9c8\ubc14"}] * 300
    shown = lines([*known, *unknown], capsys, data__eval_fraction=0.0)
    assert re.search(r"warning: \d+\.\d% of the pieces are \[UNK\], from which nothing is learned", shown)


def test_text_that_gives_no_row_is_refused(lines, capsys):
    skipped = r"300 of 300 documents skipped \(100\.0%\): 300 null \(the first: \S*a\.jsonl, byte 0\)"
    for text, reason in (("\uac00\ub098\ub2e4", r"too few ordinary pieces to mask: 50% .*\[UNK\]"), (None, skipped)):
        with pytest.raises(InputError, match=rf"data\.sources: the text gives no row to train on: .*{reason}"):
            lines([{"text": text}] * 300, capsys, data__eval_fraction=0.0)
