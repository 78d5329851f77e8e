"""An S3 that this process serves, as fixtures. A test module gets them by ``pytest_plugins = ("local_s3",)``."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from faults import Faults
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server


class LocalS3(Faults):
    """Moto, which counts and fails as told. Kinds of requests: ``get``, ``head``, ``list``, ``other``."""

    def __init__(self) -> None:
        super().__init__()
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        is_list = "list-type" in environ["QUERY_STRING"]
        kind = "list" if is_list else {"GET": "get", "HEAD": "head"}.get(method, "other")
        request = f"{method} {environ['PATH_INFO']}"
        self.count_request(f"{request} {environ.get('HTTP_RANGE', '')}".rstrip(), (kind,))
        failure = self.failure(request)
        if failure.get("sleep"):
            time.sleep(failure["sleep"])
        if failure.get("refuse"):
            return self._cut(environ, b"")
        if failure.get("status") or failure.get("body") is not None:
            body = failure["body"] or b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
            headers = {"Content-Length": str(len(body)), "Content-Type": "text/xml", **failure["headers"]}
            start_response(f"{failure['status'] or 200} -", list(headers.items()))
            return [] if method == "HEAD" else [body]
        content = b"".join(self._moto(environ, start_response))
        sent = content[: failure.get("cut_after")]
        self.count_bytes((kind,), len(sent))
        return [content] if failure.get("cut_after") is None else self._cut(environ, sent)

    def _cut(self, environ: dict[str, Any], content: bytes) -> Iterator[bytes]:
        if content:
            yield content
        with contextlib.suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError


@contextlib.contextmanager
def serving() -> Iterator[tuple[LocalS3, str]]:
    """Yield a server and its address. All servers of a process have the same objects, and fail each on its own."""
    local = LocalS3()
    server = make_server("127.0.0.1", 0, local, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield local, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def local_s3() -> Iterator[tuple[LocalS3, str]]:
    """The server and its address."""
    with serving() as served:
        yield served


@pytest.fixture
def s3(local_s3: tuple[LocalS3, str], bucket: Any) -> Iterator[LocalS3]:
    """The server with an empty `bucket`, to count what it is asked for and to let it fail."""
    local_s3[0].reset()
    yield local_s3[0]
    local_s3[0].heal()


@pytest.fixture(scope="module")
def server(local_s3: tuple[LocalS3, str]) -> str:
    """The server's address."""
    return local_s3[1]


@pytest.fixture
def aws_environment(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Test credentials only, and no connection kept from another endpoint."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "FSSPEC_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(aws_environment: None) -> Iterator[Any]:
    """An empty bucket named ``runs``, as boto3 has it."""
    bucket = boto3.resource("s3").Bucket("runs")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()
