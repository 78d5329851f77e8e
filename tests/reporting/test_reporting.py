"""A report says the same on its page, in Markdown, in JSON and on a terminal; and its files are written where asked."""

import json
import os
import re
import subprocess
import sys

import pytest
from html_checker import Checker

from distil_ray.commands import ablate, evaluate, report, vocabulary
from distil_ray.errors import RunError
from distil_ray.reporting.plots import line_chart
from distil_ray.reporting.report import Cell, Charts, Code, Gap, Report, ReportSection, Table, make_folder, publish

FIGURES = Table(
    [
        ["model", "loss", "agrees with teacher"],
        [Cell("teacher", "path/to/it"), "2.500", "–"],
        [Cell("<a>", "distilled"), "12.750", Cell("62.5%", is_right=True)],
    ]
)
CHART = line_chart({"<a>": [(0, 1.0), (10, 0.5)]}, x_label="x", y_label="y", levels={"t": 0.25})
REPORT = Report(
    title="Report on <a> & b",
    findings=["It helps."],
    sections=[
        ReportSection("Figures", [FIGURES, "b is not finished."]),
        ReportSection("Curves", [Charts([("Loss", CHART)])]),
        ReportSection("Guesses", [Gap("The ", "cat", " sat <still>."), Code('load("/runs/a")')], is_brief=False),
        ReportSection("Importance", [Table([["setting", ""], ["a|b", Cell("", bar=0.4)]], is_text=True)]),
    ],
    footer="made today",
    data={"models": [{"mlm_loss": 2.5}]},
)


def test_the_page_is_well_formed_and_loads_nothing():
    html = REPORT.to_html()
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert checker.loaded == []
    assert "<script" not in html
    assert "@import" not in html


def test_everything_is_on_the_page_and_escaped():
    html = REPORT.to_html()
    for text in (
        "<h1>Report on &lt;a&gt; &amp; b</h1>", "<p>It helps.</p>", "b is not finished.", "<td>2.500</td>",
        "<td>teacher<br><small>path/to/it</small></td>", '<td class="right">62.5%</td>', "<h2>Curves</h2>", "<svg",
        'The <span class="gap">cat</span> sat &lt;still&gt;.', "load(&#34;/runs/a&#34;)", "made today",
        '<table class="text">', '<div class="bar" style="width: 40%"></div>', "<th>agrees with teacher</th>",
    ):  # fmt: skip
        assert text in html
    assert "<a>" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)


def test_markdown():
    assert REPORT.to_markdown(level=2).splitlines() == [
        "## Report on <a> & b",
        "",
        "- It helps.",
        "",
        "### Figures",
        "",
        "| model | loss | agrees with teacher |",
        "|---|---|---|",
        "| teacher (path/to/it) | 2.500 | – |",
        "| <a> (distilled) | 12.750 | 62.5% |",
        "",
        "b is not finished.",
        "",
        "### Guesses",
        "",
        "The **cat** sat <still>.",
        "",
        "```python",
        'load("/runs/a")',
        "```",
        "",
        "### Importance",
        "",
        "| setting |  |",
        "|---|---|",
        "| a\\|b | 40% |",
        "",
        "made today",
    ]


def test_terminal_text_is_aligned_and_brief():
    assert REPORT.to_text().splitlines() == [
        "It helps.",
        "",
        "Figures:",
        "model      loss  agrees with teacher",
        "teacher   2.500                    –",
        "<a>      12.750                62.5%",
        "b is not finished.",
        "",
        "Importance:",
        "setting",
        "a|b",
    ]


def test_json_is_for_other_programs():
    assert json.loads(REPORT.to_json()) == {
        "title": "Report on <a> & b",
        "findings": ["It helps."],
        "models": [{"mlm_loss": 2.5}],
        "made_by": "made today",
    }


# ---------------------------------------------------------------------------------------------------- files


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


def test_no_command_takes_a_url_for_its_output(tmp_path, monkeypatch, capsys):
    """It would be the local folder s3:/bucket, found by nobody."""
    monkeypatch.chdir(tmp_path)
    configs = [f"--config={name}" for name in ("quickstart", "ablation")]
    for main, given in (
        (report.main, ["runs/a"]),
        (ablate.main, configs),
        (evaluate.main, ["--teacher=a", "--student=b"]),
        (vocabulary.main, ["--source=a.txt"]),
    ):
        assert main([*given, "--output=s3://bucket/page"]) == 2
        assert '--output: given "s3://bucket/page", a URL; expected a path on this machine' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_and_nothing_is_left_in_it(tmp_path):
    make_folder(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_report_that_cannot_be_written_is_a_failed_run(tmp_path):
    publish(REPORT, tmp_path / "report")
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "report.html", "report.md"}
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot write .*/report.html: No space left on device; what was"):
        publish(REPORT, tmp_path / "report")


SHOW = """from distil_ray.reporting.report import _show
_show('é' * 100_000)
_show('more')
print('and the rest')
"""


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
