"""A Hugging Face Hub that this process serves, as a fixture; by ``pytest_plugins = ("local_hub",)`` a module gets it.

    def test_something(local_hub):
        commit = local_hub.push("owner/texts", {"data/a.parquet": content})  # a data set; kind="models" for a model
        local_hub.fail("GET .*/resolve/", status=503, seconds=3)  # for three seconds from now on
        ...  # hf://datasets/owner/texts, HfApi(), from_pretrained, create_commit
        assert local_hub.requests["api"] == 0  # counted by kind, see `Faults` and `LocalHub`

This process, and those it starts, take it for the Hub: HF_ENDPOINT and what libraries have read from it at import are
set for the time of a test, Xet and offline mode are off, and the caches are empty folders of the test's own. Files of
the suffixes that the Hub keeps in large-file storage are redirected to another host, as by the Hub.
"""

import base64
import contextlib
import functools
import hashlib
import inspect
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
import yaml
from faults import Faults

TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_good", "hf_read", "hf_other"
"""The tokens that this Hub knows: of the user ``owner``, of the same for reading alone, and of the user ``other``."""
_USERS = {TOKEN: ("owner", "write"), READ_TOKEN: ("owner", "read"), OTHER_TOKEN: ("other", "write")}
_LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "other", "unknown")
_RELATIONS = ("adapter", "finetune", "merge", "quantized")

Content = bytes | str | Path
_LARGE = re.compile(r"\.(parquet|arrow|bin|gz|zst|safetensors|h5|onnx)$")
_ENTRIES_PER_PAGE = 1000


@dataclass
class _Repo:
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    log: dict[str, tuple[str, str, str | None]] = field(default_factory=dict)  # by commit: title, message, parent
    is_private: bool = False
    is_gated: bool = False

    def commit(self, names: list[str], files: dict[str, Content], title: str, message: str, revision: str) -> str:
        commit = hashlib.sha1("\n".join([*names, str(time.monotonic_ns()), *sorted(files)]).encode()).hexdigest()
        self.commits[commit] = files
        self.log[commit] = (title, message, self.refs.get(revision))
        self.refs[revision] = commit
        return commit


class LocalHub(Faults):
    """The repositories, what was asked for, and what is to fail: see `Faults`, too.

    Kinds of requests: ``api`` (all of its), of which ``info``, ``tree`` and ``paths-info``; ``resolve`` (HEAD and GET
    before the redirect), ``content`` (of a file's bytes), ``other``.

    Attributes:
        url: the endpoint, for HF_ENDPOINT.
    """

    def __init__(self) -> None:
        super().__init__()
        self._repos: dict[tuple[str, str], _Repo] = {}
        self._large: dict[str, bytes] = {}  # what has been uploaded for a commit to come, by SHA-256
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def push(
        self,
        repo_id: str,
        files: Mapping[str, Content],
        *,
        kind: str = "datasets",
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Make a commit of exactly these files (bytes, text or paths), let ``revision`` point to it, and return it.

        What is ``private`` is there for its owner alone; of what is ``gated``, others see everything but the files.
        """
        repo = self._repos.setdefault((kind, repo_id), _Repo())
        repo.is_private, repo.is_gated = private, gated
        return repo.commit([repo_id, kind], dict(files), "Update by hand", "", revision)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a model, by path."""
        repo = self._repos["models", repo_id]
        return {path: _bytes(content, 0, None) for path, content in repo.commits[repo.refs[revision]].items()}

    def titles(self, repo_id: str, revision: str = "main") -> list[str]:
        """The titles of a model's commits, newest first."""
        return [one["title"] for one in _log(self._repos["models", repo_id], revision)]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.posted = self._body()
        self.cut_after: int | None = None
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.kinds = self._kinds(address.path)
        request = f"{self.command} {address.path}"
        # Counted before it is answered, so that whoever has the answer finds it counted.
        self.hub.count_request(f"{request} {self.headers.get('Range') or ''}".rstrip(), self.kinds)
        try:
            if not self._fail(request):
                self._route(address.path)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client went away

    do_HEAD = do_POST = do_PUT = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _kinds(self, path: str) -> tuple[str, ...]:
        if path.startswith(("/large/", "/small/")):
            return ("content",)
        if self.command == "PUT":
            return ("upload",)
        if "/resolve/" in path:
            return ("resolve",)
        if not path.startswith(("/api/models/", "/api/datasets/")):
            return ("other",)
        parts = path.split("/")
        return ("api", parts[5] if len(parts) > 5 and parts[5] in ("tree", "paths-info") else "info")

    # --- Failing

    def _fail(self, request: str) -> bool:
        failure = self.hub.failure(request)
        if not failure:
            return False
        if failure["sleep"]:
            time.sleep(failure["sleep"])
        if failure["refuse"]:
            self._hang_up()
            return True
        self.cut_after = failure["cut_after"]
        if failure["status"] is None and failure["body"] is None:
            return False
        self._answer(failure["status"] or 200, failure["body"] or b"", failure["headers"])
        return True

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    # --- Answers

    def _answer(self, status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._head(status, len(content), {"Content-Type": "application/json", **(headers or {})})
        self._send(content)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes) -> None:
        if self.command == "HEAD":
            return
        sent = content[: self.cut_after]
        self.hub.count_bytes(self.kinds, len(sent))
        self.wfile.write(sent)
        if len(sent) < len(content):
            self.wfile.flush()
            self._hang_up()

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    # --- Repositories

    def _route(self, path: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in _USERS:
            return self._error(401, "", "Invalid credentials in Authorization header")
        self.user, self.role = _USERS.get(token, (None, None))
        if path.startswith("/upload/"):
            self.hub._large[path.removeprefix("/upload/")] = self.posted
            return self._answer(200)
        answers = {"whoami-v2": self._whoami, "repos/create": self._create, "validate-yaml": self._validate}
        if answer := answers.get(path.removeprefix("/api/")):
            return answer()
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch() if self._may_write(match[1]) else None
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+))?(?:/([^/]+))?(?:/(.+))?", path):
            kind, name, what, revision, inner = match.groups()
            is_of_repo = revision is None or what in ("auth-check", "branch")
            repo, commit = self._find(kind, name, "main" if is_of_repo else unquote(revision))
            return self._api(kind, name, repo, commit, what, unquote(inner or "")) if repo else None
        if match := re.fullmatch(r"/(large|small)/(models|datasets)/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            size, kind, name, commit, inner = match.groups()
            return self._content(self.hub._repos[kind, name].commits[commit], commit, unquote(inner), size == "small")
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if match[1] else "models"
            repo, commit = self._find(kind, match[2], unquote(match[3]))
            if repo and repo.is_gated and self.user != match[2].partition("/")[0]:
                message = f"Access to model {match[2]} is restricted. You must have access to it and be authenticated"
                return self._error(403 if self.user else 401, "GatedRepo", message)
            return self._resolve(kind, match[2], repo.commits[commit], commit, unquote(match[4])) if repo else None
        self._answer(404, {"error": "Sorry, we can't find the page you are looking for."})

    def _find(self, kind: str, name: str, revision: str) -> tuple[_Repo | None, str]:
        """The repository and the commit, or None when an error has been answered."""
        repo = self.hub._repos.get((kind, name))
        if repo is None or (repo.is_private and self.user != name.partition("/")[0]):
            self._error(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None, ""
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None, ""
        return repo, commit

    def _api(self, kind: str, name: str, repo: _Repo, commit: str, what: str | None, inner: str) -> None:
        files = repo.commits[commit]
        if what in ("auth-check", "preupload", "commit", "branch"):
            only_asks = what == "auth-check" and not self.path.endswith("/write")
            return self._change(name, repo, files, what) if only_asks or self._may_write(name) else None
        if what == "commits":
            revision = unquote(urlsplit(self.path).path.rpartition("/")[2])
            return self._answer(200, _log(repo, revision))
        if what in (None, "revision"):
            siblings = [{"rfilename": one, **_entry(files, one)} for one in sorted(files)]
            info = {
                "_id": "0",
                "id": name,
                "sha": commit,
                "private": repo.is_private,
                "gated": "auto" if repo.is_gated else False,
                "disabled": False,
            }
            info |= {"tags": [], "downloads": 1, "likes": 0, "siblings": siblings}
            info |= {"lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2023-01-01T00:00:00.000Z"}
            return self._answer(200, info | ({"modelId": name, "config": {}} if kind == "models" else {}))
        if what == "tree":
            return self._tree(files, inner)
        if what == "paths-info":
            wanted = json.loads(self.posted)["paths"] if self.posted.startswith(b"{") else None
            wanted = parse_qs(self.posted.decode())["paths"] if wanted is None else wanted
            return self._answer(200, [_entry(files, one) for one in wanted if one in files or one in _folders(files)])
        if what == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
            return self._answer(200, {"branches": branches, "tags": [], "converts": []})
        self._answer(404, {"error": f"no {what}"})

    # --- Pushing

    def _whoami(self) -> None:
        if not self.user:
            return self._error(401, "", "Invalid username or password.")
        auth = {"accessToken": {"displayName": "a token", "role": self.role}}
        self._answer(200, {"type": "user", "name": self.user, "orgs": [], "auth": auth})

    def _may_write(self, name: str) -> bool:
        """Whether the token may write to the repository; or else the error has been answered."""
        if self.user == name.partition("/")[0] and self.role == "write":
            return True
        self._error(403 if self.user else 401, "", "You don't have the rights to do that")
        return False

    def _create(self) -> None:
        wanted = json.loads(self.posted)
        name = f"{wanted['organization'] or self.user}/{wanted['name']}"
        if not self._may_write(name):
            return None
        if ("models", name) in self.hub._repos:
            return self._answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        repo = self.hub._repos["models", name] = _Repo(is_private=wanted.get("visibility") == "private")
        repo.commit([name], {".gitattributes": "*.safetensors filter=lfs"}, "initial commit", "", "main")
        self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": "0"})

    def _validate(self) -> None:
        errors = _card_errors(json.loads(self.posted)["content"])
        self._answer(400 if errors else 200, {"errors": [{"message": one} for one in errors], "warnings": []})

    def _batch(self) -> None:
        objects = json.loads(self.posted)["objects"]
        for one in objects:
            if one["oid"] not in self.hub._large:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}", "header": {}}}
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _change(self, name: str, repo: _Repo, files: dict[str, Content], what: str) -> None:
        revision = unquote(urlsplit(self.path).path.rpartition("/")[2])
        if what == "auth-check":
            return self._answer(200)
        if what == "branch":
            repo.refs[revision] = repo.refs["main"]
            return self._answer(200)
        if what == "preupload":
            return self._answer(200, {"files": [_mode(files, one["path"]) for one in json.loads(self.posted)["files"]]})
        head, *operations = map(json.loads, self.posted.splitlines())
        if head["value"].get("parentCommit", repo.refs[revision]) != repo.refs[revision]:
            return self._error(412, "", "A commit has happened since. Please refresh and try again.")
        changed = dict(files)
        for operation in operations:
            self._apply(changed, operation["key"], operation["value"])
        commit = repo.commit([name], changed, head["value"]["summary"], head["value"]["description"], revision)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _apply(self, files: dict[str, Content], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            content = self.hub._large[value["oid"]]
            assert hashlib.sha256(content).hexdigest() == value["oid"]
            files[value["path"]] = content
        else:
            del files[value["path"]]

    # --- Listing

    def _tree(self, files: dict[str, Content], inner: str) -> None:
        top = f"{inner}/" if inner else ""
        below = sorted(path for path in {*files, *_folders(files)} if path.startswith(top) and path != inner)
        if inner and not below:
            return self._error(404, "EntryNotFound", f"{inner} does not exist")
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            below = [path for path in below if "/" not in path[len(top) :]]
        start = int(self.query.get("cursor", ["0"])[0])
        stop, headers = start + _ENTRIES_PER_PAGE, {}
        if stop < len(below):
            flags = "&".join(f"{key}={value[0]}" for key, value in self.query.items() if key != "cursor")
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{flags}&cursor={stop}>; rel="next"'
        self._answer(200, [_entry(files, path) for path in below[start:stop]], headers)

    def _resolve(self, kind: str, name: str, files: dict[str, Content], commit: str, inner: str) -> None:
        if inner not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        is_large = _LARGE.search(inner) is not None
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(_size(files[inner])), "Accept-Ranges": "bytes"}
        digest = _digest(files[inner])
        headers["X-Linked-Etag" if is_large else "ETag"] = f'"{digest if is_large else digest[:40]}"'
        place = f"{'large' if is_large else 'small'}/{kind}/{name}/{commit}/{quote(inner)}"
        # As on the Hub: large files lie on another host, which is not asked what a file is, and small ones on its own.
        headers["Location"] = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/{place}" if is_large else f"/{place}"
        self._answer(302 if is_large else 307, b"", headers)

    def _content(self, files: dict[str, Content], commit: str, inner: str, with_commit: bool) -> None:
        content = files[inner]
        size = _size(content)
        start, stop, status, headers = 0, size, 200, {"ETag": f'"{_digest(content)}"', "Accept-Ranges": "bytes"}
        if with_commit:
            headers |= {"X-Repo-Commit": commit, "ETag": f'"{_digest(content)[:40]}"'}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop, status = int(match[1]), min(int(match[2] or size) + 1, size), 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            if start >= size:
                return self._answer(416, b"", {"Content-Range": f"bytes */{size}"})
        self._head(status, stop - start, headers)
        self._send(_bytes(content, start, stop))


def _card_errors(card: str) -> list[str]:
    """What the Hub would refuse of a card's metadata, as far as this project's cards have it."""
    try:
        metadata = yaml.safe_load(card.partition("---\n")[2].partition("\n---")[0])
    except yaml.YAMLError as error:
        return [f"the metadata is not YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["the metadata is no mapping"]
    errors = [] if metadata.get("license", "mit") in _LICENSES else ['"license" must be one of the known identifiers']
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        errors.append('"license_name" is required with "license: other"')
    if metadata.get("base_model_relation", "merge") not in _RELATIONS:
        errors.append(f'"base_model_relation" must be one of {_RELATIONS}')
    ids = [*filter(None, [metadata.get("base_model")]), *metadata.get("datasets", ())]
    errors += [f"{one!r} is no id" for one in ids if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", one)]
    for model in metadata.get("model-index", ()):
        for result in model["results"]:
            parts = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"], model["name"]]
            if not all(parts) or not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                errors.append('"model-index" needs task.type, dataset.type, dataset.name, metrics.type and value')
    return errors


def _mode(files: Mapping[str, Content], path: str) -> dict[str, Any]:
    """How a file is to be uploaded, and what is there."""
    is_large = _LARGE.search(path) is not None
    known = None
    if path in files:
        content = _bytes(files[path], 0, None)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content)
        known = hashlib.sha256(content).hexdigest() if is_large else blob.hexdigest()
    return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": known}


def _log(repo: _Repo, revision: str) -> list[dict[str, Any]]:
    """The commits up to a revision, newest first, as the API has them."""
    found, commit = [], repo.refs.get(revision, revision)
    while commit is not None:
        title, message, parent = repo.log[commit]
        date = "2024-01-01T00:00:00.000Z"
        found.append({"id": commit, "title": title, "message": message, "authors": [{"user": "owner"}], "date": date})
        commit = parent
    return found


def _folders(files: Mapping[str, Content]) -> set[str]:
    return {"/".join(parts[:depth]) for path in files for parts in [path.split("/")] for depth in range(1, len(parts))}


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(_bytes(content, 0, None))


def _bytes(content: Content, start: int, stop: int | None) -> bytes:
    if isinstance(content, Path):
        with content.open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)
    return (content.encode() if isinstance(content, str) else content)[start:stop]


def _digest(content: Content) -> str:
    if isinstance(content, Path):  # may be of gigabytes
        return hashlib.sha256(
            repr((str(content), content.stat().st_size, content.stat().st_mtime_ns)).encode()
        ).hexdigest()
    return _digest_of(_bytes(content, 0, None))


@functools.lru_cache(maxsize=10_000)
def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(files: Mapping[str, Content], path: str) -> dict[str, Any]:
    if path not in files:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
    digest, size = _digest(files[path]), _size(files[path])
    entry: dict[str, Any] = {"type": "file", "oid": digest[:40], "blobId": digest[:40], "size": size, "path": path}
    if _LARGE.search(path):
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 134}
    return entry


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """An empty Hub."""
    import huggingface_hub.constants
    from huggingface_hub import HfFileSystem
    from huggingface_hub.utils._http import http_backoff, http_stream_backoff

    hub = LocalHub()
    home = tmp_path_factory.mktemp("hf_home")
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    environment |= {"NO_PROXY": "127.0.0.1,localhost", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    constants = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
    }
    for name, value in constants.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    for function in (http_backoff, http_stream_backoff):  # whose retries wait for half a minute in all
        defaults = inspect.unwrap(function).__kwdefaults__
        for name in ("base_wait_time", "max_wait_time"):
            monkeypatch.setitem(defaults, name, 0.05)
    _patch_datasets(monkeypatch, hub.url, home)
    if "transformers.utils.hub" in sys.modules:  # which keeps a client for the first Hub that it sees
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    HfFileSystem.clear_instance_cache()
    yield hub
    HfFileSystem.clear_instance_cache()
    hub.close()


def _patch_datasets(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    import datasets.config

    settings = {
        "HF_ENDPOINT": url,
        "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HUB_OFFLINE": False,
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": str(home / "datasets" / "downloads"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(datasets.config, name, value)
