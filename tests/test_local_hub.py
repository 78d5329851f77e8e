"""The Hub that tests have is one to its own libraries."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from local_hub import TOKEN, LocalHub

pytest_plugins = ("local_hub",)


def test_repositories_and_their_commits(local_hub: LocalHub) -> None:
    old = local_hub.push("owner/model", {"config.json": "{}", "model.safetensors": b"old"}, kind="models")
    new = local_hub.push("owner/model", {"config.json": "{}", "model.safetensors": b"newer"}, kind="models")
    api = HfApi()
    assert api.model_info("owner/model").sha == new
    assert api.model_info("owner/model", revision=old).sha == old
    info = api.model_info("owner/model", files_metadata=True)
    assert [(one.rfilename, one.size) for one in info.siblings or ()] == [("config.json", 2), ("model.safetensors", 5)]
    with open(hf_hub_download("owner/model", "model.safetensors", revision=old), "rb") as file:
        assert file.read() == b"old"
    with open(hf_hub_download("owner/model", "config.json"), "rb") as file:
        assert file.read() == b"{}"
    with pytest.raises(RevisionNotFoundError):
        api.model_info("owner/model", revision="v1")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("owner/none")
    assert local_hub.requests["api"] == local_hub.requests["info"] == 5
    assert local_hub.requests["tree"] == 0


def test_a_data_set_is_listed_and_read_in_ranges(local_hub: LocalHub) -> None:
    files = {f"deep/{number:04}.txt": f"text {number}" for number in range(1500)}
    commit = local_hub.push("owner/texts", files | {"big.parquet": bytes(range(256))})
    tree = list(HfApi().list_repo_tree("owner/texts", recursive=True, repo_type="dataset"))
    assert len(tree) == 1502  # and the folder
    assert local_hub.requests["tree"] == 2  # pages
    fs = HfFileSystem()
    assert fs.cat_file(f"datasets/owner/texts@{commit}/big.parquet", start=10, end=20) == bytes(range(10, 20))
    assert local_hub.sent_bytes["content"] >= 10
    assert fs.cat_file("datasets/owner/texts/deep/0007.txt") == b"text 7"


def test_a_private_repository_needs_the_token(local_hub: LocalHub) -> None:
    local_hub.push("owner/secret", {"a.txt": "text"}, private=True)
    assert HfApi(token=TOKEN).dataset_info("owner/secret").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi().dataset_info("owner/secret")
    with pytest.raises(HfHubHTTPError):
        HfApi(token="hf_unknown").dataset_info("owner/secret")


def test_it_fails_as_told(local_hub: LocalHub) -> None:
    local_hub.push("owner/texts", {"a.txt": "0123456789"})
    api = HfApi()
    local_hub.fail("GET /api/", status=503, times=1, after=1)
    assert api.dataset_info("owner/texts").sha
    with pytest.raises(HfHubHTTPError, match="503"):
        api.dataset_info("owner/texts")
    assert api.dataset_info("owner/texts").sha
    local_hub.fail("/api/", refuse=True)
    with pytest.raises(Exception, match="disconnected"):
        api.dataset_info("owner/texts")
    local_hub.heal()
    assert api.dataset_info("owner/texts").sha
    local_hub.fail("GET /small/", cut_after=4, times=1)
    assert HfFileSystem().cat_file("datasets/owner/texts/a.txt") == b"0123456789"  # tried again
    assert local_hub.requests["failed"] == 3


def test_processes_that_a_test_starts_have_it_too(local_hub: LocalHub) -> None:
    commit = local_hub.push("owner/texts", {"a.txt": "text"})
    script = "from huggingface_hub import HfApi; print(HfApi().dataset_info('owner/texts').sha)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert run.stdout.strip() == commit
