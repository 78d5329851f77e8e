"""What makes a model's folder a SentenceTransformers one, as their versions 2 to 5 wrote it."""

import json
from pathlib import Path
from typing import Any

_FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")


def write_modules(folder: Path, mode: str = "mean_tokens", **pooling: Any) -> Path:
    """Add modules.json and what it names: pooling by ``mode``, further settings of it in ``pooling``, and Normalize."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": 32, **{f"pooling_mode_{flag}": flag == mode for flag in _FLAGS}, **pooling}
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6, "do_lower_case": false}')
    return folder
