"""Passing outages: storage or a Hub that is slow, limits the rate, refuses or cuts off for a while.

Wrong credentials, absent files and bad input do not pass: they are raised at once, as they are.
"""

import errno
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from distil_ray.errors import OutageError, reason_of

Result = TypeVar("Result")

AT_START_SECONDS = 20.0
"""How long a command waits before anything is trained: a person is watching."""
WHILE_TRAINING_SECONDS = 600.0
"""How long a run waits that has work to lose."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 20.0
_SILENT_SECONDS = 5.0  # a shorter outage is not worth a line

_PASSING_STATUS = {408, 425, 429}
# 16: what s3fs makes of "SlowDown" and of an S3 that is busy.
_PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
}
# Errors of a connection, by package, as none of them is an OSError. Their packages may not be installed.
_PASSING_TYPES = {
    "aiohttp": {"ClientConnectionError", "ClientPayloadError", "ServerTimeoutError"},
    "botocore": {
        "ConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ReadTimeoutError",
        "ResponseStreamingError",
    },
    "fsspec": {"FSTimeoutError"},
    "httpcore": {"NetworkError", "ProtocolError", "TimeoutException"},
    "httpx": {"TransportError"},
    "requests": {"ChunkedEncodingError", "ConnectionError", "Timeout"},
    "urllib3": {"ProtocolError", "ReadTimeoutError", "NewConnectionError"},
}


def is_passing(error: BaseException) -> bool:
    """Whether an error may go away by itself: HTTP 408, 425, 429 and 5xx, timeouts, lost and refused connections."""
    chain = list(_chain(error))
    statuses = [status for status in map(_http_status, chain) if status is not None]
    if statuses:  # a server's answer says more than what libraries make of it
        return statuses[0] in _PASSING_STATUS or statuses[0] >= 500
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in chain):  # asked for, by HF_HUB_OFFLINE
        return False
    return any(_is_of_a_connection(one) for one in chain)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it, the innermost last."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _http_status(error: BaseException) -> int | None:
    if type(error).__module__ == "aiohttp.http_exceptions":  # its "400" is its own verdict on an answer that is cut off
        return None
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:
        status = getattr(response, "status_code", None)
    elif any(kind.__name__ == "HttpProcessingError" for kind in type(error).__mro__):
        return None  # aiohttp's own view of what came, such as a body that was cut off: no answer
    else:  # aiohttp's and gcsfs'
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return int(status) if isinstance(status, int | str) and str(status).isdigit() and int(status) >= 100 else None


def _retry_after_seconds(error: BaseException) -> float:
    """What the server asks for, if it does."""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None)
        value = headers.get("Retry-After") if headers is not None else None
        if value is not None and str(value).isdigit():
            return float(value)
    return 0.0


def _is_of_a_connection(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    # httpx2 is httpx of a later major version
    kinds = ((kind.__module__.partition(".")[0].rstrip("0123456789"), kind.__name__) for kind in type(error).__mro__)
    return any(name in _PASSING_TYPES.get(package, ()) for package, name in kinds)


def _say(text: str) -> None:
    print(text, flush=True)


@dataclass(frozen=True)
class Patience:
    """How long an outage is waited out, and where it is reported.

    Attributes:
        seconds: since the first failure in a row.
        tell: gets a line when waiting begins to take time, and one when it is over. Must be picklable to be sent to
            other processes.
    """

    seconds: float = AT_START_SECONDS
    tell: Callable[[str], None] = _say

    def wait_out(self, what: str, attempt: Callable[[], Result]) -> Result:
        """Return what ``attempt`` returns, trying again with growing pauses as long as its failures may pass.

        Args:
            what: the place, for messages, such as a URL.

        Raises:
            OutageError: it did not pass in time.
            Exception: what ``attempt`` raises, unless it may pass.
        """
        began: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        is_told = False
        while True:
            try:
                result = attempt()
            except Exception as error:  # every backend raises its own types
                if not is_passing(error):
                    raise
                now = time.monotonic()
                began = now if began is None else began
                waited = now - began
                if waited >= self.seconds:
                    raise OutageError(f"{what} did not answer for {waited:.0f} s: {reason_of(error)}") from error
                if waited >= _SILENT_SECONDS and not is_told:
                    is_told = True
                    self.tell(f"{what} does not answer ({reason_of(error)}): waiting, up to {self.seconds:.0f} s")
                wanted = max(pause * random.uniform(0.75, 1.25), _retry_after_seconds(error))
                time.sleep(min(wanted, max(self.seconds - waited, 0.01)))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                if is_told and began is not None:
                    self.tell(f"{what} answers again after {time.monotonic() - began:.0f} s")
                return result


AT_START = Patience()
"""Before anything is trained."""
