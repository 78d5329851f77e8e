"""Configuration -> what a run minimises: its loss terms, what each counts, and the distiller that computes them."""

from typing import TYPE_CHECKING, get_args

from transformers import PreTrainedModel

from distil_ray.data.masking import num_masked_positions
from distil_ray.distillation.distiller import Distiller, Term, check_terms, count_positions
from distil_ray.distillation.intermediate import HiddenStates, Relations, choose_hidden_states, choose_relations

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


def intermediates_of(
    config: "Config", teacher: PreTrainedModel | None, student: PreTrainedModel
) -> tuple[Relations | None, HiddenStates | None]:
    """What is compared inside the two models, for training or for the evaluation alone.

    Raises:
        InputError: the two do not go together.
    """
    distill, evaluation = config.distill, config.eval
    if teacher is None:
        return None, None
    relations, hidden_states = None, None
    if distill.alpha_relations > 0 or evaluation.relation_loss:
        relations = choose_relations(teacher, student, distill.relation_layer, distill.relation_heads)
    if distill.alpha_hidden > 0 or evaluation.hidden_loss:
        hidden_states = choose_hidden_states(teacher, student, distill.hidden_layers, distill.hidden_loss)
    return relations, hidden_states


def check_objective(config: "Config", teacher: PreTrainedModel | None, student: PreTrainedModel) -> None:
    """Raise InputError unless the losses in use can be computed of this student against this teacher."""
    check_terms(student, teacher, frozenset(shares_of(config)), config.distill.temperature)
    intermediates_of(config, teacher, student)


def build_distiller(config: "Config", teacher: PreTrainedModel | None, student: PreTrainedModel) -> Distiller:
    """The losses in use, of this student against this teacher: their means over a global batch, by their shares.

    Raises:
        InputError: the two do not go together.
    """
    counts = counts_of(config)
    relations, hidden_states = intermediates_of(config, teacher, student)
    return Distiller(
        student,
        teacher,
        weights={term: share / counts[term] for term, share in shares_of(config).items()},
        temperature=config.distill.temperature,
        ce_positions=config.distill.ce_positions,
        relations=relations,
        hidden_states=hidden_states,
    )
