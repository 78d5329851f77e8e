"""How many floating-point operations training takes, and how many a GPU can do.

Only matrix products count, a multiply-add as two: what ``torch.utils.flop_counter`` counts for the same step.
"""

import re
from collections.abc import Collection

from transformers import PreTrainedConfig

from distil_ray.models.families import embedding_width, family_of, head_width, num_key_heads

# Dense bf16 FLOP/s (fp16 on chips without bf16) by the words of ``torch.cuda.get_device_name()``, from the
# vendor's data sheets, figures "with sparsity" halved. The first line whose words all occur wins.
_PEAK_FLOPS: tuple[tuple[frozenset[str], float], ...] = tuple(
    (frozenset(words.split()), flops)
    for words, flops in (
        ("B200", 2250e12),
        ("GH200", 989e12),
        ("H200 NVL", 835e12),
        ("H200", 989e12),
        ("H100 PCIE", 756e12),
        ("H100 NVL", 835e12),
        ("H100", 989e12),
        ("A100", 312e12),
        ("A40", 150e12),
        ("A30", 165e12),
        ("A10G", 70e12),
        ("A10", 125e12),
        ("L40S", 362e12),
        ("L40", 181e12),
        ("L4", 121e12),
        ("V100", 125e12),
        ("T4", 65e12),
    )
)


def peak_flops(device_name: str) -> float | None:
    """Return the dense bf16 FLOP/s of a GPU by its ``torch.cuda`` device name, None if it is unknown."""
    words = set(re.split(r"[^A-Z0-9]+", device_name.upper()))
    return next((flops for needed, flops in _PEAK_FLOPS if needed <= words), None)


def flops_per_token(
    teacher: PreTrainedConfig | None,
    student: PreTrainedConfig,
    *,
    max_seq_length: int,
    num_masked: int,
    ce_positions: str,
    terms: Collection[str],
) -> float:
    """Return the FLOPs of training on one token: the teacher's forward pass and three times the student's.

    A backward pass costs two forward passes. Layers with local attention count as PyTorch's counter counts them, with
    all T keys of the row, which is what `scaled_dot_product_attention` multiplies unless its kernel skips what is
    masked. DeBERTa's convolution and its projections of relative positions are left out: once a micro-batch, about 1%.

    Args:
        teacher, student: configurations of supported families.
        max_seq_length: tokens per row, T.
        num_masked: masked positions per row, K.
        ce_positions: ``masked`` or ``all``.
        terms: the loss terms in use, of ce, mlm, cos, relations, hidden.
    """
    on_all = "ce" in terms and ce_positions == "all"
    head_fraction = 1.0 if on_all else num_masked / max_seq_length
    flops = 3 * _encoder_flops(student, max_seq_length)
    if "ce" in terms or "mlm" in terms:
        flops += 3 * head_fraction * _head_flops(student)
    if teacher is not None and set(terms) - {"mlm"}:
        flops += _encoder_flops(teacher, max_seq_length)
        if "ce" in terms:
            flops += head_fraction * _head_flops(teacher)
        if "relations" in terms:  # those of the student, and one product of the same size for their gradient
            flops += _relation_flops(teacher, max_seq_length) + 2 * _relation_flops(student, max_seq_length)
        if "hidden" in terms and student.hidden_size != teacher.hidden_size:
            projections = (student.num_hidden_layers + 1) * 2 * student.hidden_size * teacher.hidden_size
            flops += 3 * projections
    return flops


def _relation_flops(config: PreTrainedConfig, max_seq_length: int) -> float:
    """FLOPs of a layer's relations for one token: queries with queries, keys with keys, values with values."""
    width = (config.num_attention_heads + 2 * num_key_heads(config)) * head_width(config)
    return float(2 * max_seq_length * width)


def _encoder_flops(config: PreTrainedConfig, max_seq_length: int) -> float:
    """Forward FLOPs of the encoder for one token.

    Of each layer four matrices of attention, its scores and sums, and two or three matrices of the feed-forward part;
    before the layers, the matrix that makes the embeddings as wide as they are, if it is needed.
    """
    family, width = family_of(config), config.hidden_size
    query_width = config.num_attention_heads * head_width(config)
    key_width = num_key_heads(config) * head_width(config)
    projections = 2 * width * (query_width + key_width)
    feed_forward = (3 if family.is_gated else 2) * width * getattr(config, family.feed_forward_field)
    attention = (2 * max_seq_length + family.num_relative_keys(config)) * query_width
    embedding = embedding_width(config) * width if embedding_width(config) != width else 0
    return float(2 * (config.num_hidden_layers * (projections + feed_forward + attention) + embedding))


def _head_flops(config: PreTrainedConfig) -> float:
    """Forward FLOPs of the MLM head for one position: D x E, if it has that matrix, then E x V."""
    transform = config.hidden_size if family_of(config).dense is not None else 0
    return float(2 * embedding_width(config) * (transform + config.vocab_size))
