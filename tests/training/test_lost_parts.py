"""Processes between driver and workers, Ray's and ours, lost in the middle of a run."""

import subprocess
from pathlib import Path

import psutil
import pytest
from runs import changed, command, has_got_to, records, wait_for


def processes(title: str) -> list[psutil.Process]:
    """Those with such a title of the Ray that this process has started, and of no other on this machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return found


@pytest.mark.slow
def test_a_run_outlives_its_event_queue_and_says_how_to_resume_without_its_controller(settings, ray_cluster, tmp_path):
    settings = changed(settings, optim__num_steps=100_000, checkpoint__every_steps=20, runtime__num_workers=1)
    arguments, environment = command(settings, tmp_path, ray_cluster)
    folder = Path(settings["run"]["storage_path"]) / "run"
    with (tmp_path / "output.txt").open("w+") as output:
        run = subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
        try:
            wait_for(lambda: has_got_to(folder, 20))
            (exchange,) = processes("_Exchange")
            exchange.kill()
            step = records(folder)[-1]["step"]
            wait_for(lambda: has_got_to(folder, step + 40))
            assert run.poll() is None
            said = len((tmp_path / "output.txt").read_text())
            wait_for(lambda: len((tmp_path / "output.txt").read_text()) > said)  # the new one is listened to
            (controller,) = processes("TrainController")
            controller.kill()
            assert run.wait(timeout=120) == 1
        finally:
            run.kill()

    said = (tmp_path / "output.txt").read_text()
    assert "the run failed" in said
    assert "the same command" in said
    assert "from checkpoint_" in said
    assert "Traceback" not in said
