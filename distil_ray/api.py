"""From Python: what `distil-ray train`, `tune` and `evaluate` do, as functions that the package exports.

Nothing heavy is imported before a function is called. Each leaves the caller's process as it was: a Ray that it has
started is shut down, one that the caller had started is used and goes on; signal handlers are the caller's again.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from distil_ray.errors import InputError, Stopped

if TYPE_CHECKING:
    from distil_ray.config import Config, Given
    from distil_ray.evaluation.scoreboard import Scoreboard

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SET_BY_RUNS = ("RAY_", "TUNE_", "MALLOC_")  # what the names of environment variables begin with


class Trained(NamedTuple):
    """A finished run.

    Attributes:
        folder: path or URL of the run's folder.
        export: path or URL of the student, a folder that transformers loads.
        figures: the last ones by name, such as ``eval/mlm_loss``; see docs/start.md, "A run's folder", for the names.
    """

    folder: str
    export: str
    figures: dict[str, Any]


class Tuned(NamedTuple):
    """A finished search.

    Attributes:
        config: of a run that trains the best settings again, for `train`.
        settings: what the best trial changed, by dotted key; empty if the unchanged settings were best.
        metric: the objective, such as ``eval/mlm_loss``.
        value: the best trial's.
        folder: path or URL of the search's folder.
        report: path or URL of its page.
    """

    config: "Config"
    settings: dict[str, Any]
    metric: str
    value: float
    folder: str
    report: str


def train(*configs: "Given") -> Trained:
    """Distil a student, or do the rest of it: the same call resumes what was interrupted, and repeats nothing.

    Args:
        configs: mappings (nested, or with dotted keys such as ``{"optim.num_steps": 100}``), paths of YAML files, names
            of recipes that come with the package, or configurations; later ones override earlier ones.

    Raises:
        InputError: bad configuration or input, found before the start where that is possible.
        RunError: the run started and failed.
        KeyboardInterrupt: it was interrupted; when steps had been done, the last one is saved.
        Stopped: the same, by SIGTERM or SIGHUP.
    """
    from distil_ray.config import load_config

    config = load_config(configs)
    with _as_guest():
        from distil_ray.runs.console import Console
        from distil_ray.runs.storage import EXPORT_FOLDER, FINISHED_FILE, RunFolder
        from distil_ray.training.launcher import launch

        launch(config, Console())
        folder = RunFolder(config.run.storage_path, config.run.name)
        return Trained(folder.path, folder.join(EXPORT_FOLDER), folder.read_json(FINISHED_FILE))


def tune(*configs: "Given", retry_failed: bool = False) -> Tuned:
    """Search for the best settings, or do the rest of it.

    Args:
        configs: as of `train`, with a section ``search``.
        retry_failed: also run trials again that failed before.

    Raises:
        InputError: bad configuration or input, found before the start where that is possible.
        RunError: no trial finished.
        KeyboardInterrupt: it was interrupted; the same call resumes it.
    """
    from distil_ray.studies.settings import load_search

    plan = load_search(configs)
    with _as_guest():
        from distil_ray.reporting.report import NAME
        from distil_ray.studies.trials import best_config
        from distil_ray.studies.tuner import search

        trial = search(plan, retry_failed=retry_failed)
        assert trial.value is not None
        config = best_config(plan, trial)
        report = f"{plan.folder}/{NAME}.html"
        return Tuned(config, dict(trial.settings), plan.search.metric, trial.value, plan.folder, report)


def evaluate(
    teacher: str | os.PathLike[str],
    students: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str],
    tasks: Sequence[str] = (),
    glue: str | os.PathLike[str] = "nyu-mll/glue",
    protocol: "Given | None" = None,
    seeds: int = 5,
    second_step: bool = False,
    text: Sequence[str | Mapping[str, Any]] = (),
    on_device: str | None = None,
    card: bool = False,
) -> "Scoreboard":
    """Compare students with their teacher, or do the rest of it; finished fine-tunings are not repeated.

    Args:
        teacher: folder or id on the Hub.
        students: one, several, or several by the name of their row.
        output: local folder for report.html, .md, .json and each result.
        tasks: of GLUE and of the protocol; without names all of them, or none if ``text`` is given.
        glue: folder laid out like the Hub's data set, or its id.
        protocol: how models are evaluated, given like a configuration; the keys are in `distil-ray evaluate --help`.
        seeds: fine-tunings of each model on each task.
        second_step: also fine-tune each student with the soft targets of the fine-tuned teacher: rows ``NAME (D)``.
        text: on which models are evaluated by masked language modelling, without fine-tuning; like ``data.sources``.
        on_device: a task; each model, fine-tuned for it, is exported to ONNX and int8, and compared.
        card: add each student's tables to its model card.

    Returns:
        Each model's scores, figures and speed, the teacher's first.

    Raises:
        InputError: a model, a task, text or an earlier result cannot be used.
        RunError: fine-tunings failed; the others are kept.
        KeyboardInterrupt: it was interrupted; the same call keeps what is done.
    """
    from distil_ray.evaluation.conduct import conduct
    from distil_ray.evaluation.protocol import load_protocol

    if isinstance(students, Mapping):
        named = [f"{name}={os.fspath(path)}" for name, path in students.items()]
    else:
        named = [os.fspath(one) for one in ([students] if isinstance(students, str | os.PathLike) else students)]
    with _as_guest():
        try:
            return conduct(
                os.fspath(teacher),
                named,
                load_protocol([] if protocol is None else [protocol]),
                output=os.fspath(output),
                tasks=tasks,
                glue=os.fspath(glue),
                num_seeds=seeds,
                with_second_step=second_step,
                text=text,
                device_task=on_device,
                with_card=card,
            )
        except InputError as error:  # which names the command's options
            raise InputError(re.sub(r"--([a-z][a-z-]+)", _to_parameter, str(error))) from error


def _to_parameter(option: re.Match[str]) -> str:
    """--second-step -> second_step."""
    return {"student": "students"}.get(option[1], option[1].replace("-", "_"))


@contextmanager
def _as_guest() -> Iterator[None]:
    """Leave the caller's process as it was.

    Raises:
        KeyboardInterrupt: Ctrl-C, or a notebook's interrupt, has stopped a run; says what is saved.
    """
    import ray

    was_connected = ray.is_initialized()
    environment = _set_by_runs()
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if is_main else {}
    try:
        yield
    except Stopped as stop:
        if stop.signal_number == signal.SIGINT:
            raise KeyboardInterrupt(str(stop)) from None
        raise
    finally:
        if not was_connected:
            ray.shutdown()
        for name in _set_by_runs().keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for number, handler in handlers.items():  # Ray puts one for SIGTERM in place
            if handler is not None:  # not one that Python cannot put back
                signal.signal(number, handler)


def _set_by_runs() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_SET_BY_RUNS)}
