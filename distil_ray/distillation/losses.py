"""The three losses of DistilBERT (Sanh et al. 2019, arXiv 1910.01108, section 2), and one on hidden states: sums.

Sums and not means: the caller divides by counts of the whole global batch, which are known beforehand, so
that neither gradient accumulation nor the number of workers changes the result. Whatever the inputs' dtype,
every softmax, norm and sum is taken in fp32.

Shapes: N positions, V vocabulary, D width.
"""

from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100  # a label with no target, as everywhere in PyTorch


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return ``T² Σ_n Σ_v q (log q - log p)`` as an fp32 scalar, q = softmax(teacher / T), p of the student.

    The soft-target cross-entropy less the teacher's entropy, which is a constant. T² keeps its gradients at
    the scale of those of hard targets (Hinton et al. 2015, arXiv 1503.02531, section 2).

    Args:
        student_logits, teacher_logits: [N, V], any floating dtype.
        temperature: T > 0.
    """
    log_p = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_q = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True) * temperature**2


def mlm_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``-Σ_n log softmax(student)[label]`` over labels that are not IGNORE_INDEX: an fp32 scalar.

    Args:
        student_logits: [N, V], any floating dtype.
        labels: [N] int64.
    """
    return F.cross_entropy(student_logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """Return ``Σ (1 - cos(student, teacher))`` as an fp32 scalar.

    Args:
        student_hidden, teacher_hidden: [..., D], any floating dtype.
    """
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


def mse_loss(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """Return ``Σ mean_d (student - teacher)²`` as an fp32 scalar (PKD, arXiv 1908.09355; TinyBERT, arXiv 1909.10351).

    Args:
        student_hidden, teacher_hidden: [..., D], any floating dtype.
    """
    return F.mse_loss(student_hidden.float(), teacher_hidden.float(), reduction="sum") / student_hidden.shape[-1]
