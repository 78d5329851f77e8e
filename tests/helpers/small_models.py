"""Small models with every parameter random, biases and LayerNorms included, so that no mix-up goes unseen."""

from typing import Any

import torch
from transformers import PreTrainedModel

from distil_ray.models.loading import model_from_config

VOCAB_SIZE = 61
NUM_LAYERS = 4

_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT, "type_vocab_size": 2},
    "distilbert": {"dim": 32, "n_layers": NUM_LAYERS, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 24},
    "roberta": {**_BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {**_BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
}


def small_model(model_type: str, seed: int = 0, vocab_size: int = VOCAB_SIZE, **fields: Any) -> PreTrainedModel:
    """Return a model in eval mode; ``fields`` replace those of its configuration."""
    config = {"model_type": model_type, **_CONFIGS[model_type], **fields}
    model = model_from_config(config, vocab_size=vocab_size, pad_token_id=1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def random_ids(num_rows: int, num_tokens: int, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    """Return [B, T] ids of rows without padding (id 1)."""
    return torch.randint(2, vocab_size, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))
