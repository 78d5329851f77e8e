"""A report's files: a place that would be lost, or cannot be written to, is named; showing it fails for nobody."""

import os
import subprocess
import sys

import pytest

from distil_ray import ablate, report
from distil_ray.errors import RunError
from distil_ray.reporting.text import make_folder, write_report


def test_no_command_writes_its_report_into_a_jobs_folder(monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    ablation = [
        "--config=configs/quickstart.yaml",
        "--config=configs/ablation.yaml",
        "run.storage_path=/x",
        "--output=page",
    ]
    for main, given in ((report.main, ["s3://runs/a", "--output=page"]), (ablate.main, ablation)):
        assert main(given) == 2
        assert '--output: given "page", which in a Ray job' in capsys.readouterr().err


def test_a_folder_is_made_and_nothing_is_left_in_it(tmp_path):
    make_folder(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_report_that_cannot_be_written_is_a_failed_run(tmp_path):
    write_report(tmp_path, json="{}", html="<p>", markdown="#")
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "report.html", "report.md"}
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot write .*/report.html: No space left on device; what was"):
        write_report(tmp_path, json="{}", html="<p>", markdown="#")


SHOW = "from distil_ray.reporting.text import show; show('é' * 100_000); show('more'); print('and the rest')"


def test_a_reader_that_has_gone_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        result = subprocess.run([sys.executable, "-c", SHOW], stdout=gone, stderr=subprocess.PIPE, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_terminal_that_lacks_a_character_is_no_failure():
    result = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"?" * 100_000 + b"\nmore\nand the rest\n"
