"""Documentation strings: what is collected, how it is divided, and that it is kept."""

import ast
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distil_ray.config import Source
from distil_ray.data import docstrings
from distil_ray.data.corpus import list_corpus, read_unit
from distil_ray.data.docstrings import Docstring, docstring_folder, is_heldout, read_docstrings, split_docstrings
from distil_ray.errors import InputError

LONG = "A sentence of more than eight words, which makes it prose."


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that takes the place of what is installed, and an empty cache."""
    root = tmp_path / "site-packages"
    for number in range(60):
        package = root / f"package{number}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f'"""Package {number}. {LONG}"""\n')
        (package / "module.py").write_text(f'def f():\n    """Function {number}. {LONG}"""\n')
    monkeypatch.setattr(docstrings, "_source_folders", lambda: [root])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def test_reads_modules_classes_and_functions_without_importing(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        f'"""Module. {LONG}"""\n'
        "raise SystemExit('imported')\n"
        f'class C:\n    """Class. {LONG}\n\n    Indented.\n    """\n'
        f'    async def f(self):\n        """Method. {LONG}"""\n'
        f'        def inner():\n            """Inner. {LONG}"""\n'
        'def short():\n    """Too short."""\n'
    )
    assert read_docstrings("a", path) == [
        Docstring(f"Module. {LONG}", "a", ""),
        Docstring(f"Class. {LONG}\n\nIndented.", "a", "C"),
        Docstring(f"Method. {LONG}", "a", "C.f"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        f'print "{LONG}" """'.encode(),
        f'"""\xff {LONG}"""'.encode("latin-1"),
        f'"""{LONG}\\ud800"""'.encode(),
        f'"""{LONG}\0"""'.encode(),
        b"",
    ],
)
def test_files_that_are_not_text_in_python_give_nothing(tmp_path, content):
    (tmp_path / "a.py").write_bytes(content)
    assert read_docstrings("a", tmp_path / "a.py") == []


def test_the_split_goes_by_module_and_repeats_no_text():
    heldout = next(f"m{i}" for i in range(1000) if is_heldout(f"m{i}"))
    training = next(f"m{i}" for i in range(1000) if not is_heldout(f"m{i}"))
    parts = split_docstrings(
        [
            Docstring("one", training, "a"),
            Docstring("two  words", training, "b"),
            Docstring("one", training, "c"),
            Docstring("two\nwords", heldout, "a"),
            Docstring("three", heldout, "b"),
        ]
    )
    assert [d.text for d in parts["train"]] == ["one"]
    assert [d.text for d in parts["heldout"]] == ["two\nwords", "three"]


def test_the_share_of_modules_held_out():
    assert 0.025 < sum(is_heldout(f"package.module{i}") for i in range(20_000)) / 20_000 < 0.035
    # Decided once for all time: the teacher that comes with the package was trained on the others.
    assert [name for name in ("ast", "csv", "json", "pathlib", "torch.nn.functional") if is_heldout(name)] == []


def test_collects_once_and_keeps_it(installed, capsys):
    train, heldout = docstring_folder("train"), docstring_folder("heldout")

    assert capsys.readouterr().out.count("collecting the documentation strings") == 1
    texts = {split: [t for f in sorted(split.iterdir()) for t in pq.read_table(f)["text"].to_pylist()]
             for split in (train, heldout)}  # fmt: skip
    assert len(texts[train]) + len(texts[heldout]) == 120
    assert len(texts[heldout]) == sum(is_heldout(f"package{n}{m}") for n in range(60) for m in ("", ".module")) > 0
    assert sorted(path.name for path in train.parent.parent.iterdir()) == [train.parent.name]  # nothing unfinished
    for path in installed.rglob("*.py"):
        path.unlink()
    assert docstring_folder("train") == train


def test_collects_anew_when_other_packages_are_installed(installed, monkeypatch):
    before = docstring_folder("train")
    monkeypatch.chdir(Path(docstrings.__file__).parent.parent.parent)  # where our own metadata may lie
    assert docstring_folder("train") == before
    (installed / "extra-1.0.dist-info").mkdir()
    (installed / "extra-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    assert docstring_folder("train") != before


def test_tests_and_vendored_copies_are_left_out(installed):
    for folder in ("package0/tests", "package0/_vendor", "package0/__pycache__", "not-a-package"):
        (installed / folder).mkdir()
        (installed / folder / "extra.py").write_text(f'"""Extra in {folder}. {LONG}"""')
    (installed / "package0" / "test_it.py").write_text(f'"""Extra. {LONG}"""')

    files = [path for split in ("train", "heldout") for path in docstring_folder(split).iterdir()]
    assert not [text for path in files for text in pq.read_table(path)["text"].to_pylist() if "Extra" in text]


def test_private_packages_are_read_as_a_source(installed):
    (installed / "_private.py").write_text(f'"""Private. {LONG}"""')
    corpora = [list_corpus([Source(docstrings="installed", split=split)]) for split in ("train", "heldout")]

    documents = [text for corpus in corpora for unit in range(corpus.num_units) for text in read_unit(corpus, unit)]
    assert f"Private. {LONG}" in documents
    assert len(documents) == 121


def test_a_cache_that_cannot_be_written_to_is_named(installed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write to .*file.*XDG_CACHE_HOME"):
        docstring_folder("train")


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="no split 'test'; expected train or heldout"):
        docstring_folder("test")


def test_what_is_installed_here_is_english_prose():
    """The real thing, on Python's own library: its modules parse and their texts come out whole."""
    texts = read_docstrings("ast", Path(ast.__file__))
    assert any(d.name == "literal_eval" and d.text.startswith("Evaluate an expression node") for d in texts)
