"""How the commands end, and what they say."""

import argparse
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from distil_ray.cli import main_of
from distil_ray.commands import COMMANDS, train
from distil_ray.config import Config, Source, load_config
from distil_ray.errors import InputError, RunError, Stopped

SETTINGS = [
    "run.name=a",
    "teacher.path=org/teacher",
    "data.sources=[/text/*.parquet, {path: '/o ther', column: body}]",
    "optim.num_steps=10",
]


def ending_in(error):
    def command(argv):
        if error is not None:
            raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (RunError("worker 1: lost"), 1, "prog: error: worker 1: lost\n"),
        (InputError("x: given 1, expected 2"), 2, "prog: error: x: given 1, expected 2\n"),
        (Stopped(signal.SIGTERM, "step 5 is saved"), 143, "prog: error: step 5 is saved (SIGTERM)\n"),
        (Stopped(signal.SIGINT, "step 5 is saved"), 130, "prog: error: step 5 is saved (SIGINT)\n"),
        (KeyboardInterrupt(), 130, "prog: error: interrupted; the same command starts from the beginning\n"),
    ],
)
def test_exit_status_and_message(error, status, message, capsys):
    assert main_of("prog", ending_in(error), []) == status
    assert capsys.readouterr() == ("", message)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        main_of("prog", ending_in(ZeroDivisionError()), [])


def ended(script, *signals, shell="exec {python} -c {script}", environment=None):
    """Run a script of a command, once it says "ready" send the signals, and return its status, output and errors."""
    line = shell.format(python=sys.executable, script=shlex.quote(textwrap.dedent(script)))
    process = subprocess.Popen(
        ["bash", "-c", line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )
    if signals:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)  # until it sleeps
    for number in signals:
        process.send_signal(number)
    output, errors = process.communicate()
    return process.returncode, output, errors


WAITING = """
    import sys, time
    from distil_ray.cli import main_of
    def command(argv):
        print('ready', flush=True)
        time.sleep(60)
    sys.exit(main_of('prog', command, None, after_interrupt='no harm is done'))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_a_process_ends_it_with_its_status_and_without_a_traceback(number):
    assert ended(WAITING, number) == (128 + number, "", "prog: error: interrupted; no harm is done\n")


WAITING_FOR_RAY = """
    import sys, time, ray
    from distil_ray.cli import main_of
    from distil_ray.runs.cluster import connect
    def command(argv):
        connect(1)
        task = ray.remote(lambda: time.sleep(60)).remote()
        print('ready', flush=True)
        ray.wait([task])
    sys.exit(main_of('prog', command, None, after_interrupt='no harm is done'))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ray_does_not_come_between_a_signal_and_its_status(ray_cluster, number):
    """For SIGTERM, it would print a stack of its own and end with status 1."""
    found = ended(WAITING_FOR_RAY, number, environment={"RAY_ADDRESS": ray_cluster})
    assert found == (128 + number, "", "prog: error: interrupted; no harm is done\n")


def test_each_command_promises_what_it_keeps(monkeypatch, capsys):
    promises = {
        "train": "resumes from the last checkpoint",
        "tune": "resumes the search",
        "ablate": "keeps finished runs",
        "evaluate": "keeps what is done",
        "report": "starts from the beginning",
        "doctor": "starts from the beginning",
        "drain": "no longer watched",
        "push": "sends what is missing",
    }

    def interrupt(self, *_):
        raise KeyboardInterrupt

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, interrupt)
    for command, promise in promises.items():
        assert importlib.import_module(f"distil_ray.commands.{command}").main([]) == 130
        assert promise in capsys.readouterr().err


PRINTING = """
    import sys
    from distil_ray.cli import main_of
    from distil_ray.errors import RunError
    from distil_ray.runs.console import Console
    def command(argv):
        for number in range(20000):
            Console().line(f'line {number}')
            print('more', file=sys.stderr)
        with open(3, 'w') as kept:
            kept.write('done')
        if FAILS:
            raise RunError('lost')
    sys.exit(main_of('prog', command, None))
"""


@pytest.mark.parametrize(("fails", "status"), [(False, 0), (True, 1)])
@pytest.mark.parametrize("output", ["| head -n 1", "2>&1 | head -n 1", ">&- 2>&-", "> /dev/full 2> /dev/full"])
def test_output_that_nobody_takes_ends_nothing_and_the_status_is_true(tmp_path, fails, status, output):
    script = PRINTING.replace("FAILS", str(fails))
    shell = f"{{python}} -c {{script}} 3> {tmp_path}/kept {output}; exit ${{{{PIPESTATUS[0]}}}}"
    returncode, shown, errors = ended(script, shell=shell)

    assert (returncode, (tmp_path / "kept").read_text()) == (status, "done"), errors
    assert "Traceback" not in errors
    assert shown in ("line 0\n", "more\n", "")


def test_a_terminal_that_lacks_a_character_ends_nothing():
    script = """
        import sys
        from distil_ray.cli import main_of
        from distil_ray.runs.console import Console
        sys.exit(main_of('prog', lambda argv: Console().line('2 × gpu – α'), None))
    """
    environment = {"PYTHONIOENCODING": "ascii"}
    assert ended(script, environment=environment) == (0, "2 \\xd7 gpu \\u2013 \\u03b1\n", "")


def test_a_bad_configuration_ends_a_process_with_2_and_without_a_traceback():
    command = [sys.executable, "-m", "distil_ray.train", *SETTINGS, "optim.learning_rat=1", "runtime.num_workers=0"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("distil_ray.train: error: the configuration has 2 problems:\n")
    assert "did you mean optim.learning_rate?" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "/no/such.yaml"], "distil-ray train: error: the configuration has 1 problem:\n  /no/such.yaml: "),
        (["run.name"], "expected section.key=value"),
        ([], "run.name: missing"),
    ],
)
def test_a_bad_configuration_ends_with_2(arguments, message, capsys):
    assert train.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


NO_PRICES = "no such prices as cluster/aws.yaml has"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mfu", "0.3"], "--mfu: is for the estimate of a dry run; expected --dry-run beside it"),
        (["--cluster", "cluster/aws.yaml"], "--cluster: is for the estimate of a dry run"),
        (["--dry-run", "--mfu", "0.3"], "--mfu: given without runtime.use_gpu"),
        (["--dry-run", "runtime.use_gpu=true", "--mfu", "0"], "--mfu: given 0, expected a share of the GPUs' peak"),
        (["--dry-run", "runtime.use_gpu=true", "--mfu", "1.5"], "--mfu: given 1.5, expected"),
        (["--dry-run", "runtime.use_gpu=true", "--mfu", "nan"], "--mfu: given nan, expected"),
        (["--dry-run", "--cluster", "configs/tiny.yaml"], NO_PRICES),
        (["--dry-run", "--cluster", "/no/such.yaml"], "--cluster: /no/such.yaml cannot be read"),
    ],
)
def test_what_an_estimate_cannot_use_ends_with_2_and_one_message(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert train.main([*SETTINGS, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def test_help_says_which_mfu_is_assumed(capsys):
    from distil_ray.training.estimate import DEFAULT_MFU

    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert f"perf/mfu reports it (default: {DEFAULT_MFU:g})" in " ".join(capsys.readouterr().out.split())


def test_an_unknown_option_ends_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main([*SETTINGS, "--no-such-option"])
    assert caught.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: distil-ray train ")
    listed = set(re.findall(r"^  (\w+\.[\w.\[\]]+)  \(", shown, flags=re.MULTILINE))
    sections = load_config([], SETTINGS).model_dump()
    keys = {f"{section}.{key}" for section in Config.model_fields for key in sections[section]}
    assert listed == keys | {f"data.sources[].{key}" for key in Source.model_fields}


def test_the_printed_configuration_reads_back_as_the_same(capsys, tmp_path):
    (tmp_path / "base.yaml").write_text("distill: {alpha_ce: 4.5e-1}\noptim: {learning_rate: 1e-4, num_steps: 5}\n")
    arguments = ["--config", str(tmp_path / "base.yaml"), *SETTINGS, "runtime.num_workers=[1, 4]"]
    assert train.main([*arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["run"]["name"] == "a"
    (tmp_path / "printed.yaml").write_text(printed)
    config = load_config([str(tmp_path / "printed.yaml")], [])
    assert config == load_config([str(tmp_path / "base.yaml")], arguments[2:])
    assert (config.optim.learning_rate, config.optim.num_steps, config.distill.alpha_ce) == (1e-4, 10, 0.45)
    assert train.main(["--config", str(tmp_path / "printed.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_options_may_stand_between_settings(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("run: {seed: 7}\n")
    assert train.main([*SETTINGS[:2], "--config", str(tmp_path / "a.yaml"), *SETTINGS[2:], "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"]["seed"] == 7


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_without_torch_and_ray(name):
    script = (
        "import importlib, sys\n"
        "try:\n"
        f"    importlib.import_module('distil_ray.commands.{name}').main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "loaded = {'torch', 'ray'} & sys.modules.keys()\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert f"usage: distil-ray {name} " in run.stdout


def test_printing_and_mistakes_answer_without_torch_and_ray():
    script = (
        "import sys\n"
        "from distil_ray.commands import train\n"
        f"assert train.main({[*SETTINGS, '--print-config']!r}) == 0\n"
        "assert train.main(['run.nam=x']) == 2\n"
        "loaded = {'torch', 'ray', 'transformers', 'datasets'} & sys.modules.keys()\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
