"""One micro-batch through teacher and student to the named loss sums.

Shapes: B rows, T tokens per row, K masked positions per row, N selected positions, D width, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from distil_ray.distillation.losses import IGNORE_INDEX, cosine_loss, mlm_loss, soft_target_loss
from distil_ray.errors import InputError
from distil_ray.models.loading import encode, predict

Term = Literal["ce", "mlm", "cos"]
CePositions = Literal["masked", "all"]

# The logits that one model may have alive at once: 512 MiB in fp32. The losses hold about five such matrices
# (both models' logits and log-probabilities, and a gradient), which bounds them to some 2.5 GiB whatever the
# micro-batch and the vocabulary. With BERT's vocabulary it is 4,397 positions, the masked ones of 29k tokens:
# enough for matrix products at full speed, and for most micro-batches with `ce_positions: masked` one chunk.
MAX_LOGITS = 2**27


class Distiller(nn.Module):
    """The student and its losses against a frozen teacher.

    The teacher is not a submodule: parameters(), state_dict(), train() and to() concern the student alone. It is put
    into eval mode and frozen in place; code that moves the student to a device must move the teacher, too.

    Args:
        student: trained; in whichever mode the caller puts the Distiller.
        teacher: None if no term needs one.
        terms: the losses with a positive weight; what only the others would need is not computed.
        temperature: of the soft targets.
        ce_positions: ``masked`` compares the distributions at the masked positions, ``all`` at every one.

    Raises:
        InputError: no or unknown terms, a term without its teacher, a temperature that is not positive, or a
            teacher whose vocabulary (for ce) or width (for cos) is not the student's.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        *,
        terms: frozenset[Term],
        temperature: float,
        ce_positions: CePositions,
    ) -> None:
        super().__init__()
        _check_terms(student, teacher, terms, temperature)
        self.student = student
        self.terms = terms
        self.temperature = temperature
        self.ce_positions = ce_positions
        self._teacher: tuple[PreTrainedModel, ...] = ()  # a tuple, so that it is not registered as a submodule
        if teacher is not None and terms & {"ce", "cos"}:
            teacher.eval()
            self._teacher = (teacher.requires_grad_(False),)

    def counts(self, num_rows: int, max_seq_length: int, num_masked: int) -> dict[str, int]:
        """Return how many positions each term's sum has, in ``num_rows`` rows of ``num_masked`` masks."""
        masked, every = num_rows * num_masked, num_rows * max_seq_length
        counts = {"ce": every if self.ce_positions == "all" else masked, "mlm": masked, "cos": every}
        return {term: count for term, count in counts.items() if term in self.terms}

    def forward(self, input_ids: Tensor, masked_positions: Tensor, masked_labels: Tensor) -> dict[str, Tensor]:
        """Return each term's sum over the micro-batch, an fp32 scalar on the inputs' device.

        Args:
            input_ids: [B, T] int64, rows without padding.
            masked_positions: [B, K] int64, distinct within a row.
            masked_labels: [B, K] int64, the true ids there.
        """
        student_hidden = encode(self.student, input_ids)
        teacher_hidden = self._encode_teacher(input_ids)
        sums: dict[str, Tensor] = {}
        if "cos" in self.terms:
            assert teacher_hidden is not None
            sums["cos"] = cosine_loss(student_hidden, teacher_hidden)
        if not self.terms & {"ce", "mlm"}:
            return sums

        if "ce" in self.terms and self.ce_positions == "all":
            labels = _scatter_labels(input_ids.shape, masked_positions, masked_labels)
            rows = None
        else:
            labels = masked_labels.flatten()
            rows = _flat_positions(masked_positions, input_ids.shape[1])
        student_rows = _select(student_hidden, rows)
        teacher_rows = _select(teacher_hidden, rows) if "ce" in self.terms and teacher_hidden is not None else None
        return sums | self._head_sums(student_rows, teacher_rows, labels)

    @torch.no_grad()
    def _encode_teacher(self, input_ids: Tensor) -> Tensor | None:
        return encode(self._teacher[0], input_ids) if self._teacher else None

    def _head_sums(self, student_rows: Tensor, teacher_rows: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        """Sum the losses on the logits of [N, D] hidden states, in equal chunks of at most MAX_LOGITS logits.

        Autograd would keep each chunk's logits for the backward pass; of several, it recomputes them.
        """
        max_rows = max(1, MAX_LOGITS // self.student.config.vocab_size)
        num_chunks = -(-len(student_rows) // max_rows)
        if num_chunks == 1:
            return self._chunk_sums(student_rows, teacher_rows, labels)
        student_chunks = student_rows.tensor_split(num_chunks)
        teacher_chunks = (None,) * num_chunks if teacher_rows is None else teacher_rows.tensor_split(num_chunks)
        sums: dict[str, Tensor] = {}
        for chunk in zip(student_chunks, teacher_chunks, labels.tensor_split(num_chunks), strict=True):
            # The head has no dropout, so there is no random state to restore.
            part = checkpoint(self._chunk_sums, *chunk, use_reentrant=False, preserve_rng_state=False)
            sums = {term: sums[term] + part[term] if sums else part[term] for term in part}
        return sums

    def _chunk_sums(self, student_rows: Tensor, teacher_rows: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        student_logits = predict(self.student, student_rows)
        sums: dict[str, Tensor] = {}
        if teacher_rows is not None:
            with torch.no_grad():
                teacher_logits = predict(self._teacher[0], teacher_rows)
            sums["ce"] = soft_target_loss(student_logits, teacher_logits, self.temperature)
        if "mlm" in self.terms:
            sums["mlm"] = mlm_loss(student_logits, labels)
        return sums


def _flat_positions(positions: Tensor, num_tokens: int) -> Tensor:
    """[B, K] positions within a row -> [B * K] positions within the micro-batch of B * ``num_tokens``."""
    row_starts = torch.arange(len(positions), device=positions.device) * num_tokens
    return (positions + row_starts.unsqueeze(1)).flatten()


def _select(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """[B, T, D] -> [N, D]: the hidden states at ``positions`` within the micro-batch, or all of them."""
    flat = hidden.flatten(0, 1)
    return flat if positions is None else flat.index_select(0, positions)


def _scatter_labels(shape: torch.Size, positions: Tensor, labels: Tensor) -> Tensor:
    """[B, K] labels at ``positions`` -> [B * T] labels, IGNORE_INDEX elsewhere."""
    return labels.new_full(shape, IGNORE_INDEX).scatter(1, positions, labels).flatten()


def _check_terms(
    student: PreTrainedModel, teacher: PreTrainedModel | None, terms: frozenset[Term], temperature: float
) -> None:
    if not terms or not terms <= {"ce", "mlm", "cos"}:
        raise InputError(f"the loss terms are {sorted(terms)}; expected one or more of ce, mlm, cos")
    if temperature <= 0:
        raise InputError(f"the temperature is {temperature}; expected a positive number")
    needing_teacher = sorted(terms & {"ce", "cos"})
    if needing_teacher and teacher is None:
        raise InputError(
            f"the loss terms {needing_teacher} need a teacher, and there is none; name one, or set alpha_ce "
            "and alpha_cos to 0"
        )
    if teacher is None:
        return
    if "ce" in terms and teacher.config.vocab_size != student.config.vocab_size:
        raise InputError(
            f"the teacher's vocab_size is {teacher.config.vocab_size}, the student's "
            f"{student.config.vocab_size}; expected the same, since loss_ce compares their distributions"
        )
    if "cos" in terms and teacher.config.hidden_size != student.config.hidden_size:
        raise InputError(
            f"the teacher's hidden states are {teacher.config.hidden_size} wide, the student's "
            f"{student.config.hidden_size}; expected the same for loss_cos: set alpha_cos to 0"
        )
