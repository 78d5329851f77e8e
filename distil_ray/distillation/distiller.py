"""One micro-batch through teacher and student to the loss and the sums that it is made of.

Shapes: B rows, T tokens per row, K masked positions per row, N selected positions, D width, V vocabulary, V' what
`decoder` makes of it.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distil_ray.distillation.chunks import loss_in_chunks
from distil_ray.distillation.intermediate import HiddenStates, IntermediateLosses, IntermediateTerm, Relations
from distil_ray.distillation.losses import IGNORE_INDEX, cosine_loss, mlm_loss, soft_target_loss
from distil_ray.errors import InputError
from distil_ray.models.families import has_head
from distil_ray.models.loading import decoder, encode, transform

Term = Literal["ce", "mlm", "cos", "relations", "hidden"]
CePositions = Literal["masked", "all"]
INTERMEDIATE_TERMS: tuple[IntermediateTerm, ...] = get_args(IntermediateTerm)

# The logits that one model may have alive at once. The losses hold about five such matrices, or twice that in half
# precision, since they compute in fp32: both models' logits and log-probabilities, and a gradient. With BERT's
# vocabulary it is 4,397 positions in fp32 and 8,795 in half precision: enough for matrix products at full speed,
# and with `ce_positions: masked` one chunk for the 15% of 32,768 tokens in half precision.
MAX_LOGITS_BYTES = 2**29


def count_positions(num_rows: int, max_seq_length: int, num_masked: int, ce_positions: CePositions) -> dict[Term, int]:
    """Return how many positions each term's sum has, in ``num_rows`` rows of ``num_masked`` masks."""
    masked, every = num_rows * num_masked, num_rows * max_seq_length
    counts: dict[Term, int] = dict.fromkeys(get_args(Term), every)
    return counts | {"ce": every if ce_positions == "all" else masked, "mlm": masked}


class Compared(NamedTuple):
    """Last hidden states [B, T, D], each model's own D, and the sums of the losses on what is inside, fp32 scalars."""

    teacher_hidden: Tensor
    student_hidden: Tensor
    sums: Mapping[IntermediateTerm, Tensor]


class Distiller(nn.Module):
    """The student and its losses against a frozen teacher.

    The teacher is not a submodule: parameters(), state_dict(), train() and to() concern the student alone. It is put
    into eval mode and frozen in place; code that moves the student to a device must move the teacher, too.

    Args:
        student: trained; in whichever mode the caller puts the Distiller.
        teacher: None if no term needs one.
        weights: of each term's sum in the loss; what only terms without a weight would need is not computed.
        temperature: of the soft targets.
        ce_positions: ``masked`` compares the distributions at the masked positions, ``all`` at every one.
        relations, hidden_states: what the terms of these names compare; None if they are not in use, here or in
            `compare`.

    Raises:
        InputError: see `check_terms`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        *,
        weights: Mapping[Term, float],
        temperature: float,
        ce_positions: CePositions,
        relations: Relations | None = None,
        hidden_states: HiddenStates | None = None,
    ) -> None:
        super().__init__()
        terms = frozenset(weights)
        check_terms(student, teacher, terms, temperature)
        self.student = student
        self.weights = dict(weights)
        logit_terms: tuple[Term, ...] = ("ce", "mlm")
        self._logit_terms = [term for term in logit_terms if term in weights]
        self.temperature = temperature
        self.ce_positions = ce_positions
        self._teacher: tuple[PreTrainedModel, ...] = ()  # a tuple, so that it is not registered as a submodule
        self.intermediate: IntermediateLosses | None = None
        if teacher is not None and (terms - {"mlm"} or relations or hidden_states):
            teacher.eval()
            self._teacher = (teacher.requires_grad_(False),)
            if relations is not None or hidden_states is not None:
                self.intermediate = IntermediateLosses(student, teacher, relations, hidden_states)

    def forward(
        self, input_ids: Tensor, masked_positions: Tensor, masked_labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, dict[Term, Tensor]]:
        """Return the micro-batch's loss times ``scale``, and each term's sum, without gradient; all are fp32 scalars.

        Args:
            input_ids: [B, T] int64, rows without padding.
            masked_positions: [B, K] int64, distinct within a row.
            masked_labels: [B, K] int64, the true ids there.
            scale: [] fp32; it reaches every gradient, where half precision has a limited range.
        """
        intermediate = self.intermediate if self.weights.keys() & set(INTERMEDIATE_TERMS) else None
        if intermediate is not None:
            intermediate.begin()
        student_hidden = encode(self.student, input_ids)
        teacher_hidden = self._encode_teacher(input_ids) if self.weights.keys() - {"mlm"} else None
        losses: list[Tensor] = []
        sums: dict[Term, Tensor] = {}
        if "cos" in self.weights:  # first: the order decides in which one gradients are added up, and so their rounding
            assert teacher_hidden is not None
            sums["cos"] = cosine_loss(student_hidden, teacher_hidden)
            losses.append(self.weights["cos"] * sums["cos"] * scale)
        if self._logit_terms:
            if "ce" in self.weights and self.ce_positions == "all":
                labels = _scatter_labels(input_ids.shape, masked_positions, masked_labels)
                rows = None
            else:
                labels = masked_labels.flatten()
                rows = _flat_positions(masked_positions, input_ids.shape[1])
            student_rows = _select(student_hidden, rows)
            teacher_rows = (
                _select(teacher_hidden, rows) if "ce" in self.weights and teacher_hidden is not None else None
            )
            head_loss, head_sums = self._head_loss(student_rows, teacher_rows, labels, scale)
            losses.append(head_loss)
            sums |= head_sums
        if intermediate is not None:
            for term, value in intermediate.sums(self.weights).items():
                sums[term] = value
                losses.append(self.weights[term] * value * scale)
        return torch.stack(losses).sum(), {term: value.detach() for term, value in sums.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """The student's parameters by their names, then those that only its losses need, as ``projections.…``."""
        own = {} if self.intermediate is None else dict(self.intermediate.named_parameters())
        return dict(self.student.named_parameters()) | own

    @property
    def intermediate_terms(self) -> tuple[IntermediateTerm, ...]:
        """The losses that `compare` returns."""
        return () if self.intermediate is None else self.intermediate.terms

    @torch.no_grad()
    def compare(self, input_ids: Tensor) -> "Compared":
        """Encode rows ``input_ids`` [B, T] with both models; needs one of `intermediate_terms`."""
        assert self.intermediate is not None
        self.intermediate.begin()
        student_hidden, teacher_hidden = encode(self.student, input_ids), encode(self._teacher[0], input_ids)
        return Compared(teacher_hidden, student_hidden, self.intermediate.sums(INTERMEDIATE_TERMS))

    @torch.no_grad()
    def _encode_teacher(self, input_ids: Tensor) -> Tensor | None:
        return encode(self._teacher[0], input_ids) if self._teacher else None

    def _head_loss(
        self, student_rows: Tensor, teacher_rows: Tensor | None, labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, dict[Term, Tensor]]:
        """The loss on the logits of [N, D] hidden states, in equal chunks of at most MAX_LOGITS_BYTES, and its sums."""
        student_head = transform(self.student, student_rows), *decoder(self.student)
        teacher_head = None
        if teacher_rows is not None:
            with torch.no_grad():
                teacher_head = transform(self._teacher[0], teacher_rows), *decoder(self._teacher[0])
        hidden = student_head[0]
        max_rows = max(1, MAX_LOGITS_BYTES // (self.student.config.vocab_size * hidden.element_size()))
        num_chunks = -(-len(hidden) // max_rows)
        loss, sums = loss_in_chunks(self._logit_loss, student_head, teacher_head, labels, scale, num_chunks)
        return loss, dict(zip(self._logit_terms, sums.unbind(), strict=True))

    def _logit_loss(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss on logits [N, V'], and its sums in the order of `_logit_terms`."""
        student_logits = student_logits[:, : self.student.config.vocab_size]
        sums = []
        if teacher_logits is not None:
            teacher_logits = teacher_logits[:, : self.student.config.vocab_size]
            sums.append(soft_target_loss(student_logits, teacher_logits, self.temperature))
        if "mlm" in self.weights:
            sums.append(mlm_loss(student_logits, labels))
        weighted = [self.weights[term] * value * scale for term, value in zip(self._logit_terms, sums, strict=True)]
        return torch.stack(weighted).sum(), torch.stack(sums)


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


def check_terms(
    student: PreTrainedModel, teacher: PreTrainedModel | None, terms: frozenset[Term], temperature: float
) -> None:
    """Check what losses need.

    Raises:
        InputError: no or unknown terms, a term without its teacher, a temperature that is not positive, or a
            teacher whose vocabulary (for ce) or width (for cos) is not the student's.
    """
    known: frozenset[Term] = frozenset(get_args(Term))
    if not terms or not terms <= known:
        raise InputError(f"the loss terms are {sorted(terms)}; expected one or more of {', '.join(get_args(Term))}")
    if temperature <= 0:
        raise InputError(f"the temperature is {temperature}; expected a positive number")
    needing_teacher = sorted(terms - {"mlm"})
    if needing_teacher and teacher is None:
        weights = " and ".join(f"alpha_{term}" for term in needing_teacher)
        raise InputError(
            f"the loss terms {needing_teacher} need a teacher, and there is none; name one, or set {weights} to 0"
        )
    for term, role, model in (("ce", "teacher", teacher), ("ce", "student", student), ("mlm", "student", student)):
        if term in terms and model is not None and not has_head(model):
            raise InputError(
                f"the loss term {term} compares what a masked-language-modelling head predicts, and the {role} has "
                f"none; expected alpha_{term} 0, or a model with a head"
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
