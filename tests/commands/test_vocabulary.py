"""The command that trains a vocabulary: what it writes, that it is reproducible, how it fails."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from distil_ray.commands.vocabulary import main, next_settings
from distil_ray.config import Source, load_config, parse_sources
from distil_ray.data import vocabulary
from distil_ray.data.corpus import list_corpus
from distil_ray.data.vocabulary import SPECIAL_TOKENS, train_vocabulary
from distil_ray.errors import InputError


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """Text of words with common parts, of which many pairs are equally frequent."""
    rng = random.Random(0)
    parts = ["dis", "till", "ation", "know", "ledge", "tea", "cher", "stu", "dent", "ing", "ed", "Ä", "un"]
    words = ["".join(rng.choices(parts, k=rng.randint(1, 3))) for _ in range(500)]
    folder = tmp_path_factory.mktemp("text")
    documents = [" ".join(rng.choices(words, k=40)) + ", 中文!" for _ in range(300)]
    (folder / "a.txt").write_text("\n\n".join(documents[:200]))
    lines = [json.dumps({"text": document}) for document in documents[200:]]
    (folder / "b.jsonl").write_text("\n".join([*lines, "not json"]))
    return folder


def run(*args):
    return main([str(arg) for arg in args])


def test_writes_a_bert_tokenizer_and_says_what_it_did(text_folder, tmp_path, capsys):
    output = tmp_path / "new" / "tokenizer"
    assert run("--source", text_folder, "--size", 300, "--output", output) == 0
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.is_fast
    assert type(tokenizer).__name__.startswith("Bert")
    assert tokenizer.model_max_length == 512
    assert len(tokenizer) == 300
    assert sorted(tokenizer.get_vocab().values()) == list(range(300))
    assert tuple(tokenizer.convert_ids_to_tokens(range(5))) == SPECIAL_TOKENS
    assert set(tokenizer.all_special_ids) == set(range(5))

    ids = tokenizer("Distillation, teacher!")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "distillation, teacher!"
    assert len(ids) < 12

    printed = capsys.readouterr().out
    assert "read 300 documents" in printed
    assert "of 2 file(s); skipped 1 documents" in printed
    assert "vocabulary of 300 pieces" in printed
    assert "note:" not in printed
    (following,) = re.findall("^next: distil-ray train (.*)$", printed, flags=re.MULTILINE)
    config = load_config(["pretrain-tiny"], shlex.split(following)[2:])
    assert config.student.tokenizer == str(output)
    assert [source.path for source in config.data.sources] == [str(text_folder)]


@pytest.mark.parametrize("sources", [["text/*.parquet"], ["a b.txt", "{path: c.parquet, column: body}"]])
def test_what_comes_next_takes_the_same_text(sources):
    config = load_config(["pretrain-tiny"], shlex.split(next_settings(sources, "made")))
    assert config.data.sources == parse_sources(sources)


def test_two_processes_write_the_same_files(text_folder, tmp_path):
    contents = set()
    for name in ("first", "second", "third"):
        output = tmp_path / name
        command = [sys.executable, "-m", "distil_ray.vocabulary", "--source", text_folder, "--size", "200"]
        subprocess.run([*command, "--output", output], check=True, capture_output=True)
        contents.add(tuple((file.name, file.read_bytes()) for file in sorted(output.iterdir())))
    assert len(contents) == 1


def test_cased_vocabulary(text_folder, tmp_path):
    assert run("--source", text_folder, "--size", 300, "--output", tmp_path / "t", "--no-lowercase") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert tokenizer.tokenize("Ä")[0] == "Ä"
    assert tokenizer.tokenize("ä") == ["[UNK]"]


def test_says_when_the_text_has_too_few_pieces(text_folder, tmp_path, capsys):
    assert run("--source", text_folder, "--size", 20_000, "--output", tmp_path / "t") == 0
    size = len(AutoTokenizer.from_pretrained(tmp_path / "t"))
    assert 300 < size < 20_000
    assert f"vocabulary of {size:,} pieces" in (printed := capsys.readouterr().out)
    assert "note: 20,000 pieces were asked for, but this text has no more: all words of it" in printed


def test_reads_no_more_than_max_bytes(text_folder):
    corpus = list_corpus([Source(path=str(text_folder))])
    pieces, read = train_vocabulary(corpus, 200, max_bytes=10_000)
    assert len(pieces) == 200
    assert 10_000 <= read.num_bytes < 12_000
    assert train_vocabulary(corpus, 200, max_bytes=10_000)[0] == pieces


def test_rare_characters_take_no_pieces(tmp_path):
    (tmp_path / "a.txt").write_text("some common words and letters of every day " * 500 + "ß")
    pieces, _ = train_vocabulary(list_corpus([Source(path=str(tmp_path))]), 200)
    assert "s" in pieces
    assert "##s" in pieces
    assert "ß" not in pieces

    # More characters than a small vocabulary can hold: the most frequent ones.
    (tmp_path / "a.txt").write_text("".join(chr(0x4E00 + i) * (400 - i) for i in range(400)))
    # There is nothing to merge, so further characters follow, by frequency.
    pieces, _ = train_vocabulary(list_corpus([Source(path=str(tmp_path))]), 200)
    assert pieces.keys() - set(SPECIAL_TOKENS) == {chr(0x4E00 + i) for i in range(195)}
    assert [pieces[chr(0x4E00 + i)] for i in range(195)] == list(range(5, 200))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", "nowhere.txt"], "/nowhere.txt"),
        (["--source", "{{path: '{text}', column: body}}"], "no column 'body'"),
        (["--source", "{{path: a, hub: b}}"], "given path and hub, expected exactly one of path, hub, docstrings"),
        (["--source", "{{path: a"], "line 1: "),
        (["--source", "{text}", "--size", "99"], "a vocabulary of 99 pieces is too small: expected at least 100"),
        (["--source", "{blank}"], "error: no text in 1 file(s)"),
        (["--source", "{text}", "--output", "{text}"], "already holds files"),
        (["--source", "{text}", "--output", "{text}/a.txt"], "cannot be used"),
    ],
)
def test_mistakes_exit_with_2_and_no_traceback(text_folder, tmp_path, capsys, args, message):
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    args = [arg.format(text=text_folder, blank=blank) for arg in args]
    assert run("--output", tmp_path / "t", *args) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("distil-ray vocabulary: error: ")
    assert message in captured.err
    assert captured.out == ""


def test_a_unit_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text " * 100)
    corpus = list_corpus([Source(path=str(path))])
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: cannot be reached"):
        train_vocabulary(corpus, 200)


def test_the_command_line_exits_with_mains_status(tmp_path):
    command = [sys.executable, "-m", "distil_ray.vocabulary", "--source", tmp_path / "none", "--output", tmp_path / "t"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("distil_ray.vocabulary: error: no such file or folder")


def unknown_fraction(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(text, add_special_tokens=False)["input_ids"].count(tokenizer.unk_token_id) / len(text)


def chinese(num_characters):
    """Text in which all of ``num_characters`` occur, the frequent ones much oftener."""
    rng = random.Random(0)
    characters = [chr(0x4E00 + i) for i in range(num_characters)]
    weights = [1 / (i + 10) for i in range(num_characters)]
    return "".join(characters) + "".join(rng.choices(characters, weights, k=200_000))


def test_characters_fill_what_merges_leave(tmp_path, capsys):
    text = chinese(3000)
    (tmp_path / "a.txt").write_text("\n\n".join(text[i : i + 1000] for i in range(0, len(text), 1000)))
    assert run("--source", tmp_path / "a.txt", "--size", 2000, "--output", tmp_path / "small") == 0
    printed = capsys.readouterr().out
    assert "a vocabulary of 2,000 pieces" in printed
    assert "characters: 1,995 of 3,000 different ones have a piece" in printed
    assert "note:" not in printed
    assert 0 < unknown_fraction(tmp_path / "small", text) < 0.1
    assert f"; {unknown_fraction(tmp_path / 'small', text):.3%} of the text's characters have none" in printed

    assert run("--source", tmp_path / "a.txt", "--size", 4000, "--output", tmp_path / "large") == 0
    printed = capsys.readouterr().out
    assert "note: 4,000 pieces were asked for, but this text has no more" in printed
    assert unknown_fraction(tmp_path / "large", text) <= 1 - vocabulary.CHARACTER_COVERAGE


@pytest.mark.parametrize(
    ("text", "script", "kept"),
    [
        ("हिन्दी में लिखा हुआ पाठ और शब्द", "Devanagari", "हिन्दी"),
        ("がぎぐげご ばびぶべぼ ガギグゲゴ", "Hiragana", "が"),
        ("한국어 문장 입니다", "Hangul", "한국어"),
        ("синий йод и ёлка", "Cyrillic", "йод"),
    ],
)
def test_marks_that_are_more_than_accents(tmp_path, capsys, text, script, kept):
    (tmp_path / "a.txt").write_text("\n\n".join([text] * 50))
    assert run("--source", tmp_path / "a.txt", "--size", 400, "--output", tmp_path / "stripped") == 0
    printed = capsys.readouterr().out
    assert "note: stripping accents takes marks off letters, or syllables apart" in printed
    assert f"{script} (" in printed
    assert "--no-strip-accents keeps them" in printed
    assert run("--source", tmp_path / "a.txt", "--size", 400, "--output", tmp_path / "kept", "--no-strip-accents") == 0
    assert "stripping" not in capsys.readouterr().out
    normalized = {
        name: AutoTokenizer.from_pretrained(tmp_path / name).backend_tokenizer.normalizer.normalize_str(kept)
        for name in ("stripped", "kept")
    }
    assert normalized["kept"] == kept.lower() != normalized["stripped"]
    decoded = "".join(AutoTokenizer.from_pretrained(tmp_path / "kept").tokenize(kept)).replace("##", "")
    assert decoded == kept


def test_accents_apart_from_case(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n\n".join(["Café und Müller, naïve Ä"] * 50))
    for options, expected in (
        ([], "cafe"),
        (["--no-strip-accents"], "café"),
        (["--no-lowercase"], "Café"),
        (["--no-lowercase", "--strip-accents"], "Cafe"),
    ):
        output = tmp_path / "-".join(["t", *options])
        assert run("--source", tmp_path / "a.txt", "--size", 200, "--output", output, *options) == 0
        assert "stripping" not in capsys.readouterr().out  # which readers of Latin letters expect
        assert AutoTokenizer.from_pretrained(output).tokenize("Café") == [expected]


def test_an_interrupt_shows_no_traceback(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"word{i} other{i % 977}"}) for i in range(300_000)))
    command = [sys.executable, "-m", "distil_ray.vocabulary", "--source", file, "--output", tmp_path / "t"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    reading = Path(f"/proc/{process.pid}/fd")
    deadline = time.monotonic() + 60
    while not any(link.is_symlink() and os.readlink(link) == str(file) for link in reading.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert error.startswith("distil_ray.vocabulary: error: interrupted")
    assert "Traceback" not in error
