"""What must hold across settings that are each valid on their own, and how values appear in messages."""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # imports this module
    from distil_ray.config.sections import Config


class Problem(NamedTuple):
    """A line for the user, and the settings at fault, those of the line first."""

    keys: tuple[str, ...]
    line: str


def problem(keys: tuple[str, ...], message: str) -> Problem:
    return Problem(keys, f"{keys[0]}: {message}")


def inconsistencies(config: "Config") -> Iterator[Problem]:
    """Yield what is wrong across the settings of a configuration."""
    yield from _data(config)
    yield from _student(config)
    yield from _distill(config)
    yield from _optim(config)
    yield from _runtime(config)


def _data(config: "Config") -> Iterator[Problem]:
    data = config.data
    replaced = data.mask_replace_prob + data.random_replace_prob
    if replaced > 1 + 1e-9:
        yield problem(
            ("data.mask_replace_prob", "data.random_replace_prob"),
            f"given {data.mask_replace_prob:g}, which makes {replaced:g} with "
            f"data.random_replace_prob {data.random_replace_prob:g}; expected a sum of at most 1",
        )
    num_maskable = data.max_seq_length - 2
    if round(data.mlm_probability * num_maskable) < 1:
        yield problem(
            ("data.mlm_probability", "data.max_seq_length"),
            f"given {data.mlm_probability:g}, which masks none of the {num_maskable} positions of a row "
            f"(data.max_seq_length {data.max_seq_length}); expected at least {1 / num_maskable:.3g}",
        )
    if data.eval_sources is not None and "eval_fraction" in data.model_fields_set:
        yield problem(
            ("data.eval_fraction", "data.eval_sources"),
            f"given {data.eval_fraction:g} beside data.eval_sources, expected only one of them",
        )


def _student(config: "Config") -> Iterator[Problem]:
    student = config.student
    if student.path is not None and student.config is not None:
        yield problem(("student.config", "student.path"), "given beside student.path, expected only one of them")
    if isinstance(student.config, dict) and not isinstance(student.config.get("model_type"), str):
        yield problem(
            ("student.config",), "given a mapping without model_type, expected one such as {model_type: bert}"
        )
    made_from_teacher = student.path is None and student.config is None
    if config.teacher is None and made_from_teacher:
        yield problem(
            ("student", "teacher", "student.path", "student.config"),
            "given nothing to make it from; without a teacher, expected student.path, "
            "or student.config and student.tokenizer",
        )
    elif config.teacher is None and student.path is None and student.tokenizer is None:
        yield problem(
            ("student.tokenizer", "teacher", "student.path", "student.config"),
            "missing; expected a local folder or Hub id, as there is no teacher to take a tokenizer from",
        )
    idle = () if made_from_teacher else ("layers", "architecture", "init")
    for name in idle:
        given = getattr(student, name)
        if given == type(student).model_fields[name].default or (name == "init" and student.path is None):
            continue  # weights of a student that is described by its config are random in any case
        origin = "student.path" if student.path is not None else "student.config"
        yield problem(
            (f"student.{name}", origin),
            f"given {shown(given)}, which applies only to a student made from the teacher's layers; "
            f"expected no such key beside {origin}",
        )


def _distill(config: "Config") -> Iterator[Problem]:
    distill = config.distill
    alphas = ("distill.alpha_ce", "distill.alpha_mlm", "distill.alpha_cos")
    if config.teacher is None and (distill.alpha_ce > 0 or distill.alpha_cos > 0):
        yield problem(
            (alphas[0], alphas[2], "teacher"),
            f"given {distill.alpha_ce:g}, and distill.alpha_cos {distill.alpha_cos:g}, without a teacher; "
            "expected both set to 0, or a teacher.path",
        )
    if distill.alpha_ce == distill.alpha_mlm == distill.alpha_cos == 0:
        yield problem(alphas, "given 0 like distill.alpha_mlm and distill.alpha_cos, expected one of the three above 0")


def _optim(config: "Config") -> Iterator[Problem]:
    optim = config.optim
    if (optim.num_steps is None) == (optim.num_epochs is None):
        given = "neither it nor optim.num_epochs" if optim.num_steps is None else "both it and optim.num_epochs"
        yield problem(("optim.num_steps", "optim.num_epochs"), f"given {given}, expected exactly one of them")


def _runtime(config: "Config") -> Iterator[Problem]:
    runtime, rows = config.runtime, config.optim.global_batch_size
    workers = runtime.max_workers
    if runtime.min_workers > workers:
        yield problem(
            ("runtime.num_workers",),
            f"given {shown(runtime.num_workers)}, expected [min, max] with min at most max",
        )
    elif rows % workers:
        yield problem(
            ("optim.global_batch_size", "runtime.num_workers"),
            f"given {rows}, which {workers} workers (runtime.num_workers) cannot share equally; expected "
            f"{_nearest(rows, range(workers, rows + 2 * workers, workers))}, "
            f"or {_nearest(workers, divisors(rows))} workers",
        )
    elif runtime.micro_batch_size is not None and config.block_rows % runtime.micro_batch_size:
        yield problem(
            ("runtime.micro_batch_size", "optim.global_batch_size", "runtime.num_workers"),
            f"given {runtime.micro_batch_size}, which does not divide a worker's {config.block_rows} rows "
            f"(optim.global_batch_size {rows} over {workers} workers); expected "
            f"{_nearest(runtime.micro_batch_size, divisors(config.block_rows))}",
        )


def divisors(number: int) -> list[int]:
    """Return all divisors, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _nearest(value: int, choices: Iterable[int]) -> str:
    """Return the choices just below and just above ``value``, as text."""
    choices = list(choices)
    below = [choice for choice in choices if choice < value][-1:]
    above = [choice for choice in choices if choice > value][:1]
    return " or ".join(map(str, below + above))


def shown(value: Any) -> str:
    """Return a value as YAML would have it, on one line and cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}…"
