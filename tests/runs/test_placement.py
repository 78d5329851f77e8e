"""Runs that share a cluster: each waits for room for all that it needs, and says so."""

import signal
import subprocess
import threading

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from runs import changed, command, records, wait_for

from distil_ray.config import parse_config
from distil_ray.runs import placement
from distil_ray.runs.placement import turn_with_room

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def config(settings, monkeypatch):
    """A run that needs 4 of the cluster's 6 slots; waiting is told of at once."""
    monkeypatch.setattr(placement, "_SILENT_SECONDS", 0.0)
    return parse_config(changed(settings, runtime__num_workers=2, runtime__data_cpus=2))


def is_free() -> bool:
    groups = placement_group_table().values()
    return ray.available_resources()["CPU"] == 6.0 and all(group["state"] == "REMOVED" for group in groups)


def test_a_run_waits_for_room_for_all_its_parts_and_says_so(config):
    lines, has_room, may_end = [], threading.Event(), threading.Event()
    others = placement_group([{"CPU": 1.0}] * 3)  # leave 3 slots: enough for the workers alone
    assert others.wait(30)

    def wait() -> None:
        with turn_with_room(config, lines.append):
            has_room.set()
            may_end.wait(60)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: bool(lines))
    assert not has_room.is_set()
    assert lines == [
        "waiting for room on the cluster: 4 CPU are needed at once for workers and data tasks, 3 CPU are free"
    ]
    remove_placement_group(others)
    assert has_room.wait(30)
    wait_for(is_free)  # for Ray Train and the data tasks to take
    may_end.set()
    thread.join()


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({"data_cpus": 2}, 2),
        ({"data_cpus": 64}, 4),  # what two workers leave of six slots
        ({"data_cpus": 64, "resources_per_worker": {"CPU": 3.0}}, 1),  # more are still to come
        ({"data_cpus": 64, "data_label": {"no-such": "label"}}, 1),
    ],
)
def test_no_more_data_slots_are_waited_for_than_there_are(settings, runtime, expected):
    settings["runtime"] |= {"num_workers": 2} | runtime
    assert placement._num_data_slots(parse_config(settings)) == expected


def test_one_run_at_a_time_is_placed_until_its_turn_ends(config):
    lines, has_turn = [], threading.Event()

    def wait() -> None:
        with turn_with_room(config, lines.append):
            has_turn.set()

    with turn_with_room(config, print) as turn:
        thread = threading.Thread(target=wait)
        thread.start()
        wait_for(lambda: bool(lines))
        assert not has_turn.is_set()
        turn.end()
        assert has_turn.wait(30)
    thread.join()
    assert lines[0].startswith("waiting: another run is being placed on this cluster")


def test_a_trial_that_is_killed_while_it_waits_leaves_neither_turn_nor_room_taken(config):
    others = placement_group([{"CPU": 1.0}] * 5)
    assert others.wait(30)

    class Trial:  # within the function, so that it travels with its code
        def wait(self, config) -> None:
            with turn_with_room(config, print):
                pass

    trial = ray.remote(Trial).options(num_cpus=0).remote()
    trial.wait.remote(config)

    def is_waiting() -> bool:
        return any(group["state"] == "PENDING" for group in placement_group_table().values())

    wait_for(is_waiting)
    ray.kill(trial)
    remove_placement_group(others)
    with turn_with_room(config, print):
        pass
    wait_for(is_free)


@pytest.mark.slow
def test_two_runs_with_room_for_one_both_finish(settings, ray_cluster, tmp_path):
    """Both workers would fit at once, with no slot left for data tasks."""
    settings = changed(settings, runtime__num_workers=1, runtime__resources_per_worker={"CPU": 3.0})
    runs = []
    for name in ("first", "second"):
        arguments, environment = command(changed(settings, run__name=name), tmp_path / name, ray_cluster)
        runs.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        outputs = [run.communicate()[0] for run in runs]
    finally:
        for run in runs:
            run.kill()

    assert [run.returncode for run in runs] == [0, 0], outputs
    assert any("waiting" in output for output in outputs)
    spans = [
        (found[0]["time"], found[-1]["time"])
        for found in (records(tmp_path / "runs" / name) for name in ("first", "second"))
    ]
    (_, end), (start, _) = sorted(spans)
    assert start > end


def test_a_run_that_waits_for_room_ends_at_once_when_it_is_stopped(settings, ray_cluster, tmp_path):
    others = placement_group([{"CPU": 1.0}] * 4)
    assert others.wait(30)
    arguments, environment = command(settings, tmp_path, ray_cluster)
    with (tmp_path / "output.txt").open("w+") as output:
        run = subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
        try:
            wait_for(lambda: "waiting for room on the cluster" in (tmp_path / "output.txt").read_text())
            run.send_signal(signal.SIGTERM)
            assert run.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            run.kill()
            remove_placement_group(others)

    said = (tmp_path / "output.txt").read_text()
    assert "3 CPU are needed at once for workers and data tasks, 2 CPU are free" in said
    assert "stopped at once; the same command" in said
    assert "Traceback" not in said
    wait_for(is_free)
