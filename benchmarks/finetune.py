"""Times fine-tuning: ours, a plain PyTorch loop, and Hugging Face's Trainer with its defaults and tuned.

    python benchmarks/finetune.py [--model small base] [--threads 2] [--rows 320] [--rounds 3] …

Each way trains the same randomly initialized encoder for an epoch on the same rows, in batches of 32, tokenization
included. The texts are random words, as many as English sentences have; of the models only the size matters here. The
ways take turns, round by round, so that other work on the machine slows all of them alike; speeds are medians over the
rounds, ratios medians of each round's ratio.

ours             `evaluate`'s Finetuner: fused AdamW, batches of rows of similar length, the fastest precision.
ours (fp32)      The same in fp32, if another precision is faster here.
plain            What `evaluate` did before, and many scripts do: the same batches, AdamW as it comes, fp32.
Trainer          transformers.Trainer with its defaults; needs the package accelerate, and is left out without.
Trainer (tuned)  The same with fused AdamW, batches of rows of similar length, and bf16 where that is faster.

Prints a table; the last line is one JSON object with every figure.
"""

import argparse
import copy
import importlib.util
import json
import operator
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from machine import environment
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from distil_ray.evaluation.finetuning import Finetuner, batches
from distil_ray.evaluation.kinds import encode_rows
from distil_ray.evaluation.protocol import Finetuning
from distil_ray.evaluation.tasks import TASKS, Rows
from distil_ray.evaluation.turns import time_in_turns
from distil_ray.models.loading import load_tokenizer
from distil_ray.models.precision import Precision, fastest_precision

TOKENIZER = "distil_ray/quickstart/teacher"
BATCH_SIZE = 32
PROTOCOL = Finetuning(num_epochs=1, batch_size=BATCH_SIZE)
Way = Callable[[int], object]


def small() -> PreTrainedModel:
    """The quickstart's student."""
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=8_000, dim=256, n_layers=2, n_heads=4, hidden_dim=1_024)
    )


def base() -> PreTrainedModel:
    """BERT-base."""
    return BertForSequenceClassification(BertConfig())


MODELS = {"small": small, "base": base}


def random_rows(tokenizer: PreTrainedTokenizerBase, num_rows: int, mean_words: float) -> Rows:
    generator = np.random.default_rng(0)
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    lengths = np.clip(generator.geometric(1 / mean_words, num_rows), 3, 100)
    texts = [(" ".join(generator.choice(words, length)),) for length in lengths]
    return Rows(texts, generator.integers(0, 2, num_rows))


class Ways:
    """The ways to fine-tune a model on rows; each begins with the same weights."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, device: str) -> None:
        self._model, self._tokenizer, self._rows = model, tokenizer, rows
        self._device = torch.device(device)
        self._fastest = fastest_precision(self._device)

    def all(self) -> dict[str, Way]:
        ways: dict[str, Way] = {"ours": lambda _: self.ours(self._fastest)}
        if self._fastest != "fp32":
            ways["ours (fp32)"] = lambda _: self.ours("fp32")
        ways["plain"] = lambda _: self.plain()
        if importlib.util.find_spec("accelerate"):
            ways["Trainer"] = lambda _: self.trainer()
            ways["Trainer (tuned)"] = lambda _: self.trainer(
                optim="adamw_torch_fused", train_sampling_strategy="group_by_length", bf16=self._fastest == "bf16"
            )
        return ways

    def ours(self, precision: Precision) -> None:
        protocol = PROTOCOL.model_copy(update={"precision": precision})
        model = copy.deepcopy(self._model)
        finetuner = Finetuner(model, self._tokenizer, TASKS["sst2"], protocol, seed=1, device=self._device)
        finetuner.train({"train": self._rows})
        self._wait()

    def plain(self) -> None:
        model: Any = copy.deepcopy(self._model).to(self._device).train()
        inputs = encode_rows(self._tokenizer, self._rows, PROTOCOL.max_seq_length)
        labels = torch.from_numpy(self._rows.labels)
        optimizer = torch.optim.AdamW(model.parameters(), lr=PROTOCOL.learning_rate, weight_decay=PROTOCOL.weight_decay)
        num_steps = -(-len(inputs) // BATCH_SIZE)
        schedule = get_linear_schedule_with_warmup(optimizer, round(PROTOCOL.warmup_fraction * num_steps), num_steps)
        lengths = [len(one["input_ids"]) for one in inputs]
        for indices in batches(lengths, BATCH_SIZE, np.random.default_rng(1)):
            batch: Any = self._tokenizer.pad([inputs[i] for i in indices], return_tensors="pt").to(self._device)
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels[indices].to(self._device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        self._wait()

    def trainer(self, **arguments: Any) -> None:
        inputs = encode_rows(self._tokenizer, self._rows, PROTOCOL.max_seq_length)
        dataset = [{**one, "labels": int(label)} for one, label in zip(inputs, self._rows.labels, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=PROTOCOL.learning_rate,
                warmup_steps=PROTOCOL.warmup_fraction,
                weight_decay=PROTOCOL.weight_decay,
                use_cpu=self._device.type == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **arguments,
            )
            collator = DataCollatorWithPadding(self._tokenizer)
            model = copy.deepcopy(self._model)
            Trainer(model, settings, train_dataset=dataset, data_collator=collator).train()
        self._wait()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def measure(name: str, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one record per way."""
    torch.manual_seed(0)
    model = MODELS[name]()
    num_rows = options.rows * (8 if name == "small" else 1)
    rows = random_rows(tokenizer, num_rows, options.mean_words)
    warm_up = Ways(model, tokenizer, random_rows(tokenizer, BATCH_SIZE, options.mean_words), options.device)
    for way in warm_up.all().values():
        way(0)
    seconds = time_in_turns(Ways(model, tokenizer, rows, options.device).all(), options.rounds)
    return [
        {
            "model": name,
            "way": way,
            "precision": fastest_precision(torch.device(options.device)) if way == "ours" else None,
            "rows_per_second": num_rows / statistics.median(own),
            "seconds_of_each_round": own,
            "speedup_over": {
                other: statistics.median(map(operator.truediv, theirs, own)) for other, theirs in seconds.items()
            },
        }
        for way, own in seconds.items()
    ]


def print_table(records: list[dict[str, Any]]) -> None:
    print(f"{'model':<8} {'way':<16} {'rows/s':>9} {'× plain':>9} {'× Trainer':>10} {'× tuned':>9}")
    for record in records:
        ratios = [record["speedup_over"].get(name, float("nan")) for name in ("plain", "Trainer", "Trainer (tuned)")]
        print(
            f"{record['model']:<8} {record['way']:<16} {record['rows_per_second']:>9.1f} "
            f"{ratios[0]:>9.2f} {ratios[1]:>10.2f} {ratios[2]:>9.2f}"
        )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--rows", type=int, default=320, help="a round of base; small gets 8 times as many")
    parser.add_argument("--mean-words", type=float, default=20, help="of a row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    tokenizer = load_tokenizer(TOKENIZER)
    records = [record for name in options.model for record in measure(name, tokenizer, options)]
    print_table(records)
    about = environment(torch, transformers)
    if options.device == "cuda":
        about["gpu"] = torch.cuda.get_device_name()
    print(json.dumps({"benchmark": "finetune", **about, **vars(options), "results": records}))


if __name__ == "__main__":
    main()
