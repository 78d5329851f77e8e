"""Small models with every parameter random, biases and LayerNorms included, so that no mix-up goes unseen."""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from distil_ray.models.families import FAMILIES
from distil_ray.models.loading import initialize_encoder, model_from_config

VOCAB_SIZE = 61
NUM_LAYERS = 4
WITH_HEAD = [name for name, family in FAMILIES.items() if family.transform is not None]

_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
_ROBERTA = {**_BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT, "type_vocab_size": 2},
    "distilbert": {"dim": 32, "n_layers": NUM_LAYERS, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 24},
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "data2vec-text": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "ernie": {**_BERT, "type_vocab_size": 2, "use_task_id": True},
    "electra": {**_BERT, "type_vocab_size": 2, "embedding_size": 16},
    "mpnet": _BERT,
    "modernbert": {
        **_BERT,
        **{"local_attention": 8, "attention_dropout": 0.1, "mlp_dropout": 0.1, "embedding_dropout": 0.1},
        **dict.fromkeys(("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"), 0),
    },
    "eurobert": {
        **_BERT,
        **{"num_key_value_heads": 2, "attention_dropout": 0.1},
        **dict.fromkeys(("bos_token_id", "eos_token_id", "mask_token_id"), 0),
    },
    "deberta-v2": {  # as DeBERTa-v3
        **_BERT,
        **{"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
        **{"pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    },
}


def small_model(model_type: str, seed: int = 0, vocab_size: int = VOCAB_SIZE, **fields: Any) -> PreTrainedModel:
    """Return a model in eval mode; ``fields`` replace those of its configuration."""
    config = {"model_type": model_type, **_CONFIGS[model_type], **fields}
    return _varied(model_from_config(config, vocab_size=vocab_size, pad_token_id=1, seed=seed), seed)


def small_encoder(model_type: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """The same without a head."""
    config = AutoConfig.for_model(
        model_type, **{**_CONFIGS[model_type], "vocab_size": VOCAB_SIZE, "pad_token_id": 1, **fields}
    )
    return _varied(initialize_encoder(config, seed), seed)


def _varied(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def random_ids(num_rows: int, num_tokens: int, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    """Return [B, T] ids of rows without padding (id 1)."""
    return torch.randint(2, vocab_size, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))
