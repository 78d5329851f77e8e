"""A model of a comparison: its name, where it is stored, and its content, weights on disk and tokenizer."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.errors import InputError
from distil_ray.models.embedding import Embedding, Pooling, embedding_of
from distil_ray.models.loading import load_classifier, load_tokenizer, load_tokenizer_of
from distil_ray.models.origin import Origin, content_digest

_DTYPES = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "I8": "int8",
    "U8": "uint8",
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
_HEADER_BYTES = 8  # of a safetensors file: the length of the JSON that follows

# Contains what tokenizers treat differently: case, accents, numbers, punctuation, scripts, runs of spaces.
_PROBE = "Ein Café in ZÜRICH, e-mail: a.b@c.org;  1,234.5 don't\t東京 한국어 हिन्दी مرحبا 😀 naïve-looking_words"
_NUM_PROBED_PIECES = 200


class StoredWeights(NamedTuple):
    """Bytes of a model's weights on disk, and the number format of most of them, "" if unknown."""

    num_bytes: int
    dtype: str = ""


@dataclass(frozen=True)
class Model:
    """A model, by the name of its row. Everything else is loaded when it is first needed."""

    name: str
    origin: Origin

    def __reduce__(self) -> Any:  # processes of the cluster load what they need themselves
        return Model, (self.name, self.origin)

    @property
    def path(self) -> str:
        """The folder, or the id on the Hub."""
        return self.origin.path

    @cached_property
    def encoder(self) -> PreTrainedModel:
        """The model with a new head for two classes."""
        return load_classifier(self.path, num_labels=2, seed=0, revision=self.origin.revision)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, giving what the encoder takes."""
        return load_tokenizer_of(self.encoder, *self.origin)

    def embedding(self, pooling: Pooling | None) -> Embedding:
        """How the model makes a vector of a text, see `embedding_of`."""
        return embedding_of(self.origin, self.encoder, self.tokenizer, pooling)

    @property
    def num_parameters(self) -> int:
        """Parameters of the encoder without a head."""
        encoder: Any = self.encoder.base_model
        return int(encoder.num_parameters())

    @cached_property
    def work_per_token(self) -> float:
        """About how much computing a token takes beside other models, by the configuration alone: L × D²."""
        config: Any = AutoConfig.from_pretrained(self.path, revision=self.origin.revision, trust_remote_code=False)
        return float(getattr(config, "num_hidden_layers", 1) * getattr(config, "hidden_size", 1) ** 2)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the model's content, and of the tokenizer's vocabulary and its encoding of some text, neither of
        which depends on how they are stored.
        """
        tokenizer = load_tokenizer(*self.origin)
        vocabulary = tokenizer.get_vocab()
        some = sorted(vocabulary)[:: max(len(vocabulary) // _NUM_PROBED_PIECES, 1)]
        texts = [_PROBE, *(change(piece) for piece in some for change in (str, str.upper))]
        encoded: Any = tokenizer(texts, [_PROBE.lower()] * len(texts), verbose=False)
        made = {name: list(values) for name, values in encoded.items()}
        digest = hashlib.sha256(json.dumps([vocabulary, made], sort_keys=True).encode())
        return {"model": content_digest(self.origin), "tokenizer": digest.hexdigest()}

    @cached_property
    def stored(self) -> StoredWeights:
        """The weights that transformers loads from a folder, or from the copy of a model of the Hub.

        Raises:
            InputError: there are none.
        """
        folder = Path(self.path)
        if not self.origin.is_local:
            from huggingface_hub import snapshot_download

            patterns = ["*.safetensors", "pytorch_model*.bin"]
            revision = self.origin.revision
            folder = Path(
                snapshot_download(self.path, revision=revision, allow_patterns=patterns, local_files_only=True)
            )
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
        if not files:
            raise InputError(f"{self.path} has no weights; expected model.safetensors or pytorch_model.bin")
        num_weights = sum(map(_weights_by_dtype, files), Counter[str]())
        dtype = num_weights.most_common(1)[0][0] if num_weights else ""
        return StoredWeights(sum(file.stat().st_size for file in files), dtype)

    def may_be(self, noted: str) -> bool:
        """Whether results of schema 1 may be this model's: they recorded a digest of its weights, or its path."""
        files = sorted(Path(self.path).glob("*.safetensors")) if self.origin.is_local else []
        if not files:
            return noted == self.path or str(Path(noted).expanduser().absolute()) == self.path
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return noted == digest.hexdigest()


def _weights_by_dtype(file: Path) -> Counter[str]:
    """Number of weights in a file by number format, empty if the file does not say. Loads no weights."""
    found: Counter[str] = Counter()
    if file.suffix == ".safetensors":
        with file.open("rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(_HEADER_BYTES), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                found[_DTYPES.get(tensor["dtype"], tensor["dtype"])] += int(np.prod(tensor["shape"]))
        return found
    try:
        tensors: Any = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    except RuntimeError:  # of a format from before PyTorch 1.6
        return found
    for tensor in tensors.values():
        if isinstance(tensor, torch.Tensor):
            found[_DTYPES.get(tensor.dtype, str(tensor.dtype))] += tensor.numel()
    return found
