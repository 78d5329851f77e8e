"""Measures the data plane: each step of a group, the whole group, and the whole Ray Data pipeline.

    python benchmarks/data.py --source 'corpus/*.parquet' --tokenizer bert-base-uncased [--megabytes 8] …

Everything is given in tokens of text (each document's separator included) per second of one core; "fast …" is the same
with the package of the extra `fast`, where that is installed and gives the same ids. Next to it stand two others on the
same documents:

tokenizer       `encode_batch_fast` of `tokenizers` alone, one thread: the fastest that this tokenizer can be.
hugging face    What the examples of `transformers` do: `datasets.map` with the tokenizer, `datasets.map` into blocks,
                `DataCollatorForLanguageModeling` in a `DataLoader`, one process.

The variants take turns, round by round. "wall" divides by the time that passes, and for the pipeline by its CPU slots;
"cpu" divides by the CPU time that is spent, for the pipeline by all of Ray's processes and this one together: it is the
steadier figure on a machine that does other things as well. Speeds are medians over the rounds, ratios medians of each
round's ratio. The pipeline is measured between the arrivals of two groups, once it is warm.

Prints a table; the last line is one JSON object with every figure.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import datasets
import numpy as np
import psutil
import ray
import tokenizers
import torch
import transformers
from machine import environment
from ray.data import DataContext
from tokenizers import Tokenizer
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from distil_ray.config import Source
from distil_ray.data.corpus import read_texts
from distil_ray.data.hashing import draws, stream_key
from distil_ray.data.masking import count_maskable, mask_rows, special_table
from distil_ray.data.parity import with_fast_tokenizer
from distil_ray.data.pipeline import execution_options, train_dataset
from distil_ray.data.plan import DataPlan, make_plan
from distil_ray.data.rows import RowSettings, make_rows, pack_rows
from distil_ray.data.schedule import START
from distil_ray.data.tally import Tally
from distil_ray.data.tokenization import Vocabulary, token_stream
from distil_ray.runs.cluster import SYSTEM_CONFIG

Clock = Literal["wall", "cpu"]
CLOCKS: tuple[Clock, ...] = ("wall", "cpu")
MLM_PROBABILITY = 0.15
COLLATOR_BATCH_SIZE = 32
GROUPS_PER_SLOT = {"warm-up": 3, "measured": 6, "behind": 2}  # those behind keep the slots busy to the end
FAST_GROUPS = 5  # times as many with the fast tokenizer, which has them done as soon


@dataclass(frozen=True)
class Measurement:
    num_tokens: int
    wall_seconds: float  # times CPU slots
    cpu_seconds: float

    def tokens_per_second(self, clock: Clock) -> float:
        return self.num_tokens / (self.wall_seconds if clock == "wall" else self.cpu_seconds)


# --- In this process, on one core


def make_variants(plan: DataPlan, tokenizer: PreTrainedTokenizerBase, num_bytes: int) -> dict[str, Callable[[], int]]:
    """Return what to time; each returns how many tokens of text it has worked through."""
    fast, settings = plan.vocabulary, plan.settings
    vocabulary = replace(fast, fast_package=None)
    units = first_units(plan, num_bytes)
    texts = list(read_texts(plan.corpus, units))
    stream = token_stream(vocabulary, texts)
    rows = pack_rows(stream, max_seq_length=settings.max_seq_length, cls_id=vocabulary.cls_id, sep_id=vocabulary.sep_id)
    row_numbers = np.arange(len(rows), dtype=np.uint64)
    is_special = special_table(vocabulary.size, vocabulary.special_ids)
    bare_tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json)

    def make_group(vocabulary: Vocabulary) -> object:
        return make_rows(read_texts(plan.corpus, units), Tally(), vocabulary, settings, split="train", group=0)

    def mask() -> None:
        has_targets = count_maskable(rows, is_special) >= settings.num_masked
        mask_rows(
            rows[has_targets],
            draws(stream_key("mask"), row_numbers[has_targets]),
            num_masked=settings.num_masked,
            mask_id=vocabulary.mask_id,
            is_special=is_special,
        )

    actions: dict[str, Callable[[], object]] = {
        "read": lambda: list(read_texts(plan.corpus, units)),
        "tokenize": lambda: token_stream(vocabulary, texts),
        "pack": lambda: pack_rows(
            stream, max_seq_length=settings.max_seq_length, cls_id=vocabulary.cls_id, sep_id=vocabulary.sep_id
        ),
        "shuffle": lambda: rows[np.argsort(draws(stream_key("shuffle"), row_numbers))],
        "mask": mask,
        "group": lambda: make_group(vocabulary),
        "tokenizer": lambda: bare_tokenizer.encode_batch_fast(texts, add_special_tokens=False),
        "hugging face": lambda: hugging_face(texts, tokenizer, settings.max_seq_length),
    }
    if fast.fast_package is not None:
        actions |= {"fast tokenize": lambda: token_stream(fast, texts), "fast group": lambda: make_group(fast)}

    def counting(action: Callable[[], object]) -> Callable[[], int]:
        def run() -> int:
            action()
            return len(stream)

        return run

    return {name: counting(action) for name, action in actions.items()}


def first_units(plan: DataPlan, num_bytes: int) -> list[int]:
    """The units with which the run begins, up to ``num_bytes`` of text or the end of the first epoch."""
    units: list[int] = []
    total = 0
    for group in range(plan.schedule.groups_per_epoch):
        for unit in plan.schedule.units_of(group).tolist():
            if units and total >= num_bytes:
                return units
            units.append(unit)
            total += int(plan.corpus.unit_bytes[unit])
    return units


def hugging_face(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
    def tokenize(examples: dict[str, list[str]]) -> Any:
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def into_blocks(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain.from_iterable(lists)) for name, lists in examples.items()}
        length = len(joined["input_ids"]) // max_seq_length * max_seq_length
        starts = range(0, length, max_seq_length)
        return {name: [values[start : start + max_seq_length] for start in starts] for name, values in joined.items()}

    dataset = datasets.Dataset.from_dict({"text": texts})
    blocks = dataset.map(tokenize, batched=True, remove_columns=["text"]).map(into_blocks, batched=True)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MLM_PROBABILITY)
    for _ in DataLoader(blocks, batch_size=COLLATOR_BATCH_SIZE, collate_fn=collator):
        pass


def measure(run: Callable[[], int]) -> Measurement:
    wall, cpu = time.perf_counter(), time.process_time()
    num_tokens = run()
    return Measurement(num_tokens, time.perf_counter() - wall, time.process_time() - cpu)


# --- The pipeline, on Ray


def start_ray(num_cpus: int) -> None:
    # Its workers give way to all other processes unless told otherwise, and then the wall clock would measure those.
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config=SYSTEM_CONFIG | {"worker_niceness": 0},
    )


class Printer:
    """Receives what happens in the pipeline's tasks."""

    def post_text(self, text: str) -> None:
        print(text)

    def note(self, topic: str, group: int, content: Any) -> None:
        print(topic, group, content)


def measure_pipeline(plan: DataPlan, data_cpus: int, block_rows: int) -> Measurement:
    """Consume the pipeline from its beginning and take the time between two groups' arrivals."""
    times = data_cpus * (1 if plan.vocabulary.fast_package is None else FAST_GROUPS)
    warm, measured, behind = (num_groups * times for num_groups in GROUPS_PER_SLOT.values())
    DataContext.get_current().execution_options = execution_options(data_cpus, None)
    dataset = train_dataset(
        plan,
        START,
        num_groups=warm + measured + behind,
        block_rows=block_rows,
        filler_blocks=1,
        num_cpus=data_cpus,
        listener=Printer(),
        outage_seconds=0,
    )
    num_rows = 0
    edges: list[tuple[int, float, float]] = []
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):  # to its end, so that Ray comes to rest
        if len(edges) < 2 and int(block["group"][0]) >= (warm, warm + measured)[len(edges)]:
            edges.append((num_rows, time.perf_counter(), cpu_seconds_of_all_processes()))
        num_rows += len(block["group"])
    measured_rows, wall_seconds, cpu_seconds = (end - begin for begin, end in zip(*edges, strict=True))
    num_tokens = int(measured_rows) * (plan.settings.max_seq_length - 2)
    return Measurement(num_tokens, wall_seconds * data_cpus, cpu_seconds)


def cpu_seconds_of_all_processes() -> float:
    """CPU seconds that this process and all below it, Ray's own included, have used so far."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        # Of its children, only those that have ended are counted in a process's own times.
        total += times.user + times.system + times.children_user + times.children_system
    return total


# --- Report


def ratios(measurements: dict[str, list[Measurement]], clock: Clock) -> dict[str, float]:
    def speeds(name: str) -> list[float]:
        return [one.tokens_per_second(clock) for one in measurements[name]]

    def median_ratio(name: str, other: str) -> float:
        return statistics.median(mine / theirs for mine, theirs in zip(speeds(name), speeds(other), strict=True))

    return {
        "group_vs_tokenizer": median_ratio("group", "tokenizer"),
        "pipeline_vs_tokenizer": median_ratio("pipeline", "tokenizer"),
        "pipeline_vs_group": median_ratio("pipeline", "group"),
        "pipeline_vs_hugging_face": median_ratio("pipeline", "hugging face"),
        **{
            f"fast_{name}_vs_{name}": median_ratio(f"fast {name}", name)
            for name in ("tokenize", "group", "pipeline")
            if f"fast {name}" in measurements
        },
        "masking_and_packing_share": statistics.median(
            group / pack + group / mask
            for group, pack, mask in zip(speeds("group"), speeds("pack"), speeds("mask"), strict=True)
        ),
    }


def print_table(speeds: dict[str, dict[Clock, float]], all_ratios: dict[Clock, dict[str, float]]) -> None:
    print(f"{'million tokens/s per core':<28} {'wall':>9} {'cpu':>9}")
    for name, speed in speeds.items():
        print(f"{name:<28} {speed['wall'] / 1e6:>9.3f} {speed['cpu'] / 1e6:>9.3f}")
    print()
    for name in all_ratios["wall"]:
        print(f"{name:<28} {all_ratios['wall'][name]:>9.3f} {all_ratios['cpu'][name]:>9.3f}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="text: a file, a folder or a glob, local or remote")
    parser.add_argument("--column", default="text", help="Parquet column or JSON key (default: %(default)s)")
    parser.add_argument("--tokenizer", required=True, help="a folder or a name on the Hub")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per row (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=8, help="text a round on one core (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--data-cpus",
        type=int,
        default=max(1, (os.cpu_count() or 1) - 1),
        help="CPU slots of the pipeline (default: all cores but one, which is left to the consumer)",
    )
    parser.add_argument("--block-rows", type=int, default=512, help="rows of a block (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # it warns of documents longer than the model's rows
    datasets.disable_caching()  # or the second round would find the first one's results
    datasets.disable_progress_bars()

    start = environment(np, datasets, ray, tokenizers, torch, transformers)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    plan = make_plan(
        [Source(path=options.source, column=options.column)],
        None,
        Vocabulary.from_pretrained(tokenizer),
        RowSettings(options.tokens, MLM_PROBABILITY, mask_replace_prob=0.8, random_replace_prob=0.1, seed=0),
        eval_fraction=0,
        num_epochs=None,
        on_bad_file="error",
    )
    vocabulary, line = with_fast_tokenizer(plan.vocabulary, plan.first_documents())
    print(line or "the extra `fast` is not installed")
    pipelines = {"pipeline": plan}
    if vocabulary.fast_package is not None:
        pipelines["fast pipeline"] = replace(plan, vocabulary=vocabulary)
    variants = make_variants(replace(plan, vocabulary=vocabulary), tokenizer, int(options.megabytes * 1e6))
    measurements: dict[str, list[Measurement]] = {name: [] for name in (*variants, *pipelines)}
    start_ray(options.data_cpus + 1)
    for _ in range(options.rounds):
        for name, run in variants.items():
            measurements[name].append(measure(run))
        for name, one in pipelines.items():
            measurements[name].append(measure_pipeline(one, options.data_cpus, options.block_rows))
    ray.shutdown()

    speeds: dict[str, dict[Clock, float]] = {
        name: {clock: statistics.median(one.tokens_per_second(clock) for one in rounds) for clock in CLOCKS}
        for name, rounds in measurements.items()
    }
    all_ratios = {clock: ratios(measurements, clock) for clock in CLOCKS}
    print_table(speeds, all_ratios)
    record = {
        "benchmark": "data",
        **start,
        "fast_package": vocabulary.fast_package,
        "load_average_after": os.getloadavg(),
        **vars(options),
        "num_tokens": measurements["group"][0].num_tokens,
        "tokens_per_second_per_core": speeds,
        "ratios": all_ratios,
        "rounds_of_each": {name: [vars(one) for one in rounds] for name, rounds in measurements.items()},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
