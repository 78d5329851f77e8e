"""Times one training step: ours, the original authors' way, and a tuned Hugging Face Trainer-style step.

    python benchmarks/step.py [--shape bert-base mini] [--device cpu|cuda] [--rows 32] [--tokens 128] …

A step is forward, backward, clipping and the AdamW update of one micro-batch; ours is the training loop's own
(`Learner.update`), from NumPy arrays on. All variants start from the same
random weights and see the same batch, dropout active; they take turns, round by round, each round beginning with
another one, so that other work on the machine slows all of them alike. Speeds are medians over the rounds, ratios
medians of each round's ratio; "fastest" is the ratio of each variant's fastest round, which other work on the machine
disturbs least.

ours (masked)    Soft targets at the masked positions.
ours (all)       Soft targets at every position.
original         DistilBERT's training code (2019), written anew: eager attention, whole vocabulary heads, boolean
                 selection at every position, losses read on the host. Soft targets at every position, its default.
original (mask)  The same with its option to restrict the soft targets to the masked positions; on request.
tuned            What a user of Trainer would write today: SDPA, fused AdamW, whole heads, documents padded to the
                 row's length (only real tokens are counted), cross-entropy on labels and soft targets where masked.

--profile says how the time of our steps is shared out between kinds of kernels. --without switches off what has no
setting. Prints a table; the last line is one JSON object with every figure.

Needs torch and transformers alone: no Ray, and none of the package's other dependencies.
"""

import argparse
import copy
import itertools
import json
import operator
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package need not be installed

import torch
import transformers
from machine import cpu_model, environment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from distil_ray.distillation.distiller import CePositions, Term
from distil_ray.distillation.losses import IGNORE_INDEX
from distil_ray.evaluation.turns import time_in_turns
from distil_ray.models import loading
from distil_ray.models.flops import flops_per_token, peak_flops
from distil_ray.models.loading import model_from_config
from distil_ray.models.student import build_student, set_attention_dropout
from distil_ray.training import learner as learner_module
from distil_ray.training.learner import Learner

# Teachers: layers, width, heads, vocabulary. The student has half the layers; feed-forward layers are 4 x width.
SHAPES = {"bert-base": (12, 768, 12, 30_522), "small": (4, 512, 8, 30_522), "mini": (4, 256, 4, 8_192)}
PAD_ID, MASK_ID, FIRST_WORD_ID = 0, 103, 1_000  # as in bert-base-uncased
TERMS: frozenset[Term] = frozenset({"ce", "mlm", "cos"})
WEIGHTS = {"ce": 5 / 8, "mlm": 2 / 8, "cos": 1 / 8}  # DistilBERT's 5, 2, 1
TEMPERATURE = 2.0
MLM_PROBABILITY = 0.15
ADAMW: dict[str, Any] = {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-6}
MAX_GRAD_NORM = 5.0
SWITCHES: dict[str, Callable[[], None]] = {
    "half-layer-norms": lambda: setattr(learner_module, "use_autocast_layer_norms", lambda model: None),
    "padded-decoder": lambda: setattr(loading, "_padding", lambda weight: 0),
    "fast-on-processor": lambda: setattr(learner_module, "fast_on_processor", lambda device: nullcontext()),
}
# Kinds of kernels by words in their names, the first that fits.
KERNELS = {
    "attention": "flash|fmha|attention|sdpa|mha",
    "matrix products": "gemm|cutlass|nvjet|xmma|addmm|aten::b?mm|mkldnn_linear|matmul|splitk",
    "optimizer": "adam|multi_tensor",
    "copies": "memcpy|memset|aten::copy_|aten::_to_copy|aten::fill_|aten::zero_",
    "norms and elementwise": "triton|elementwise|norm|softmax|reduce|dropout|vectorized|index|embedding|cat|aten::",
}
# Articles of English Wikipedia cut at 128 pieces and padded to 128 are 4.6 % padding.
PADDING_FRACTION = 0.05


@dataclass(frozen=True)
class Batch:
    """One micro-batch: B rows of T tokens, K of them masked; and the same as documents with padding after them."""

    input_ids: Tensor  # [B, T]
    masked_positions: Tensor  # [B, K]
    masked_labels: Tensor  # [B, K]
    attention_mask: Tensor  # [B, T], all ones
    labels: Tensor  # [B, T], IGNORE_INDEX where nothing is masked
    padded_input_ids: Tensor  # [B, T]
    padded_attention_mask: Tensor  # [B, T], ones and then zeros
    padded_labels: Tensor  # [B, T]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(*(function(getattr(self, field.name)) for field in fields(self)))

    def arrays(self) -> dict[str, Any]:
        """The rows as the data plane hands them to the loop."""
        dtypes = {"input_ids": "uint16", "masked_positions": "int16", "masked_labels": "uint16"}
        return {name: getattr(self, name).cpu().numpy().astype(dtype) for name, dtype in dtypes.items()}


@dataclass(frozen=True)
class Variant:
    name: str
    step: Callable[[Batch], None]
    num_tokens: int  # real ones, per step
    flops: float  # per step


def make_batch(num_rows: int, num_tokens: int, vocab_size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(FIRST_WORD_ID, vocab_size, (num_rows, num_tokens), generator=generator)
    num_masked = round(MLM_PROBABILITY * (num_tokens - 2))
    order = torch.rand(num_rows, num_tokens - 2, generator=generator).argsort(dim=1)
    positions = order[:, :num_masked].sort(dim=1).values + 1
    input_ids = words.scatter(1, positions, MASK_ID)
    labels = torch.where(input_ids == MASK_ID, words, IGNORE_INDEX)
    lengths = torch.linspace(1 - 2 * PADDING_FRACTION, 1, num_rows) * num_tokens
    is_real = torch.arange(num_tokens) < lengths.round().unsqueeze(1)
    return Batch(
        input_ids=input_ids,
        masked_positions=positions,
        masked_labels=words.gather(1, positions),
        attention_mask=torch.ones_like(input_ids),
        labels=labels,
        padded_input_ids=torch.where(is_real, input_ids, PAD_ID),
        padded_attention_mask=is_real.long(),
        padded_labels=torch.where(is_real, labels, IGNORE_INDEX),
    )


class Models:
    """The teacher and the initial student of a shape."""

    def __init__(self, shape: str, max_seq_length: int) -> None:
        num_layers, width, num_heads, vocab_size = SHAPES[shape]
        config = {
            "model_type": "bert",
            "num_hidden_layers": num_layers,
            "hidden_size": width,
            "num_attention_heads": num_heads,
            "intermediate_size": 4 * width,
            "max_position_embeddings": max(512, max_seq_length),
        }
        self.teacher = model_from_config(config, vocab_size, PAD_ID, seed=0).eval().requires_grad_(False)
        self.initial_student = build_student(
            self.teacher, layers=None, architecture="distilbert", init="teacher", seed=0
        )

    def new_student(self, attention: str, device: str) -> PreTrainedModel:
        student = copy.deepcopy(self.initial_student).to(device).train()
        student.set_attn_implementation(attention)
        return student

    def new_teacher(self, attention: str, device: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        teacher = copy.deepcopy(self.teacher).to(device, dtype)
        teacher.set_attn_implementation(attention)
        return teacher

    def flops_per_token(self, batch: Batch, ce_positions: CePositions) -> float:
        return flops_per_token(
            self.teacher.config,
            self.initial_student.config,
            max_seq_length=batch.input_ids.shape[1],
            num_masked=batch.masked_positions.shape[1],
            ce_positions=ce_positions,
            terms=TERMS,
        )


def ours(models: Models, batch: Batch, ce_positions: CePositions, options: argparse.Namespace) -> Variant:
    num_rows, num_tokens = batch.input_ids.shape
    student = models.new_student("sdpa", "cpu")
    if options.attention_dropout is not None:
        set_attention_dropout(student, options.attention_dropout)
    config: Any = learner_config(num_rows, num_tokens, ce_positions, options)
    device = torch.device(options.device)
    learner = Learner(config, models.new_teacher("sdpa", "cpu"), student, device, options.precision)
    meter = learner.new_meter(world_size=1)
    rows: Any = SimpleNamespace(blocks=[SimpleNamespace(index=0, rows=batch.arrays())], wait_seconds=0.0)
    steps = itertools.count()

    def step(_: Batch) -> None:
        learner.update(rows, next(steps), progress=0.5, meter=meter)

    flops = models.flops_per_token(batch, ce_positions) * num_rows * num_tokens
    return Variant(f"ours ({ce_positions})", step, num_rows * num_tokens, flops)


def learner_config(
    num_rows: int, num_tokens: int, ce_positions: CePositions, options: argparse.Namespace
) -> SimpleNamespace:
    """What `Learner` reads of a `Config`, which could not be made without pydantic."""
    adamw = {"learning_rate": ADAMW["lr"], "betas": ADAMW["betas"], "eps": ADAMW["eps"], "weight_decay": 0.0}
    schedule = {"lr_schedule": "constant", "warmup_fraction": 0.0, "max_grad_norm": MAX_GRAD_NORM}
    return SimpleNamespace(
        run=SimpleNamespace(seed=0),
        data=SimpleNamespace(max_seq_length=num_tokens, mlm_probability=MLM_PROBABILITY),
        distill=SimpleNamespace(
            shares=dict.fromkeys(get_args(Term), 0.0) | WEIGHTS,
            temperature=TEMPERATURE,
            ce_positions=ce_positions,
            alpha_relations=0.0,
            alpha_hidden=0.0,
        ),
        eval=SimpleNamespace(relation_loss=False, hidden_loss=False),
        optim=SimpleNamespace(global_batch_size=num_rows, **adamw, **schedule),
        runtime=SimpleNamespace(compile=options.compile),
        block_rows=num_rows,
        tokens_per_step=num_rows * num_tokens,
        micro_batch_size=num_rows,
    )


def original(models: Models, batch: Batch, restrict_ce_to_mask: bool, options: argparse.Namespace) -> Variant:
    student = models.new_student("eager", options.device)
    teacher = models.new_teacher("eager", options.device)
    no_decay = ["bias", "LayerNorm.weight"]
    named = list(student.named_parameters())
    groups = [
        {"params": [p for n, p in named if not any(part in n for part in no_decay)], "weight_decay": 0.0},
        {"params": [p for n, p in named if any(part in n for part in no_decay)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    soft_target_loss, cosine_loss = nn.KLDivLoss(reduction="batchmean"), nn.CosineEmbeddingLoss(reduction="mean")
    hard_target_loss = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
    history: dict[str, float] = {}

    def step(batch: Batch) -> None:
        attention_mask, labels = batch.attention_mask, batch.labels
        inputs = {"input_ids": batch.input_ids, "attention_mask": attention_mask, "output_hidden_states": True}
        with autocast(options):
            student_output = student(**inputs)
            with torch.no_grad():
                teacher_output = teacher(**inputs)
            student_logits, teacher_logits = student_output.logits, teacher_output.logits
            positions = labels > -1 if restrict_ce_to_mask else attention_mask.bool()
            mask = positions.unsqueeze(-1).expand_as(student_logits)
            student_selected = torch.masked_select(student_logits, mask).view(-1, student_logits.size(-1))
            teacher_selected = torch.masked_select(teacher_logits, mask).view(-1, student_logits.size(-1))
            loss_ce = TEMPERATURE**2 * soft_target_loss(
                F.log_softmax(student_selected / TEMPERATURE, dim=-1),
                F.softmax(teacher_selected / TEMPERATURE, dim=-1),
            )
            loss_mlm = hard_target_loss(student_logits.view(-1, student_logits.size(-1)), labels.view(-1))
            student_hidden, teacher_hidden = student_output.hidden_states[-1], teacher_output.hidden_states[-1]
            mask = attention_mask.bool().unsqueeze(-1).expand_as(student_hidden)
            width = student_hidden.size(-1)
            student_hidden = torch.masked_select(student_hidden, mask).view(-1, width)
            teacher_hidden = torch.masked_select(teacher_hidden, mask).view(-1, width)
            same = student_hidden.new_ones(student_hidden.size(0))
            loss_cos = cosine_loss(student_hidden, teacher_hidden, same)
            loss = WEIGHTS["ce"] * loss_ce + WEIGHTS["mlm"] * loss_mlm + WEIGHTS["cos"] * loss_cos
        history["total"] = history.get("total", 0.0) + loss.item()
        history.update(loss=loss.item(), loss_ce=loss_ce.item(), loss_mlm=loss_mlm.item(), loss_cos=loss_cos.item())
        if (loss != loss).data.any():
            raise RuntimeError("the loss is not a number")
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    name = "original (mask)" if restrict_ce_to_mask else "original"
    num_tokens = batch.input_ids.numel()
    return Variant(name, step, num_tokens, models.flops_per_token(batch, "all") * num_tokens)


def tuned(models: Models, batch: Batch, options: argparse.Namespace) -> Variant:
    student, teacher = models.new_student("sdpa", options.device), models.new_teacher("sdpa", options.device)
    optimizer = torch.optim.AdamW(student.parameters(), **ADAMW, weight_decay=0.0, fused=True)
    student_forward: Callable[..., Any] = student
    teacher_forward: Callable[..., Any] = teacher
    if options.compile and options.device == "cuda":
        student_forward, teacher_forward = (torch.compile(model, dynamic=False) for model in (student, teacher))

    def step(batch: Batch) -> None:
        inputs = {"input_ids": batch.padded_input_ids, "attention_mask": batch.padded_attention_mask}
        labels = batch.padded_labels
        with autocast(options):
            output = student_forward(**inputs, labels=labels)
            with torch.no_grad():
                teacher_logits = teacher_forward(**inputs).logits
            masked = labels != IGNORE_INDEX
            soft = F.kl_div(
                F.log_softmax(output.logits[masked] / TEMPERATURE, dim=-1),
                F.softmax(teacher_logits[masked] / TEMPERATURE, dim=-1),
                reduction="batchmean",
            )
            loss = 0.5 * output.loss + 0.5 * TEMPERATURE**2 * soft
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    flops = models.flops_per_token(batch, "all") * batch.input_ids.numel()
    return Variant("tuned", step, int(batch.padded_attention_mask.sum()), flops)


def autocast(options: argparse.Namespace) -> torch.autocast:
    dtype = torch.float16 if options.precision == "fp16" else torch.bfloat16
    return torch.autocast(options.device, dtype=dtype, enabled=options.precision != "fp32")


def run_steps(variant: Variant, batch: Batch, num_steps: int) -> None:
    """Do steps, and wait for them."""
    for _ in range(num_steps):
        variant.step(batch)
    if batch.input_ids.is_cuda:
        torch.cuda.synchronize()


def measure(shape: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one record per variant."""
    torch.manual_seed(0)
    models = Models(shape, options.tokens)
    batch = make_batch(options.rows, options.tokens, SHAPES[shape][-1]).map(lambda t: t.to(options.device))
    builders: dict[str, Callable[[], Variant]] = {
        "ours (masked)": lambda: ours(models, batch, "masked", options),
        "ours (all)": lambda: ours(models, batch, "all", options),
        "original": lambda: original(models, batch, False, options),
        "original (mask)": lambda: original(models, batch, True, options),
        "tuned": lambda: tuned(models, batch, options),
    }
    variants = [builders[name]() for name in options.variants]
    # The first step compiles, or allocates the optimizer's state, for which two rows are enough.
    is_static = options.compile or options.device == "cuda"
    warm_up_batch = batch if is_static else batch.map(lambda tensor: tensor[:2])
    for variant in variants:
        run_steps(variant, warm_up_batch, 1)
    steps_per_round = 10 if options.device == "cuda" else 1  # enough to let the host run ahead of the device
    rounds = {
        variant.name: lambda _, variant=variant: run_steps(variant, batch, steps_per_round) for variant in variants
    }
    seconds = {
        name: [value / steps_per_round for value in values]
        for name, values in time_in_turns(rounds, options.steps).items()
    }
    peak = peak_flops(torch.cuda.get_device_name()) if options.device == "cuda" else None
    records: list[dict[str, Any]] = []
    for variant in variants:
        own = seconds[variant.name]
        step_seconds = statistics.median(own)
        speedup_over, fastest_speedup_over = {}, {}
        for other in variants:
            token_ratio = variant.num_tokens / other.num_tokens
            theirs = seconds[other.name]
            speedup_over[other.name] = token_ratio * statistics.median(map(operator.truediv, theirs, own))
            fastest_speedup_over[other.name] = token_ratio * min(theirs) / min(own)
        records.append(
            {
                "shape": shape,
                "variant": variant.name,
                "step_seconds": step_seconds,
                "step_seconds_of_each_round": own,
                "tokens_per_second": variant.num_tokens / step_seconds,
                "flops_per_token": variant.flops / variant.num_tokens,
                "flops_per_second": variant.flops / step_seconds,
                "mfu": variant.flops / step_seconds / peak if peak else None,
                "padding_fraction": 1 - variant.num_tokens / batch.input_ids.numel(),
                "speedup_over": speedup_over,
                "fastest_speedup_over": fastest_speedup_over,
                "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if options.device == "cuda" else None,
                "kernels": kernel_seconds(variant, batch) if options.profile and "ours" in variant.name else None,
            }
        )
    return records


def kernel_seconds(variant: Variant, batch: Batch, num_steps: int = 3) -> dict[str, float]:
    """Seconds of a step by kind of kernel (of operation, on a processor), and those in which a GPU has none."""
    on_gpu = batch.input_ids.is_cuda
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        began = time.perf_counter()
        run_steps(variant, batch, num_steps)
        seconds = time.perf_counter() - began
    totals: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next((kind for kind, words in KERNELS.items() if re.search(words, event.key.lower())), "other")
        totals[kind] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / num_steps
    if on_gpu:
        totals["idle"] = max(0.0, seconds / num_steps - totals.total())
    return dict(totals.most_common())


def print_table(records: list[dict[str, Any]]) -> None:
    header = (
        f"{'shape':<10} {'variant':<16} {'ms/step':>9} {'tokens/s':>10} {'MFLOP/token':>12} {'GFLOP/s':>9} {'MFU':>6}"
    )
    print(f"{header} {'padding':>8} {'× original':>11} {'(fastest)':>9}")
    for record in records:
        ratios = (record[name].get("original") for name in ("speedup_over", "fastest_speedup_over"))
        speedup, fastest = (f"{ratio:.2f}" if ratio else "-" for ratio in ratios)
        mfu = f"{record['mfu']:6.1%}" if record["mfu"] else f"{'-':>6}"
        print(
            f"{record['shape']:<10} {record['variant']:<16} {1e3 * record['step_seconds']:>9.1f} "
            f"{record['tokens_per_second']:>10.0f} {record['flops_per_token'] / 1e6:>12.1f} "
            f"{record['flops_per_second'] / 1e9:>9.1f} {mfu} {record['padding_fraction']:>8.1%} "
            f"{speedup:>11} {fastest:>9}"
        )
    for record in filter(operator.itemgetter("kernels"), records):
        parts = ", ".join(f"{kind} {1e3 * seconds:.1f}" for kind, seconds in record["kernels"].items())
        print(f"{record['shape']:<10} {record['variant']:<16} ms: {parts}")


def parse_options() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["bert-base", "mini"], help="of the teacher")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_gpu else "cpu")
    parser.add_argument("--rows", type=int, default=32, help="rows per step (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per row (default: %(default)s)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="default: bf16 on a GPU, else fp32")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU; `tuned` is compiled only there"
    )
    parser.add_argument("--steps", type=int, default=2, help="timed rounds (default: %(default)s)")
    names = ["ours (masked)", "ours (all)", "original", "original (mask)", "tuned"]
    usual = [name for name in names if name != "original (mask)"]
    parser.add_argument("--variants", nargs="+", choices=names, default=usual, help="default: all but original (mask)")
    parser.add_argument("--attention-dropout", type=float, help="of our student (default: 0.1)")
    parser.add_argument("--without", nargs="+", choices=SWITCHES, default=[], help="parts to switch off, in ours")
    parser.add_argument("--profile", action="store_true", help="time our kernels by their kind, too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "fp32")
    options.compile = options.device == "cuda" if options.compile is None else options.compile
    return options


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    return {
        **environment(torch, transformers),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else cpu_model(),
        "threads": torch.get_num_threads(),
        **(gpu_versions() if options.device == "cuda" else {}),
    }


def gpu_versions() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return {"driver": driver, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    for name in options.without:
        SWITCHES[name]()
    records = [record for shape in options.shape for record in measure(shape, options)]
    print_table(records)
    print(json.dumps({"benchmark": "step", **conditions(options), **vars(options), "results": records}))


if __name__ == "__main__":
    main()
