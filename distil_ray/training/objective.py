"""Configuration -> what a run minimises: its loss terms, what each counts, and the distiller that computes them."""

from typing import TYPE_CHECKING, get_args

from transformers import PreTrainedModel

from distil_ray.data.masking import num_masked_positions
from distil_ray.distillation.distiller import Distiller, Term, count_positions

if TYPE_CHECKING:  # the learner can be timed where only torch and transformers are
    from distil_ray.config import Config


def shares_of(config: "Config") -> dict[Term, float]:
    """The weights of the loss terms in use, which add up to 1."""
    terms: tuple[Term, ...] = get_args(Term)
    return {term: config.distill.shares[term] for term in terms if config.distill.shares[term] > 0}


def counts_of(config: "Config") -> dict[Term, int]:
    """How many positions of a whole global batch each term in use is summed over.

    Known beforehand, so that a split of the batch into parts changes no result.
    """
    data = config.data
    num_masked = num_masked_positions(data.max_seq_length, data.mlm_probability)
    counts = count_positions(
        config.optim.global_batch_size, data.max_seq_length, num_masked, config.distill.ce_positions
    )
    return {term: counts[term] for term in shares_of(config)}


def build_distiller(config: "Config", teacher: PreTrainedModel | None, student: PreTrainedModel) -> Distiller:
    """The losses in use, of this student against this teacher: their means over a global batch, by their shares.

    Raises:
        InputError: the two do not go together.
    """
    counts = counts_of(config)
    return Distiller(
        student,
        teacher,
        weights={term: share / counts[term] for term, share in shares_of(config).items()},
        temperature=config.distill.temperature,
        ce_positions=config.distill.ce_positions,
    )
