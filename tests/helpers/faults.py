"""What the servers of tests have in common: they count what is asked for, and fail as told."""

import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class _Rule:
    pattern: re.Pattern[str]
    until: float
    times: float
    after: int
    action: dict[str, Any]


class Faults:
    """Counters and rules.

    Attributes:
        requests: how many requests came, by kind, and how many ``failed``.
        sent_bytes: bytes of bodies, by kind.
        log: "METHOD PATH RANGE", in the order in which they came.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self.reset()

    def fail(
        self,
        pattern: str,
        *,
        status: int | None = None,
        refuse: bool = False,
        cut_after: int | None = None,
        sleep: float | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = float("inf"),
        times: float = float("inf"),
        after: int = 0,
    ) -> None:
        """Let requests fail of which ``pattern`` (a regular expression) is found in "METHOD PATH".

        Args:
            status, headers: what is answered, with ``body`` if given; a ``body`` alone is answered with status 200.
            refuse: close the connection without an answer.
            cut_after: close it after so many bytes of the body.
            sleep: seconds before the right answer.
            seconds: how long it fails, from now on.
            times: how many times it fails.
            after: how many requests come through before the first that fails.
        """
        action = {"status": status, "refuse": refuse, "cut_after": cut_after, "sleep": sleep, "body": body}
        action["headers"] = dict(headers or {})
        with self._lock:
            self._rules.append(_Rule(re.compile(pattern), time.monotonic() + seconds, times, after, action))

    def heal(self) -> None:
        """Let nothing fail any more."""
        with self._lock:
            self._rules.clear()

    def reset(self) -> None:
        """Count from zero."""
        self.requests: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.log: list[str] = []

    def failure(self, request: str) -> dict[str, Any]:
        with self._lock:
            for rule in self._rules:
                if rule.times <= 0 or time.monotonic() > rule.until or not rule.pattern.search(request):
                    continue
                if rule.after > 0:
                    rule.after -= 1
                    continue
                rule.times -= 1
                self.requests["failed"] += 1
                return rule.action
        return {}

    def count_request(self, request: str, kinds: tuple[str, ...]) -> None:
        with self._lock:
            self.log.append(request)
            self.requests.update(kinds)

    def count_bytes(self, kinds: tuple[str, ...], num_bytes: int) -> None:
        with self._lock:
            for kind in kinds:
                self.sent_bytes[kind] += num_bytes
