"""The Hub that tests have is one to its own libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from local_hub import OTHER_TOKEN, READ_TOKEN, TOKEN, LocalHub

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


def test_a_gated_repository_shows_what_it_is_and_no_files(local_hub: LocalHub) -> None:
    local_hub.push("owner/model", {"config.json": "{}"}, kind="models", gated=True)
    for token in (False, OTHER_TOKEN):
        assert HfApi(token=token).model_info("owner/model").gated == "auto"
        with pytest.raises(GatedRepoError):
            hf_hub_download("owner/model", "config.json", token=token)
    assert hf_hub_download("owner/model", "config.json", token=TOKEN)


def test_a_folder_is_uploaded_once(local_hub: LocalHub, tmp_path: Path) -> None:
    files = {"README.md": b"---\nlicense: mit\n---\n", "model.safetensors": bytes(5000), "1_Pooling/config.json": b"{}"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    api = HfApi(token=TOKEN)
    assert api.whoami()["name"] == "owner"
    for _ in range(2):
        api.create_repo("owner/new", exist_ok=True)
        api.upload_folder(repo_id="owner/new", folder_path=tmp_path, commit_message="All")
    assert {name: content for name, content in local_hub.files("owner/new").items() if name[0] != "."} == files
    assert local_hub.titles("owner/new") == ["All", "initial commit"]
    assert local_hub.requests["upload"] == 1
    api.create_branch("owner/new", branch="v1")
    api.upload_folder(repo_id="owner/new", folder_path=tmp_path, revision="v1", delete_patterns="*", commit_message="1")
    assert [commit.title for commit in api.list_repo_commits("owner/new", revision="v1")] == ["All", "initial commit"]
    addition = CommitOperationAdd("a.txt", b"text")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("owner/new", [addition], commit_message="Late", parent_commit="0" * 40)


def test_only_the_owner_may_write(local_hub: LocalHub) -> None:
    HfApi(token=TOKEN).create_repo("owner/new", private=True)
    for token in (READ_TOKEN, OTHER_TOKEN):
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi(token=token).create_repo("owner/more")
    HfApi(token=READ_TOKEN).auth_check("owner/new")
    for token in (READ_TOKEN, OTHER_TOKEN):
        with pytest.raises(HfHubHTTPError):
            HfApi(token=token).auth_check("owner/new", write=True)
    HfApi(token=TOKEN).auth_check("owner/new", write=True)


@pytest.mark.parametrize(
    "metadata", ["license: own", "license: other", "base_model: /a/b", "base_model_relation: distilled", "a: [", "- a"]
)
def test_a_card_that_the_hub_does_not_take(local_hub: LocalHub, metadata: str) -> None:
    HfApi(token=TOKEN).create_repo("owner/new")
    with pytest.raises(ValueError, match="Invalid metadata"):
        HfApi(token=TOKEN).upload_file(
            path_or_fileobj=f"---\n{metadata}\n---\n".encode(), path_in_repo="README.md", repo_id="owner/new"
        )
    assert list(local_hub.files("owner/new")) == [".gitattributes"]


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
