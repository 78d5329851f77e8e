"""`python -m distil_ray.doctor` on a real cluster."""

import http.server
import re
import threading

import pytest
import yaml
from runs import changed

from distil_ray.commands import doctor
from distil_ray.config import parse_config
from distil_ray.errors import RunError
from distil_ray.runs.storage import RunFolder
from distil_ray.training import ray_train
from distil_ray.training.checkup import _all_reduce, _listing, _status_without_token
from distil_ray.training.ray_train import time_all_reduce
from distil_ray.training.verdicts import NodeFacts, Verdict


def examine(settings, tmp_path) -> int:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return doctor.main(["--config", str(tmp_path / "config.yaml")])


def test_a_healthy_cluster(settings, ray_cluster, tmp_path, capsys):
    assert examine(settings, tmp_path) == 0

    lines = capsys.readouterr().out.splitlines()
    outcomes = {line[10:26].strip(): line[:10].strip() for line in lines[1:]}
    assert set(outcomes.values()) <= {"ok", "warning"}
    fine = ("nodes", "room", "versions", "storage", "models", "text", "one storage", "authentication", "dashboard")
    assert [check for check in fine if outcomes[check] != "ok"] == [], lines
    assert list((tmp_path / "runs").iterdir()) == []  # nothing is left behind
    (network,) = [line for line in lines if line[10:].startswith("all-reduce")]
    assert re.fullmatch(
        r"ok +all-reduce +[\d,]+ gradients \(0 MB\) over 2 workers on 1 node in [\d.]+ ms, \S+ GB/s \(gloo\)", network
    )


def test_gradients_are_not_added_up_where_that_cannot_work(settings, ray_cluster, monkeypatch):
    def outcome(storage="ok", num_gradients=1000, **runtime) -> tuple[str, str]:
        facts = {"a": NodeFacts({}, "", [], None, num_gradients=num_gradients)}
        config = parse_config(changed(settings, **{f"runtime__{key}": value for key, value in runtime.items()}))
        verdict = _all_reduce(config, facts, Verdict("one storage", storage, ""))
        return verdict.outcome, verdict.detail

    assert outcome(num_workers=1) == ("ok", "none needed: one worker has nobody to share gradients with")
    assert outcome(num_gradients=0)[0] == outcome(storage="failed")[0] == "not tried"
    needs = {"resources_per_worker": {"CPU": 4.0}}
    assert outcome(**needs)[0] == "not tried"
    assert outcome(**needs)[1].startswith("2 workers need 8 CPU now, and ")

    def fail(*_):
        raise RunError("connection refused")

    monkeypatch.setattr("distil_ray.training.checkup.time_all_reduce", fail)
    assert outcome() == ("failed", "connection refused")


def test_the_group_of_workers_is_not_waited_for(settings, ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    config = parse_config(changed(settings, runtime__resources_per_worker={"CPU": 4.0}))
    with pytest.raises(TimeoutError, match="no places"):
        time_all_reduce(config, 1000, RunFolder(str(tmp_path), "group"))

    def broken(_):
        raise OSError("no such interface")

    monkeypatch.setattr(ray_train, "_all_reduce_per_worker", broken)
    with pytest.raises(RunError, match="no such interface"):
        time_all_reduce(parse_config(settings), 1000, RunFolder(str(tmp_path), "broken"))


def test_what_is_wrong_is_named_and_the_command_fails(settings, ray_cluster, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    broken = changed(
        settings, run__storage_path=str(tmp_path / "file" / "runs"), student__tokenizer=str(tmp_path / "no-tokenizer")
    )
    broken = changed(broken, runtime__num_workers=8, runtime__micro_batch_size=2)

    assert examine(broken, tmp_path) == 1

    output = capsys.readouterr()
    assert "error: 4 of " in output.err
    assert "checks failed: room, tokenizer, storage, models" in output.err
    for check in ("listing", "text", "one storage"):
        assert re.search(rf"^not tried {check} ", output.out, re.MULTILINE)
    assert "no-tokenizer" in output.out
    assert "Traceback" not in output.out + output.err


def test_text_that_is_not_there(settings, tmp_path):
    plan, (verdict,) = _listing(parse_config(changed(settings, data__sources=str(tmp_path / "nowhere"))))

    assert plan is None
    assert (verdict.check, verdict.outcome) == ("listing", "failed")
    assert "nowhere" in verdict.detail
    assert _listing(parse_config(settings))[1] == []


def test_text_that_gives_no_row(settings, ray_cluster, tmp_path, capsys):
    texts = {f"{i}.txt": f"Текст номер {i}, которого токенизатор не знает.\n\n" * 20 for i in range(4)}
    for name, text in texts.items():
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / name).write_text(text)

    unknown = changed(settings, data__sources=str(tmp_path / "text"), data__eval_fraction=0.0, runtime__num_workers=1)

    assert examine(unknown, tmp_path) == 1

    output = capsys.readouterr()
    assert "checks failed: text" in output.err
    assert re.search(
        r"^failed    text .*data.sources: the units that were tried give no row: .*are \[UNK\]", output.out, re.M
    )


@pytest.mark.parametrize("status", [200, 401])
def test_a_job_server_is_asked_without_a_token(status):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert "Authorization" not in self.headers
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert _status_without_token(f"127.0.0.1:{server.server_port}") == status
    finally:
        server.shutdown()
        server.server_close()
    assert _status_without_token(f"127.0.0.1:{server.server_port}") is None


def test_a_bad_configuration_ends_with_2(capsys):
    assert doctor.main(["run.name=x"]) == 2
    assert "the configuration has" in capsys.readouterr().err
