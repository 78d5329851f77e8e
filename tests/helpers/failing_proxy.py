"""A server in front of another one that fails on command, as networks and object stores do."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Failure = Literal["503", "403", "closed", "cut off"]

_XML = (
    "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>"
)
_CODES = {"503": "ServiceUnavailable", "403": "InvalidAccessKeyId"}


class FailingProxy:
    """Passes HTTP requests on to ``target``, or makes them fail.

    Attributes:
        num_failures: requests that are still to fail.
        num_requests: that came.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.failure: Failure = "503"
        self.num_failures = 0
        self.num_requests = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.proxy = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator["FailingProxy"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def fail(self, num_requests: int, failure: Failure) -> None:
        """Let the next requests fail."""
        with self.lock:
            self.failure, self.num_failures = failure, num_requests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        proxy: FailingProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self._body()
        with proxy.lock:
            proxy.num_requests += 1
            fails, proxy.num_failures = proxy.num_failures > 0, max(proxy.num_failures - 1, 0)
            failure = proxy.failure
        if fails and failure == "closed":
            self.close_connection = True
            return
        if fails and failure in _CODES:
            self._answer(
                int(failure), [("Content-Type", "application/xml")], _XML.format(code=_CODES[failure]).encode()
            )
            return
        status, headers, content = self._ask(proxy, body)
        if fails and (self.command == "HEAD" or not content):  # done, but the answer is lost
            self.close_connection = True
            return
        self._answer(status, headers, content, cut_off=fails)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return content

    def _ask(self, proxy: FailingProxy, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(proxy.target.hostname or "", proxy.target.port, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name not in ("Transfer-Encoding", "Expect")}
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), content

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut_off: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            is_of_the_content = name.lower() in ("content-length", "transfer-encoding", "connection")
            if not is_of_the_content or (self.command == "HEAD" and name.lower() == "content-length"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut_off else content)
        self.close_connection = self.close_connection or cut_off

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def log_message(self, *_: object) -> None:
        """Say nothing."""
