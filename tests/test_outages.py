"""Which failures are waited out, for how long, and what is said of it."""

import errno
import importlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import botocore.exceptions
import huggingface_hub.constants
import huggingface_hub.errors
import pytest
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error

from distil_ray import outages
from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.outages import Patience, is_passing

httpx = importlib.import_module(huggingface_hub.errors.HTTPError.__module__.partition(".")[0])  # or httpx2


def s3_error(code: str, status: int) -> BaseException:
    response = {"Error": {"Code": code, "Message": "as S3 says"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(botocore.exceptions.ClientError(response, "GetObject"))


class Server:
    """Answers with one status, or closes the connection without an answer."""

    def __init__(self) -> None:
        self.status: int | None = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if outer.status is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()


def cut_off() -> BaseException:
    """What aiohttp makes of a body that is too short: its cause has a status that no server has answered."""
    error = aiohttp.ClientPayloadError("cut off")
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("received 20 of 352 bytes")
    return error


def hub_error(server: Server, status: int | None) -> BaseException:
    """What huggingface_hub makes of a real answer."""
    server.status = status
    try:
        huggingface_hub.HfApi(endpoint=server.url).model_info("owner/name", timeout=5)
    except Exception as error:
        return error
    raise AssertionError("no error")


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests are offline; these have a server of their own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, None])
def test_a_hub_that_answers_so_is_waited_for(server: Server, status: int | None) -> None:
    assert is_passing(hub_error(server, status))


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_hub_that_answers_so_is_not_waited_for(server: Server, status: int) -> None:
    assert not is_passing(hub_error(server, status))


def test_a_wrapped_error_is_judged_by_what_the_server_answered(server: Server) -> None:
    def wrapped(status: int) -> BaseException:
        try:
            try:
                raise hub_error(server, status)
            except Exception as error:
                raise FileNotFoundError("not in the cache") from error
        except FileNotFoundError as error:
            return error

    assert is_passing(wrapped(503))
    assert not is_passing(wrapped(404))


@pytest.mark.parametrize(
    "error",
    [
        s3_error("SlowDown", 503),
        s3_error("InternalError", 500),
        s3_error("RequestTimeout", 503),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
        botocore.exceptions.ResponseStreamingError(error="cut off"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("cut off"),
        cut_off(),
        FSTimeoutError(),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut off"),
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.ENETUNREACH, "no network"),
    ],
    ids=repr,
)
def test_lost_connections_and_busy_servers_are_waited_for(error: BaseException) -> None:
    assert is_passing(error)


@pytest.mark.parametrize(
    "error",
    [
        s3_error("NoSuchKey", 404),
        s3_error("AccessDenied", 403),
        s3_error("InvalidAccessKeyId", 403),
        botocore.exceptions.NoCredentialsError(),
        FileNotFoundError("gone"),
        PermissionError("no"),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EIO, "damaged"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline"),
        InputError("bad"),
        ValueError("bad"),
    ],
    ids=repr,
)
def test_what_does_not_pass_is_not_waited_for(error: BaseException) -> None:
    assert not is_passing(error)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(outages, "_LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(outages, "_SILENT_SECONDS", 0.05)


@pytest.mark.usefixtures("fast")
def test_an_outage_that_ends_in_time_is_waited_out_and_told_of_once() -> None:
    lines: list[str] = []
    failures = iter([TimeoutError("no answer")] * 8)

    def attempt() -> int:
        for error in failures:
            raise error
        return 7

    assert Patience(seconds=30, tell=lines.append).wait_out("s3://bucket", attempt) == 7
    assert len(lines) == 2
    assert lines[0].startswith("s3://bucket does not answer (no answer)")
    assert lines[1].startswith("s3://bucket answers again")


@pytest.mark.usefixtures("fast")
def test_patience_ends() -> None:
    num_attempts = 0

    def attempt() -> None:
        nonlocal num_attempts
        num_attempts += 1
        raise ConnectionResetError("reset")

    with pytest.raises(OutageError, match=r"s3://bucket did not answer for \d+ s: reset"):
        Patience(seconds=0.2, tell=lambda _: None).wait_out("s3://bucket", attempt)
    assert num_attempts > 2


def test_a_server_that_says_when_to_come_back_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(outages.time, "sleep", pauses.append)
    request = httpx.Request("GET", "http://x")
    error = httpx.HTTPStatusError(
        "busy", request=request, response=httpx.Response(429, headers={"Retry-After": "7"}, request=request)
    )
    answers = iter([error, None])

    def attempt() -> None:
        if (failure := next(answers)) is not None:
            raise failure

    Patience(seconds=30, tell=lambda _: None).wait_out("hub", attempt)
    assert pauses == [7.0]


def test_what_does_not_pass_is_raised_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        Patience(seconds=30).wait_out("file", Path("/no/such/file").read_bytes)


def test_reasons() -> None:
    assert reason_of(ValueError("one\n  two")) == "one two"
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(ValueError("\n \n")) == "ValueError"
    remote = (
        "\x1b[36mray::task()\x1b[39m (pid=1)\n"
        "Traceback (most recent call last):\n"
        '  File "a.py", line 3, in f\n    raise ValueError("x")\n'
        "ValueError: the reason\nand its second line"
    )
    assert reason_of(RuntimeError(remote)) == "ValueError: the reason and its second line"
    died = "The actor died.\n\tpid: 1\nWorker exit type: SYSTEM_ERROR Worker exit detail: End of file. Perhaps killed."
    assert reason_of(RuntimeError(died)) == "its process ended: End of file. Perhaps killed."


def test_an_answer_that_is_cut_off_passes():
    """Its parser's own "400" is no status of the server."""
    error = botocore.exceptions.ConnectionClosedError(endpoint_url="http://127.0.0.1")
    error.__cause__ = aiohttp.ClientPayloadError("Response payload is not completed")
    error.__cause__.__cause__ = aiohttp.http_exceptions.ContentLengthError("Not enough data")
    assert is_passing(error)
