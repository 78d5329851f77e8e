"""Models and tokenizers from the Hub: fetched whole, waited for, at one commit; and said why if they cannot be had."""

import re
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from local_hub import OTHER_TOKEN, TOKEN
from small_models import random_ids, small_model
from training_parts import save_model

from distil_ray.errors import InputError, OutageError
from distil_ray.models import loading as models
from distil_ray.models.files import loading
from distil_ray.models.origin import CARD_FILE, TOKENIZER_FILES, resolve
from distil_ray.outages import Patience

pytest_plugins = ("local_hub",)

NAME = "owner/small"


@pytest.fixture
def folder(tmp_path):
    return Path(save_model(tmp_path / "model", small_model("bert")))


@pytest.fixture
def published(local_hub, folder):
    """The Hub with a small model, and its commit."""
    return local_hub, local_hub.push(NAME, {file.name: file for file in folder.iterdir()}, kind="models")


def logits(model):
    with torch.no_grad():
        return model(input_ids=random_ids(2, 8)).logits


def test_a_model_of_the_hub_is_that_of_its_folder(published, folder):
    _, commit = published
    for revision in (None, "main", commit):
        assert torch.equal(logits(models.load_masked_lm(NAME, revision)), logits(models.load_masked_lm(str(folder))))
        assert models.load_tokenizer(NAME, revision).get_vocab() == models.load_tokenizer(str(folder)).get_vocab()
    assert models.load_classifier(NAME, 3, 0).config.num_labels == 3


@pytest.mark.parametrize(
    ("file", "failure"),
    [
        ("config.json", {"status": 520}),
        ("model.safetensors", {"status": 429}),
        ("tokenizer.json", {"refuse": True}),
        ("tokenizer_config.json", {"status": 520}),
    ],
)
def test_no_file_is_lost_to_a_short_outage(published, folder, file, failure):
    hub, _ = published
    hub.fail(f"/resolve/[^/]*/{file}", times=2, **failure)
    assert torch.equal(logits(models.load_masked_lm(NAME)), logits(models.load_masked_lm(str(folder))))
    tokenizer, expected = models.load_tokenizer(NAME), models.load_tokenizer(str(folder))
    assert type(tokenizer) is type(expected)
    assert tokenizer.model_max_length == expected.model_max_length
    assert hub.requests["failed"] == 2


def test_a_pinned_model_in_the_cache_needs_no_hub(published, folder):
    hub, commit = published
    models.load_masked_lm(NAME, commit)
    models.load_tokenizer(NAME, commit)
    # What the library notes where the Hub names the commit in its answer to a request for what is absent.
    absent = Path(huggingface_hub.constants.HF_HUB_CACHE, "models--owner--small", ".no_exist", commit)
    absent.mkdir(parents=True, exist_ok=True)
    for name in {*TOKENIZER_FILES, CARD_FILE} - {file.name for file in folder.iterdir()}:
        (absent / name).touch()
    hub.reset()
    models.load_masked_lm(NAME, commit)
    models.load_tokenizer(NAME, commit)
    assert not hub.log


def test_what_was_fetched_loads_offline(published, folder, monkeypatch):
    hub, _ = published
    models.load_masked_lm(NAME)
    models.load_tokenizer(NAME)
    hub.reset()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(logits(models.load_masked_lm(NAME)), logits(models.load_masked_lm(str(folder))))
    assert models.load_tokenizer(NAME).get_vocab() == models.load_tokenizer(str(folder)).get_vocab()
    assert not hub.log


def test_files_are_of_one_commit_when_the_branch_moves(published, folder, monkeypatch):
    hub, _ = published
    old = logits(models.load_masked_lm(str(folder)))
    fetch = huggingface_hub.hf_hub_download

    def fetch_and_move(repo_id, name, revision=None):
        file = fetch(repo_id, name, revision=revision)
        if name == "config.json":
            save_model(folder, small_model("bert", seed=1))
            hub.push(NAME, {file.name: file.read_bytes() for file in folder.iterdir()}, kind="models")
        return file

    hub.push(NAME, {file.name: file.read_bytes() for file in folder.iterdir()}, kind="models")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_and_move)
    assert torch.equal(logits(models.load_masked_lm(NAME)), old)


def test_a_hub_that_stays_away_is_an_outage(published):
    hub, _ = published
    hub.fail(".", status=520)  # the library itself tries again for others
    message = rf"the Hub \({NAME}\) did not answer for .* s: .* HF_HUB_OFFLINE=1 uses it"
    with pytest.raises(OutageError, match=message), loading("a model", NAME, patience=Patience(0.5)):
        raise AssertionError


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        (
            "owner/nothing",
            None,
            r"no local folder 'owner/nothing', .*Hub: .*Check .* and the network",
        ),
        (NAME, "v9", r"at revision 'v9': .*Check the name, the revision"),
        ("owner/private", None, "HF_TOKEN if it is private"),
    ],
)
def test_what_cannot_be_had_is_said_at_once(published, folder, name, revision, message):
    hub, _ = published
    hub.push("owner/private", {"config.json": folder / "config.json"}, kind="models", private=True)
    for load in (models.load_masked_lm, models.load_tokenizer):
        with pytest.raises(InputError, match=message) as caught:
            load(name, revision)
        assert not str(caught.value).endswith(":")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "has no Hugging Face token. .*HF_TOKEN"),
        (OTHER_TOKEN, "token of this node .* gives no access"),
    ],
)
def test_a_gated_model_says_where_to_ask_for_access(published, folder, token, message, monkeypatch):
    hub, _ = published
    hub.push(NAME, {file.name: file for file in folder.iterdir()}, kind="models", gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for load in (models.load_masked_lm, models.load_tokenizer):
        with pytest.raises(InputError, match=f"It is gated: ask for access at {hub.url}/{NAME}. .*{message}"):
            load(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert torch.equal(logits(models.load_masked_lm(NAME)), logits(models.load_masked_lm(str(folder))))


def test_a_hub_asks_for_patience_and_gets_it(published, folder):
    hub, _ = published
    hub.fail("GET /large/", status=429, headers={"Retry-After": "1"}, times=1)
    began = time.monotonic()
    models.load_masked_lm(NAME)
    assert time.monotonic() - began >= 1
    assert len([line for line in hub.log if "/large/" in line]) == 2


@pytest.mark.parametrize("failure", [{"sleep": 1.0}, {"cut_after": 100}], ids=str)
def test_slow_and_broken_bodies(published, folder, failure):
    hub, _ = published
    hub.fail("GET /(large|small)/", **failure, times=1)
    assert torch.equal(logits(models.load_masked_lm(NAME)), logits(models.load_masked_lm(str(folder))))
    assert hub.requests["failed"] == 1


def test_each_file_is_fetched_once(published):
    hub, _ = published
    models.load_masked_lm(NAME)
    models.load_tokenizer(NAME)
    read = [line for line in hub.log if re.match("GET /(large|small)/", line)]
    assert len(read) == len(set(read))
    hub.reset()
    models.load_masked_lm(NAME)
    models.load_tokenizer(NAME)
    assert hub.sent_bytes["content"] == 0  # they are in the cache, and the Hub says that they are the same


def test_no_hub_at_all(local_hub, monkeypatch):
    local_hub.close()
    with pytest.raises(OutageError, match=rf"the Hub \({NAME}\) did not answer for .* s: .*refused"):
        resolve(NAME, None, Patience(0.5))


def test_a_repository_without_weights_or_tokenizer(published, folder):
    hub, _ = published
    hub.push("owner/bare", {"config.json": folder / "config.json"}, kind="models")
    with pytest.raises(InputError, match=r"cannot load a masked language model 'owner/bare' of the Hub: .*safetensors"):
        models.load_masked_lm("owner/bare")
    with pytest.raises(InputError, match="owner/bare holds no tokenizer"):
        models.load_tokenizer("owner/bare")
    hub.push("owner/empty", {"README.md": "nothing"}, kind="models")
    with pytest.raises(InputError, match=r"cannot load a masked language model: owner/empty has no config\.json"):
        models.load_masked_lm("owner/empty")
    hub.push("owner/pictures", {"a.png": b"nothing"}, kind="models")
    with pytest.raises(InputError, match=r"'owner/pictures' on the Hugging Face Hub has none of config\.json"):
        models.load_masked_lm("owner/pictures")


def test_weights_in_shards_and_pickles(local_hub, tmp_path):
    model = small_model("bert")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    model.config.save_pretrained(tmp_path / "pickle")
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    for kind in ("shards", "pickle"):
        files = {file.name: file for file in (tmp_path / kind).iterdir()}
        local_hub.push(f"owner/{kind}", files, kind="models")
        assert torch.equal(logits(models.load_masked_lm(f"owner/{kind}")), logits(model))
