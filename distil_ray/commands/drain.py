"""`distil-ray drain`: a node that is about to be taken away tells Ray so, in time for a checkpoint.

Runs beside Ray on every node. Watches the instance metadata of AWS (version 2 only) for the interruption notice of a
spot node, which comes two minutes before the end; with ``--now`` it does not wait for one, as in Kubernetes' preStop.
"""

import argparse
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import IO

from distil_ray.cli import main_of, program_of
from distil_ray.errors import InputError, RunError
from distil_ray.runs.stopping import keeping_sigterm

_METADATA_URL = "http://169.254.169.254"
_TOKEN_SECONDS = 21600
_TIMEOUT_SECONDS = 5.0
_MARGIN_SECONDS = 10  # before the announced end, for Ray to wind up the node


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 the node is drained, 1 that failed, 2 a mistake in its use."""
    return main_of(program_of("drain"), _drain, argv, after_interrupt="this node is no longer watched")


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(prog=program_of("drain"), description=__doc__.partition("\n\n")[2])
    parser.add_argument("--now", action="store_true", help="drain at once, without a notice")
    parser.add_argument("--seconds", type=int, default=110, help="with --now: seconds until the node's end (110)")
    parser.add_argument("--hold", type=float, default=0.0, help="seconds to wait after draining, for runs to move (0)")
    parser.add_argument("--address", default="auto", help="of the Ray cluster; auto: of the Ray on this node")
    parser.add_argument("--node-id", help="of the node; by default the one of this machine's address")
    parser.add_argument("--metadata-url", default=_METADATA_URL, help=f"of the instance metadata ({_METADATA_URL})")
    parser.add_argument("--poll-seconds", type=float, default=2.0, help="between two looks at the metadata (2)")
    return parser


def _drain(argv: list[str] | None) -> None:
    arguments = make_parser().parse_args(argv)
    lock = None if arguments.now else _only_watcher(arguments.node_id)
    seconds = arguments.seconds if arguments.now else wait_for_notice(arguments.metadata_url, arguments.poll_seconds)
    drain(arguments.address, arguments.node_id or own_node_id(arguments.address), max(seconds, 1))
    time.sleep(arguments.hold)
    del lock


def _only_watcher(node_id: str | None) -> IO[str]:
    """Lock a file until this process ends: `ray up` starts the nodes' commands again, watchers included."""
    path = os.path.join(tempfile.gettempdir(), f"distil-ray-drain-{node_id or 'node'}.lock")
    file = open(path, "a")  # noqa: SIM115, it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"another watcher runs on this node (it holds {path}); one is enough") from None
    return file


def wait_for_notice(url: str, poll_seconds: float) -> int:
    """Return when the instance's end is announced; the seconds until then, less a margin."""
    token = None
    while True:
        try:
            token = token or _fetch(f"{url}/latest/api/token", "PUT", "ttl-seconds", str(_TOKEN_SECONDS))
            notice = json.loads(_fetch(f"{url}/latest/meta-data/spot/instance-action", "GET", "", token))
            end = datetime.strptime(notice["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            print(f"notice: {notice['action']} at {notice['time']}", flush=True)
            return int((end - datetime.now(UTC)).total_seconds()) - _MARGIN_SECONDS
        except urllib.error.HTTPError as error:
            if error.code == 401:  # the token has run out
                token = None
            elif error.code != 404:  # there is no notice
                print(f"{error.url}: {error}", flush=True)
        except (OSError, ValueError, KeyError) as error:
            print(f"{url}: {error!r}", flush=True)
        time.sleep(poll_seconds)


def _fetch(url: str, method: str, header: str, value: str) -> str:
    name = "X-aws-ec2-metadata-token" + (f"-{header}" if header else "")
    request = urllib.request.Request(url, method=method, headers={name: value})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        return str(response.read().decode())


def own_node_id(address: str) -> str:
    """The id of the Ray node on this machine.

    Raises:
        RunError: there is none, or there are several.
    """
    import ray
    from ray.util import get_node_ip_address

    try:
        with keeping_sigterm(), ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False):
            here = {get_node_ip_address(), socket.gethostname()}
            alive = [node for node in ray.nodes() if node["Alive"]]
    except (ConnectionError, ValueError) as error:
        raise RunError(f"the Ray cluster at {address!r} cannot be reached: {error}") from error
    own = [str(node["NodeID"]) for node in alive if {node["NodeManagerAddress"], node["NodeManagerHostname"]} & here]
    if len(own) != 1:
        raise RunError(f"{len(own)} Ray nodes run at {', '.join(sorted(here))}, expected one; name it with --node-id")
    return own[0]


def drain(address: str, node_id: str, seconds: int) -> None:
    """Tell Ray that the node ends in so many seconds: nothing new is placed on it, and runs on it are told.

    Raises:
        RunError: Ray did not take it.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the machine is about to be taken away"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RunError(f"node {node_id} could not be drained: {(result.stderr or result.stdout).strip()}")
    print(f"node {node_id} is drained: {seconds} seconds are left", flush=True)
