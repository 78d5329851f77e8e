"""Figures of several models -> sentences: what distilling and the initialisation are each worth."""

from dataclasses import dataclass
from typing import Literal

from distil_ray.comparison.page import Row

Kind = Literal["distilled", "teacher's layers, MLM only", "random weights, MLM only", "MLM only"]


@dataclass(frozen=True)
class Contender:
    """A student's figures, and by which of the ways to train it came about."""

    row: Row
    kind: Kind


def findings(teacher: Row | None, contenders: list[Contender]) -> list[str]:
    """Say what the comparison shows, also where it is not what one hopes for.

    The contenders must be comparable: students of one shape, trained on the same batches and evaluated on the same
    held-out rows.
    """
    distilled = _best(contenders, "distilled")
    same_start = _best(contenders, "teacher's layers, MLM only")
    random_start = _best(contenders, "random weights, MLM only")
    sentences = []
    if distilled and teacher:
        sentences += _against_teacher(distilled, teacher)
    if distilled and same_start:
        sentences.append(
            _compare(
                "The teacher's losses",
                "the same start without them",
                distilled.mlm_loss,
                same_start.mlm_loss,
            )
        )
    if same_start and random_start:
        sentences.append(
            _compare("The teacher's layers as a start", "random weights", same_start.mlm_loss, random_start.mlm_loss)
        )
    elif distilled and random_start:
        sentences.append(
            _compare(
                "Losses and layers of the teacher together", "random weights", distilled.mlm_loss, random_start.mlm_loss
            )
        )
    return sentences


def _best(contenders: list[Contender], kind: Kind) -> Row | None:
    rows = [contender.row for contender in contenders if contender.kind == kind and contender.row.mlm_loss is not None]
    return min(rows, key=lambda row: row.mlm_loss or 0.0, default=None)


def _compare(what: str, instead_of: str, loss: float | None, other: float | None) -> str:
    assert loss is not None
    assert other is not None
    verb = "lower" if loss < other else "do not lower"
    return (
        f"{what} {verb} the held-out MLM loss: {loss:.3f} against {other:.3f} for {instead_of} ({loss - other:+.3f})."
    )


def _against_teacher(student: Row, teacher: Row) -> list[str]:
    parts = []
    if student.cost and teacher.cost:
        fewer = 1 - student.cost.num_parameters / teacher.cost.num_parameters
        faster = teacher.cost.latency_ms / student.cost.latency_ms - 1
        parts += [f"{fewer:.0%} fewer parameters", f"an encoder that is {faster:.0%} faster on this CPU"]
    if student.mlm_accuracy is not None and teacher.mlm_accuracy:
        parts.append(f"{student.mlm_accuracy / teacher.mlm_accuracy:.0%} of its held-out accuracy")
    return [f"{student.name} against its teacher: {', '.join(parts)}."] if parts else []
