"""`python -m distil_ray.drain`: notices are heard whatever comes before, and mistakes are named.

`test_node_loss.py` drains a real node with it.
"""

import http.server
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from distil_ray.commands import drain


def notice() -> dict[str, str]:
    """Of an end in two minutes."""
    return {"action": "terminate", "time": f"{datetime.now(UTC) + timedelta(seconds=120):%Y-%m-%dT%H:%M:%SZ}"}


@contextmanager
def metadata(*answers):
    """A server of instance metadata that gives these (status, text) to requests for a notice, and what was asked."""
    left, asked = list(answers), []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            asked.append(self.path)
            self.answer(200, f"token{len(asked)}")

        def do_GET(self):
            asked.append((self.path, self.headers["X-aws-ec2-metadata-token"]))
            self.answer(*left.pop(0))

        def answer(self, status, text):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_notice_is_heard_after_quiet_failures_and_a_token_that_ran_out(capsys):
    found = notice()
    answers = [(404, ""), (404, ""), (500, ""), (401, ""), (200, "not JSON"), (200, "{}"), (200, json.dumps(found))]
    with metadata(*answers) as (url, asked):
        seconds = drain.wait_for_notice(url, poll_seconds=0.0)

    assert 95 <= seconds <= 110  # ten less than AWS leaves
    assert [one for one in asked if isinstance(one, str)] == ["/latest/api/token"] * 2
    assert {path for path, _ in (one for one in asked if not isinstance(one, str))} == {
        "/latest/meta-data/spot/instance-action"
    }
    tokens = [token for _, token in (one for one in asked if not isinstance(one, str))]
    assert tokens == ["token1"] * 4 + ["token6"] * 3
    told = capsys.readouterr().out
    assert "500" in told
    assert told.endswith(f"notice: terminate at {found['time']}\n")


def test_one_watcher_a_node(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drain.tempfile, "tempdir", str(tmp_path))
    first = drain._only_watcher("node")

    assert drain.main(["--node-id", "node", "--metadata-url", "http://127.0.0.1:9"]) == 2
    assert "another watcher runs on this node" in capsys.readouterr().err
    first.close()
    drain._only_watcher("node").close()


def test_the_node_of_this_machine_is_found_and_no_other(ray_cluster):
    """In a process of its own: it joins the cluster to ask."""
    import ray

    script = f"""
import ray.util, socket
from distil_ray.commands import drain
print(drain.own_node_id({ray_cluster!r}))
ray.util.get_node_ip_address = lambda: "192.0.2.77"
socket.gethostname = lambda: "elsewhere"
drain.own_node_id({ray_cluster!r})
"""
    asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert asked.stdout.split() == [ray.get_runtime_context().get_node_id()]
    last = asked.stderr.splitlines()[-1]
    assert "RunError: 0 Ray nodes run at 192.0.2.77, elsewhere, expected one; name it with --node-id" in last


def test_a_node_that_ray_does_not_know(ray_cluster, capsys):
    assert drain.main(["--now", "--address", ray_cluster, "--node-id", "zz"]) == 1
    assert "node zz could not be drained" in capsys.readouterr().err
