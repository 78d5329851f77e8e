"""Nodes that cannot reach a model are named before anything is trained on them."""

import time
from contextlib import closing

import pytest
import ray
from small_models import small_model
from training_parts import save_model

from distil_ray.errors import InputError
from distil_ray.evaluation import nodes
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.nodes import (
    Progress,
    check_reachable,
    completed,
    join,
    listing_of,
    num_at_a_time,
    remote_task,
)
from distil_ray.evaluation.protocol import Resources
from distil_ray.models.origin import Origin


def test_nodes_are_asked_for_the_folders_of_models(ray_cluster, tmp_path):
    whole, other = (save_model(tmp_path / name, small_model("bert", num_hidden_layers=1)) for name in ("a", "b"))
    half = Model("half", Origin(other))
    models = {Model("teacher", Origin(whole)): listing_of(whole), half: listing_of(other)}
    check_reachable(models, ray.nodes())

    models[half] = listing_of(other) | {"model.safetensors": 5}
    models[Model("gone", Origin("/no/such/folder"))] = listing_of(whole)
    models[Model("hub", Origin("org/nothing", "0" * 40))] = {}
    with pytest.raises(InputError) as caught:
        check_reachable(models, ray.nodes())
    first, *problems, last = str(caught.value).splitlines()
    assert first == "not all nodes of the cluster can load the models:"
    address = ray.nodes()[0]["NodeManagerAddress"]
    assert problems[0] == f"  node {address}: half: {other} is another model there: model.safetensors differ in size"
    assert problems[1] == f"  node {address}: gone: there is no folder /no/such/folder"
    assert problems[2].startswith(f"  node {address}: hub: there is no local folder 'org/nothing'")
    assert len(problems) == 3
    assert last.startswith("expected folders that all nodes share")


def test_a_cluster_of_this_machine_alone_is_not_asked(ray_cluster):
    """Which would take seconds: what is not there on this machine has been refused before."""
    assert "Ray" in join([Model("gone", Origin("/no/such/folder"))], Resources())


def test_tasks_start_in_the_order_in_which_they_were_given(ray_cluster):
    """So that an evaluation goes through seed after seed, and one that is stopped early has whole ones."""

    def doubled_at(number):
        return 2 * number, time.monotonic()

    alone = Resources(cpus=int(ray.cluster_resources()["CPU"]))
    tasks = [remote_task(doubled_at, alone, Model("any", Origin("/any"))) for _ in range(12)]
    running = {task.remote(ray.put(number)): number for number, task in enumerate(tasks)}
    # By the tasks' own clock: of several that have ended, Ray names any first.
    ended = sorted(completed(running, "tasks"), key=lambda one: one[1][1])
    assert [(number, doubled) for number, (doubled, _) in ended] == [(number, 2 * number) for number in range(12)]


def test_tasks_tell_how_far_they_are(ray_cluster, tmp_path, monkeypatch):
    def told(progress, job, seen):
        tell = progress.teller(job)
        for share in (0.125, 0.5, 0.501):
            tell(share)
        while not seen.exists():  # what is told until then is told while the driver waits
            time.sleep(0.05)

    for name in ("_FIRST_SECONDS", "_MOST_SECONDS"):
        monkeypatch.setattr(nodes, name, 0.2)
    lines, seen, num_cpus = [], tmp_path / "seen", int(ray.cluster_resources()["CPU"])
    jobs = [f"job {number}" for number in range(num_cpus + 1)]
    with closing(Progress()) as progress:
        assert progress.line(jobs) == f"{len(jobs)} to go"
        tasks = [remote_task(told, Resources(), Model("any", Origin("/any"))) for _ in jobs]
        running = {task.remote(progress, job, seen): job for task, job in zip(tasks, jobs, strict=True)}

        def look():
            # The last waits for a place; less than a hundredth more is not passed on.
            if [share for share, _ in progress.shares(jobs).values()] == [0.5] * num_cpus:
                lines.append(progress.line(running.values()))
                seen.touch()

        assert sorted(job for job, _ in completed(running, "tasks", look)) == jobs
    assert f"{num_cpus + 1} to go: job 0 50%; " in lines[0]
    assert lines[0].count(" 50%") == min(num_cpus, 4)
    assert lines[0].endswith(f"; {num_cpus - 4} more running") == (num_cpus > 4)


def test_of_long_tasks_is_told_ever_more_rarely(monkeypatch):
    waited, answers = [], [[], [], [], [], [], ["a"], [], ["b"]]

    def wait(references, num_returns, timeout):
        waited.append(timeout)
        return answers[len(waited) - 1], references

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", str.upper)
    told = []
    assert list(completed({"a": 1, "b": 2}, "tasks", lambda: told.append(len(waited)))) == [(1, "A"), (2, "B")]
    assert waited == [60, 120, 240, 480, 600, 600, 60, 120]
    assert told == [1, 2, 3, 4, 5, 7]


def test_as_many_run_at_a_time_as_there_are_cpus_for(ray_cluster):
    num_cpus, models = int(ray.cluster_resources()["CPU"]), [Model("any", Origin("/any"))]
    assert num_at_a_time(models, Resources()) == num_cpus
    assert num_at_a_time(models, Resources(cpus=num_cpus)) == num_at_a_time(models, Resources(cpus=99)) == 1


def test_a_card_is_not_a_part_of_a_model(tmp_path):
    path = save_model(tmp_path, small_model("bert", num_hidden_layers=1))
    before = listing_of(path)
    (tmp_path / "README.md").write_text("More.")
    assert listing_of(path) == before
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= before.keys()
