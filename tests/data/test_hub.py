"""Reading from the Hub: pinned to a commit, listed once, each byte read once, outages waited out."""

import gzip
import io
import os
import pickle
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_hub import OTHER_TOKEN, TOKEN, LocalHub

from distil_ray.config import Source
from distil_ray.data import files, hub
from distil_ray.data.corpus import Corpus, list_corpus, read_unit
from distil_ray.data.files import BadFileError
from distil_ray.errors import InputError, OutageError
from distil_ray.outages import Patience

pytest_plugins = ("local_hub",)


@pytest.fixture(autouse=True)
def _fresh_process(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been read before; and short pauses, where it is waited."""
    monkeypatch.setattr("distil_ray.outages._FIRST_PAUSE_SECONDS", 0.05)
    forget()


def forget() -> None:
    files._kept.clear()
    hub._locations.clear()


def documents(num: int, seed: int = 0) -> list[str]:
    """Texts of some 700 characters that compress to about half of it."""
    generator = random.Random(seed)
    return [" ".join(f"{generator.randrange(10**6):x}" for _ in range(110)) for _ in range(num)]


def parquet_bytes(texts: Sequence[str], row_group_size: int = 100) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"id": range(len(texts)), "text": texts, "more": [text[::-1] for text in texts]})
    pq.write_table(table, sink, row_group_size=row_group_size, compression="zstd", use_dictionary=False)
    return sink.getvalue()


def text_bytes(content: bytes) -> int:
    """How many bytes of a Parquet file are of its texts."""
    metadata = pq.read_metadata(io.BytesIO(content))
    return sum(metadata.row_group(i).column(1).total_compressed_size for i in range(metadata.num_row_groups))


def read(corpus: Corpus, patience: Patience | None = None) -> list[str | None]:
    units = random.Random(1).sample(range(corpus.num_units), corpus.num_units)
    found = {unit: list(read_unit(corpus, unit, patience=patience or Patience(20))) for unit in units}
    return [document for unit in range(corpus.num_units) for document in found[unit]]


SOURCES = [Source(hub="owner/texts"), Source(path="hf://datasets/owner/texts/data")]


# What is asked for


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("row_group_size", [12, 400])
def test_each_byte_of_the_text_is_read_once_and_the_api_left_alone(
    local_hub: LocalHub, source: Source, row_group_size: int
) -> None:
    texts = [documents(400, seed) for seed in range(3)]
    contents = [parquet_bytes(some, row_group_size) for some in texts]
    files = {f"data/train-{i}-of-3.parquet": content for i, content in enumerate(contents)}
    commit = local_hub.push("owner/texts", {"README.md": "# Texts", **files})
    corpus = pickle.loads(pickle.dumps(list_corpus([source])))
    assert {file.path for file in corpus.files} == {f"hf://datasets/owner/texts@{commit}/{name}" for name in files}

    forget()  # as another process would have it
    local_hub.reset()
    assert read(corpus) == [text for some in texts for text in some]
    assert local_hub.requests["api"] == local_hub.requests["other"] == 0
    assert local_hub.requests["resolve"] == 3  # where each file lies
    read_bytes, footer_bytes = local_hub.sent_bytes["content"], sum(file.footer_bytes for file in corpus.files)
    assert read_bytes == sum(map(text_bytes, contents)) + footer_bytes
    local_hub.reset()
    read(corpus)  # another epoch
    assert local_hub.sent_bytes["content"] == sum(map(text_bytes, contents))
    assert local_hub.requests["content"] == corpus.num_units


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_other_formats_are_read_once_too(local_hub: LocalHub, name: str) -> None:
    texts = documents(2000)
    lines = [f'{{"text": "{text}"}}\n' if "json" in name else f"{text}\n\n" for text in texts]
    content = "".join(lines).encode()
    content = gzip.compress(content) if name.endswith("gz") else content
    local_hub.push("owner/texts", {name: content})
    corpus = list_corpus([Source(path="hf://datasets/owner/texts")])
    local_hub.reset()
    assert read(corpus) == texts
    assert local_hub.sent_bytes["content"] <= 1.1 * len(content)
    assert local_hub.requests["content"] == corpus.num_units


def test_a_footer_of_many_groups_is_parsed_once(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    local_hub.push("owner/texts", {"a.parquet": parquet_bytes(["a text"] * 5000, row_group_size=1)})
    corpus = list_corpus([Source(path="hf://datasets/owner/texts/a.parquet")])
    forget()
    parsed = []
    read_metadata = pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda source: parsed.append(1) or read_metadata(source))
    for unit in range(0, 5000, 100):
        assert list(read_unit(corpus, unit)) == ["a text"]
    assert len(parsed) == 1


def test_footers_are_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tmp_path / f"{number}.parquet").write_bytes(parquet_bytes(["a text"] * 100, row_group_size=1))
    corpus = list_corpus([Source(path=str(tmp_path))])
    monkeypatch.setattr(files, "_KEPT_BYTES", 2.5 * corpus.files[0].footer_bytes)
    assert read(corpus) == ["a text"] * 400
    assert len(files._kept) == 2


def test_a_changed_local_file_is_read_with_its_own_footer(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for texts in (["one", "two"], ["six", "ten"]):
        path.write_bytes(parquet_bytes(texts, row_group_size=len(texts[0])))
        os.utime(path, ns=(0, hash(texts[0]) % 10**9))
        assert read(list_corpus([Source(path=str(tmp_path))])) == texts


# What it is pinned to


@pytest.mark.parametrize(
    "source",
    [
        Source(hub="owner/texts"),
        Source(hub="owner/texts", revision="main"),
        Source(path="hf://datasets/owner/texts/data/*.parquet"),
        Source(path="hf://datasets/owner/texts@main/data/a.parquet"),
    ],
)
def test_a_branch_is_resolved_once(local_hub: LocalHub, source: Source) -> None:
    first = local_hub.push("owner/texts", {"data/a.parquet": parquet_bytes(["one", "two"])})
    corpus = list_corpus([source])
    second = local_hub.push("owner/texts", {"data/a.parquet": parquet_bytes(["six", "ten"])})
    assert read(corpus) == ["one", "two"]
    assert first in corpus.files[0].path
    corpus = list_corpus([source])
    assert read(corpus) == ["six", "ten"]
    assert second in corpus.files[0].path


def test_names_and_fingerprint_are_those_of_a_folder(local_hub: LocalHub, tmp_path: Path) -> None:
    files = {"a.parquet": parquet_bytes(["one"]), "b/c/d.txt": b"two", "b/_left/out.txt": b"-", "b/.git.txt": b"-"}
    local_hub.push("owner/texts", {f"data/{name}": content for name, content in files.items()}, revision="v 1/x")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    for inner in ("", "/", "/*.parquet", "/**/*.txt", "/b/c/d.txt", "/b/*/*.txt"):
        remote = list_corpus([Source(path=f"hf://datasets/owner/texts@v%201%2Fx/data{inner}")])
        local = list_corpus([Source(path=f"{tmp_path}{inner}")])
        assert remote.fingerprint() == local.fingerprint()
        assert read(remote) == read(local)


def test_what_is_needed_to_open_a_file_does_not_count_in_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(["one"]))
    file = list_corpus([Source(path=str(tmp_path))]).fingerprint()["files"][0]
    assert list(file) == ["name", "format", "compression", "column", "size_bytes", "num_rows"]


def test_a_deep_tree_is_listed_in_few_calls(local_hub: LocalHub) -> None:
    names = [f"{i:02}/{j:02}/{k}.txt" for i in range(40) for j in range(20) for k in "ab"]
    local_hub.push("owner/texts", dict.fromkeys(names, "a text"))
    corpus = list_corpus([Source(path="hf://datasets/owner/texts/**/a.txt")])
    assert len(corpus.files) == 800
    assert local_hub.requests["api"] <= 6


def test_a_card_that_does_not_come_is_not_taken_for_none(local_hub: LocalHub) -> None:
    card = "---\nconfigs:\n- {config_name: en, data_files: en/*, default: true}\n---"
    local_hub.push("owner/texts", {"README.md": card, "en/a.txt": "one", "de/a.txt": "eins"})
    local_hub.fail("README.md", status=503, times=4)
    assert read(list_corpus([Source(hub="owner/texts")])) == ["one"]
    assert local_hub.requests["failed"] == 4


# When it fails


FAILURES = {
    "429": {"status": 429},
    "503": {"status": 503},
    "refused": {"refuse": True},
    "cut off": {"cut_after": 100},
    "another page": {"body": b"<html>Log in to this network</html>"},
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", ["a.parquet", "a.txt", "a.jsonl.gz"])
def test_reading_waits_until_it_answers_again(local_hub: LocalHub, failure: str, name: str) -> None:
    texts = documents(100)
    contents: dict[str, Callable[[], bytes]] = {
        "a.parquet": lambda: parquet_bytes(texts),
        "a.txt": lambda: "\n\n".join(texts).encode(),
        "a.jsonl.gz": lambda: gzip.compress("".join(f'{{"text": "{text}"}}\n' for text in texts).encode()),
    }
    local_hub.push("owner/texts", {name: contents[name]()})
    corpus = list_corpus([Source(path="hf://datasets/owner/texts")], on_bad_file="skip")
    for pattern in ("/resolve/", "GET /(large|small)/"):
        forget()
        local_hub.fail(pattern, **FAILURES[failure], times=2)
        assert read(corpus) == texts
        assert local_hub.requests["failed"] >= 1
        local_hub.heal()
        local_hub.reset()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("failure", ["429", "503", "refused", "another page"])
def test_listing_waits_too(local_hub: LocalHub, source: Source, failure: str) -> None:
    local_hub.push("owner/texts", {"data/a.parquet": parquet_bytes(["one"])})
    for pattern in ("/api/datasets/owner/texts(/revision.*)?$", "/(tree|paths-info)/", "/resolve/.*parquet", "/large/"):
        forget()
        local_hub.fail(pattern, **FAILURES[failure], times=1)
        assert read(list_corpus([source], on_bad_file="skip")) == ["one"]
        local_hub.heal()
    assert local_hub.requests["failed"] >= 1


@pytest.mark.parametrize("failure", FAILURES)
def test_when_patience_ends_it_is_an_outage_and_no_damage(local_hub: LocalHub, failure: str) -> None:
    local_hub.push("owner/texts", {"a.parquet": parquet_bytes(documents(100)), "b.parquet": parquet_bytes(["two"])})
    source = Source(path="hf://datasets/owner/texts/")
    corpus = list_corpus([source])
    forget()
    local_hub.fail("/resolve/.*/a.parquet|/large/.*/a.parquet", **FAILURES[failure])
    told: list[str] = []
    with pytest.raises(OutageError, match=r"hf://datasets/owner/texts@\w+/a\.parquet did not answer for 1 s: ."):
        read(corpus, Patience(1, told.append))
    with pytest.raises(OutageError):
        list_corpus([source], on_bad_file="skip", patience=Patience(1, told.append))


def test_a_wait_is_told_of(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil_ray.outages._SILENT_SECONDS", 0)
    local_hub.push("owner/texts", {"a.parquet": parquet_bytes(["one"])})
    corpus = list_corpus([Source(path="hf://datasets/owner/texts")])
    local_hub.fail("GET /large/", status=503, times=2)
    told: list[str] = []
    assert read(corpus, Patience(20, told.append)) == ["one"]
    assert "a.parquet does not answer (" in told[0]
    assert "a.parquet answers again" in told[1]


@pytest.mark.parametrize("source", SOURCES)
def test_denied_access_fails_at_once_and_says_that_there_is_no_token(
    local_hub: LocalHub, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_hub.push("owner/texts", {"data/a.parquet": parquet_bytes(["one"])}, private=True)
    with pytest.raises(InputError, match=r"This node .* has no Hugging Face token.*runtime-env-json.*HF_TOKEN"):
        list_corpus([source])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    corpus = list_corpus([source])
    assert read(corpus) == ["one"]
    forget()
    monkeypatch.delenv("HF_TOKEN")  # as on a node that does not have it
    with pytest.raises(InputError, match=r"a\.parquet: cannot be reached: .*has no Hugging Face token") as caught:
        read(corpus)
    assert not isinstance(caught.value, BadFileError)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="The Hugging Face token of this node"):
        list_corpus([source])


@pytest.mark.parametrize("source", SOURCES)
def test_gated_text_says_where_to_ask_for_access(
    local_hub: LocalHub, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"README.md": "---\nlicense: mit\n---\n", "data/a.parquet": parquet_bytes(["one"])}
    local_hub.push("owner/texts", files, gated=True)
    asks = f"It is gated: ask for access at {local_hub.url}/datasets/owner/texts. "
    with pytest.raises(InputError, match=f"{asks}This node .* has no Hugging Face token"):
        read(list_corpus([source]))
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    with pytest.raises(InputError, match=f"{asks}The Hugging Face token of this node .* gives no access"):
        read(list_corpus([source]))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read(list_corpus([source])) == ["one"]


@pytest.mark.parametrize("source", SOURCES)
def test_no_hub_at_all(local_hub: LocalHub, source: Source) -> None:
    local_hub.close()
    with pytest.raises(OutageError, match=r"owner/texts.* did not answer for .* s: .*refused"):
        list_corpus([source], patience=Patience(0.5))


@pytest.mark.parametrize("failure", [{"status": 429, "headers": {"Retry-After": "1"}}, {"sleep": 1.0}], ids=str)
def test_a_hub_that_asks_for_patience_gets_it(local_hub: LocalHub, failure: dict[str, Any]) -> None:
    local_hub.push("owner/texts", {"a.parquet": parquet_bytes(["one"])})
    corpus = list_corpus([Source(path="hf://datasets/owner/texts")])
    forget()
    local_hub.reset()
    local_hub.fail("GET /large/", **failure, times=1)
    began = time.monotonic()
    assert read(corpus) == ["one"]
    assert time.monotonic() - began >= 1
    assert local_hub.requests["failed"] == 1
    assert local_hub.requests["content"] <= 3  # footer, text, and the one that failed


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf://datasets/owner/texts/none.txt", r"no such file or folder: hf://datasets/owner/texts/none\.txt"),
        ("hf://datasets/owner/texts/none/*.txt", "no such file or folder"),
        ("hf://datasets/owner/texts/*.txt", "no data files match"),
        ("hf://datasets/owner/texts@v1/", "cannot be reached: RevisionNotFoundError"),
        ("hf://datasets/owner/none/", "cannot be reached: RepositoryNotFoundError"),
        ("hf://owner/texts/", "cannot be reached: RepositoryNotFoundError"),
    ],
)
def test_absent_places_fail_at_once(local_hub: LocalHub, path: str, message: str) -> None:
    local_hub.push("owner/texts", {"data/a.parquet": b"x"})
    with pytest.raises(InputError, match=message):
        list_corpus([Source(path=path)], patience=Patience(0))


def test_a_token_goes_to_the_hub_alone(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    get = hub.HubFile._get

    def spy(self: hub.HubFile, location: str, start: int, stop: int) -> object:
        response = get(self, location, start, stop)
        seen.append((location, "authorization" in response.request.headers))
        return response

    monkeypatch.setattr(hub.HubFile, "_get", spy)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    local_hub.push("owner/texts", {"a.parquet": parquet_bytes(["one"]), "b.txt": "two"}, private=True)
    assert read(list_corpus([Source(path="hf://datasets/owner/texts")])) == ["one", "two"]
    assert {("/large/" in location, has_token) for location, has_token in seen} == {(True, False), (False, True)}


def test_an_address_that_has_expired_is_asked_for_again(local_hub: LocalHub) -> None:
    local_hub.push("owner/texts", {"a.parquet": parquet_bytes(["one", "two"], row_group_size=1)})
    corpus = list_corpus([Source(path="hf://datasets/owner/texts")])
    local_hub.reset()
    local_hub.fail("GET /large/", status=403, times=1, after=1)
    assert read(corpus) == ["one", "two"]
    assert local_hub.requests["failed"] == 1
    assert local_hub.requests["resolve"] == 1


# Data sets by name


def test_a_wrong_name_or_split_gets_a_short_list(local_hub: LocalHub) -> None:
    configurations = [f"2023.{number:03}.en" for number in range(326)]
    lines = [f"- config_name: {name}\n  data_files: data/a.parquet" for name in configurations]
    card = "---\nconfigs:\n" + "\n".join(lines) + "\n---\n"
    local_hub.push("owner/texts", {"README.md": card, "data/a.parquet": parquet_bytes(["one"])})
    with pytest.raises(InputError, match=r"no configuration '2023\.11\.en' \(did you mean .*and 316 more") as caught:
        list_corpus([Source(hub="owner/texts", name="2023.11.en")])
    assert len(str(caught.value)) < 500
    with pytest.raises(InputError, match=r"no split 'trian' \(did you mean 'train'\?\).*and 316 more") as caught:
        list_corpus([Source(hub="owner/texts", name="2023.001.en", split="trian")])
    assert len(str(caught.value)) < 500


def test_a_name_that_is_missing_gets_the_list(local_hub: LocalHub) -> None:
    card = "---\nconfigs:\n- {config_name: en, data_files: en/*}\n- {config_name: de, data_files: de/*}\n---"
    local_hub.push("owner/texts", {"README.md": card, "en/a.txt": "one", "de/a.txt": "eins"})
    with pytest.raises(InputError, match="several configurations and none is named; its configurations: en, de"):
        list_corpus([Source(hub="owner/texts")])
    assert read(list_corpus([Source(hub="owner/texts", name="de")])) == ["eins"]


@pytest.mark.parametrize("failure", ["503", "refused"])
def test_a_data_set_prepared_earlier_is_no_list_of_files(local_hub: LocalHub, failure: str, tmp_path: Path) -> None:
    from datasets import load_dataset

    local_hub.push("owner/texts", {"data/a.parquet": parquet_bytes(["one"])})
    load_dataset("owner/texts")
    local_hub.fail("/api/|/resolve/", **FAILURES[failure])
    with pytest.raises(OutageError, match=r"owner/texts.*cannot be reached|owner/texts.* did not answer"):
        list_corpus([Source(hub="owner/texts")], patience=Patience(1))


def test_a_data_set_prepared_earlier_is_no_list_of_files_offline(local_hub: LocalHub) -> None:
    from datasets import load_dataset

    local_hub.push("owner/texts", {"data/a.parquet": parquet_bytes(["one"])})
    load_dataset("owner/texts")
    imports = "from distil_ray.config import Source\nfrom distil_ray.data.corpus import list_corpus\n"
    script = f"{imports}list_corpus([Source(hub='owner/texts')])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert re.search(
        r"InputError: Hub data set 'owner/texts'.*cannot be reached: OfflineModeIsEnabled.*a copy", run.stderr
    )
