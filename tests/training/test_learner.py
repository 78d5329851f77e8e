"""Updates of the student against a plain loop, over any split into parts, and in each precision."""

import math
import os
import shutil
from functools import lru_cache

import pytest
import torch
from operations import Operations
from processes import run_workers
from small_models import small_model
from torch.nn import functional as F
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode
from training_parts import CPU, B, random_rows, small_config, small_learner, small_pair, step_rows, train, weights_of

from distil_ray.data.batch import to_device
from distil_ray.runs.storage import RunFolder
from distil_ray.training.checkpoint import PARTS, CheckpointWriter, TrainState, latest_checkpoint
from distil_ray.training.learner import Learner
from distil_ray.training.optimizer import LossScale, parameter_groups

# Some gradients are zero but for rounding (those of the keys' biases). With a small epsilon Adam makes steps of them.
DAMPED = {"optim__eps": 1e-4}


@lru_cache
def trained(num_updates=3, *, dropout=0.0, **settings):
    """The weights after some updates."""
    config = small_config(**settings)
    learner = small_learner(config, dropout=dropout)
    train(learner, config, range(num_updates))
    return weights_of(learner)


def assert_close(weights, expected, atol=1e-6):
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=atol, msg=lambda text, name=name: name + text)


def largest_difference(weights, expected):
    return max((weights[name] - expected[name]).abs().max().item() for name in expected)


# Against a plain reference


def plain_loss(config, student, teacher, rows):
    """The loss by its formula, from both models' logits at all positions of the whole batch, as means."""
    input_ids, positions, labels = to_device(rows, 0, B, CPU)
    masked = torch.zeros(input_ids.shape, dtype=torch.bool).scatter(1, positions, True)
    with torch.no_grad():
        target = teacher(input_ids=input_ids, output_hidden_states=True)
    out = student(input_ids=input_ids, output_hidden_states=True)
    distill = config.distill
    compared = torch.ones_like(masked) if distill.ce_positions == "all" else masked
    log_p, log_q = (F.log_softmax(o.logits[compared] / distill.temperature, dim=-1) for o in (out, target))
    ce = distill.temperature**2 * F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    mlm = F.cross_entropy(out.logits[masked], labels.flatten())
    cos = (1 - F.cosine_similarity(out.hidden_states[-1], target.hidden_states[-1], dim=-1)).mean()
    hidden = torch.stack(
        [
            (own - target.hidden_states[layer]).square().mean()
            for own, layer in zip(out.hidden_states, (0, 1), strict=True)
        ]
    ).mean()
    alphas = (distill.alpha_ce, distill.alpha_mlm, distill.alpha_cos, distill.alpha_hidden)
    return sum(alpha * term for alpha, term in zip(alphas, (ce, mlm, cos, hidden), strict=True)) / sum(alphas)


def plainly_trained(config, num_updates):
    """The losses and the weights of a training loop as anybody would write it."""
    teacher, student = small_pair()
    optim = config.optim
    groups = parameter_groups(dict(student.named_parameters()), optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, foreach=False, fused=False)
    losses = []
    for step in range(num_updates):
        optimizer.zero_grad()
        loss = plain_loss(config, student, teacher, random_rows(B, seed=step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), optim.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * (optim.num_steps - step) / optim.num_steps
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: parameter.detach() for name, parameter in student.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        DAMPED,
        {**DAMPED, "distill__ce_positions": "all"},
        {**DAMPED, "distill__temperature": 1.5, "distill__alpha_cos": 0.0, "optim__weight_decay": 0.1},
        {**DAMPED, "distill__alpha_hidden": 3.0, "distill__hidden_layers": (0,)},
        {"optim__eps": 1e-3, "optim__betas": (0.8, 0.9), "optim__max_grad_norm": 0.01},
    ],
)
def test_updates_are_those_of_a_plain_loop(settings):
    config = small_config(**settings, optim__warmup_fraction=0.0, runtime__num_workers=2, runtime__micro_batch_size=2)
    learner = small_learner(config)
    losses = train(learner, config, range(4))
    expected_losses, expected = plainly_trained(config, 4)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert_close(weights_of(learner), expected, atol=3e-6)
    assert largest_difference(expected, weights_of(small_learner(config))) > 1e-3


def test_training_without_a_teacher_is_masked_language_modelling():
    config = small_config(
        teacher=None,
        student__path="/unused",
        distill={"alpha_ce": 0.0, "alpha_mlm": 1.0, "alpha_cos": 0.0},
        optim__warmup_fraction=0.0,
    )
    learner = Learner(config, None, small_pair()[1], CPU, "fp32")
    assert train(learner, config, range(3)) == pytest.approx(plainly_trained(config, 3)[0], rel=1e-5)


def test_update_returns_the_norm_before_clipping_and_the_learning_rate():
    config = small_config(optim__max_grad_norm=1e-3, optim__warmup_fraction=0.2)
    learner = small_learner(config)
    norm, learning_rate = learner.update(step_rows(config), 0, 0.05, learner.new_meter(1))
    teacher, student = small_pair()
    plain_loss(config, student, teacher, random_rows(B)).backward()
    expected = get_total_norm([parameter.grad for parameter in student.parameters()])
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    assert norm.item() > 1e-3
    assert learning_rate == pytest.approx(1e-3 * 0.25)


# Over any split into parts


@pytest.mark.parametrize(("num_workers", "micro_batch_size"), [(1, 4), (1, 2), (2, 4), (4, 1)])
def test_the_split_into_micro_batches_and_blocks_changes_no_more_than_rounding(num_workers, micro_batch_size):
    split = trained(runtime__num_workers=num_workers, runtime__micro_batch_size=micro_batch_size, **DAMPED)
    assert_close(split, trained(**DAMPED))


def test_dropout_is_drawn_alike_for_any_number_of_blocks():
    one = trained(dropout=0.2, runtime__num_workers=1, runtime__micro_batch_size=2)
    four = trained(dropout=0.2, runtime__num_workers=4, runtime__micro_batch_size=2)
    assert all(torch.equal(one[name], four[name]) for name in one)
    assert largest_difference(one, trained(runtime__micro_batch_size=2)) > 1e-4


def test_dropout_differs_between_micro_batches_steps_and_seeds():
    config = small_config(runtime__micro_batch_size=2)
    learner = small_learner(config, dropout=0.2)
    draws = set()
    for seed, step, micro_batch in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        learner._config = small_config(run__seed=seed)
        learner._seed_dropout(step, micro_batch)
        draws.add(tuple(torch.rand(4).tolist()))
    assert len(draws) == 4


def train_as_worker(rank, world_size, dropout):
    config = small_config(runtime__num_workers=2, runtime__micro_batch_size=2, **DAMPED)
    learner = small_learner(config, dropout=dropout)
    train(learner, config, range(3), rank=rank, world_size=world_size)
    return {name: weight.numpy() for name, weight in weights_of(learner).items()}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_two_workers_learn_what_one_learns(dropout):
    first, second = run_workers(train_as_worker, 2, dropout)
    assert all((first[name] == second[name]).all() for name in first)
    one = trained(dropout=dropout, runtime__num_workers=2, runtime__micro_batch_size=2, **DAMPED)
    assert_close({name: torch.from_numpy(weight) for name, weight in first.items()}, one)


# Gradients that are not finite


def test_an_update_without_a_finite_gradient_is_left_out():
    config = small_config(runtime__micro_batch_size=2)
    learner, expected = small_learner(config, dropout=0.1), small_learner(config, dropout=0.1)
    train(learner, config, range(2))
    train(expected, config, range(2))
    embeddings = learner.teacher.get_input_embeddings().weight
    intact = embeddings.detach().clone()
    embeddings.data[5] = math.inf
    norm, _ = learner.update(step_rows(config, seed=2), 2, 0.02, learner.new_meter(1))
    assert not norm.isfinite()
    embeddings.data.copy_(intact)
    for part, tensors in learner.tensors().items():
        wanted = expected.tensors()[part]
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[name], wanted[name]) for name in tensors)
    train(learner, config, range(3, 5))
    train(expected, config, range(3, 5))
    assert_close(weights_of(learner), weights_of(expected), atol=0.0)


class Waiting(TorchDispatchMode):
    """Counts how often a tensor's value is read, for which a GPU would be waited for."""

    num_reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.num_reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_update_does_not_wait_for_the_device(precision):
    config = small_config(runtime__micro_batch_size=2, runtime__precision=precision, optim__max_grad_norm=1e-3)
    learner = small_learner(config, dropout=0.1)
    meter = learner.new_meter(1)
    with Waiting() as waiting:
        norm, _ = learner.update(step_rows(config), 0, 0.0, meter)
        assert waiting.num_reads == 0
        norm.item()
        assert waiting.num_reads == 1  # this can be seen


def test_on_a_processor_dropout_and_attention_are_our_own():
    learner = small_learner(config := small_config(), dropout=0.1)
    with Operations() as operations:
        learner.update(step_rows(config), 0, 0.0, learner.new_meter(1))
    assert "random_" in operations.names
    assert "bernoulli_" not in operations.names


# Going on from a checkpoint


@pytest.mark.parametrize("num_before", [0, 3])
def test_a_restored_learner_goes_on_bit_for_bit(tmp_path, num_before):
    config = small_config(runtime__micro_batch_size=4)
    folder = RunFolder(str(tmp_path), "run")
    learner = small_learner(config, dropout=0.1)
    train(learner, config, range(num_before))
    writer = CheckpointWriter(folder, 1)
    writer.save(TrainState(num_before), learner.tensors())
    writer.wait()
    train(learner, config, range(num_before, 6))
    teacher, _ = small_pair(dropout=0.1)
    _, student = small_pair(dropout=0.1)
    torch.nn.init.ones_(student.get_input_embeddings().weight)
    restored = Learner(config, teacher, student, CPU, "fp32")
    checkpoint, _ = latest_checkpoint(folder)
    restored.load({part: checkpoint.load(part) for part in PARTS})
    train(restored, config, range(num_before, 6))
    assert_close(weights_of(restored), weights_of(learner), atol=0.0)


# What each setting does


@pytest.mark.parametrize(
    "change",
    [
        {"distill__temperature": 3.0},
        {"distill__alpha_ce": 1.0},
        {"distill__alpha_mlm": 1.0},
        {"distill__alpha_cos": 2.0},
        {"distill__ce_positions": "all"},
        {"distill__alpha_relations": 5.0},
        {"distill__alpha_hidden": 5.0},
        {"optim__learning_rate": 2e-3},
        {"optim__betas": (0.8, 0.98)},
        {"optim__betas": (0.9, 0.9)},
        {"optim__eps": 1e-4},
        {"optim__weight_decay": 0.1},
        {"optim__max_grad_norm": 0.01},
        {"optim__lr_schedule": "cosine"},
        {"optim__lr_schedule": "constant"},
        {"optim__warmup_fraction": 0.5},
        {"optim__num_steps": 8},
    ],
)
def test_what_is_a_matter_of_learning_changes_the_weights(change):
    usual = {"optim__num_steps": 6, "optim__warmup_fraction": 0.2}
    assert largest_difference(trained(4, **usual | change), trained(4, **usual)) > 1e-5


@pytest.mark.parametrize(
    ("weight", "change"),
    [
        ("distill__alpha_relations", {"distill__relation_layer": 0}),
        ("distill__alpha_relations", {"distill__relation_heads": 2}),
        ("distill__alpha_hidden", {"distill__hidden_layers": (0,)}),
        ("distill__alpha_hidden", {"distill__hidden_loss": "cosine"}),
    ],
)
def test_what_is_compared_inside_the_models_changes_the_weights(weight, change):
    assert largest_difference(trained(**{weight: 5.0} | change), trained(**{weight: 5.0})) > 1e-5


def test_maps_to_the_teachers_width_are_trained_and_saved_and_no_part_of_the_student():
    config = small_config(distill={"alpha_ce": 0.0, "alpha_cos": 0.0, "alpha_hidden": 1.0})
    teacher, _ = small_pair()
    student = small_model("bert", hidden_size=16, num_hidden_layers=1)
    learner = Learner(config, teacher, student, CPU, "fp32")
    before = learner.tensors()["student"]["projections.0.weight"].detach().clone()
    train(learner, config, range(3))
    saved = {part: {name: one.detach().clone() for name, one in learner.tensors()[part].items()} for part in PARTS}
    assert (saved["student"]["projections.0.weight"] - before).abs().max() > 1e-4
    assert "projections.1.weight.exp_avg" in saved["optimizer"]
    assert not any("projections" in name for name in student.state_dict())
    restored = Learner(config, teacher, small_model("bert", hidden_size=16, num_hidden_layers=1), CPU, "fp32")
    restored.load(saved)
    train(learner, config, range(3, 6))
    train(restored, config, range(3, 6))
    for name, weight in learner.tensors()["student"].items():
        assert torch.equal(weight, restored.tensors()["student"][name]), name


def test_only_the_shares_of_the_loss_weights_count():
    doubled = {"distill__alpha_ce": 10.0, "distill__alpha_mlm": 4.0, "distill__alpha_cos": 2.0}
    assert largest_difference(trained(**doubled), trained()) == 0


def test_bf16_changes_rounding_only():
    difference = largest_difference(trained(runtime__precision="bf16"), trained())
    assert 0 < difference < 6e-3  # three updates of at most 1e-3 each way
    config = small_config(runtime__precision="bf16")
    learner = small_learner(config)
    losses = train(learner, config, range(3))
    assert losses == pytest.approx(train(small_learner(small_config()), config, range(3)), rel=0.02)
    assert {parameter.dtype for parameter in learner.student.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in learner.teacher.parameters()} == {torch.bfloat16}


def test_fp16_changes_rounding_only():
    assert 0 < largest_difference(trained(runtime__precision="fp16"), trained()) < 6e-3
    config = small_config(runtime__precision="fp16")
    learner = small_learner(config)
    assert train(learner, config, range(3)) == pytest.approx(
        train(small_learner(small_config()), config, range(3)), rel=0.003
    )
    assert {parameter.dtype for parameter in learner.teacher.parameters()} == {torch.float16}


# The scale of the loss with fp16


def test_an_update_beyond_fp16s_range_is_left_out_and_the_scale_halved(monkeypatch):
    monkeypatch.setattr(LossScale, "INITIAL", 2.0**40)
    config = small_config(runtime__precision="fp16")
    learner = small_learner(config)
    before = weights_of(learner)
    norm, _ = learner.update(step_rows(config), 0, 0.5, learner.new_meter(1))
    assert not norm.isfinite()
    assert_close(weights_of(learner), before, atol=0.0)
    assert learner.tensors()["optimizer"]["loss_scale"].tolist() == [2.0**39, 0.0]
    for step in range(1, 40):
        norm, _ = learner.update(step_rows(config), step, 0.5, learner.new_meter(1))
    assert norm.isfinite()
    assert largest_difference(weights_of(learner), before) > 1e-4


def test_a_run_in_fp16_resumes_with_its_scale(tmp_path):
    config = small_config(runtime__precision="fp16")
    learner, restored = small_learner(config, dropout=0.1), small_learner(config, dropout=0.1)
    train(learner, config, range(3))
    learner._optimizer._loss_scale.update(torch.tensor(False))
    writer = CheckpointWriter(RunFolder(str(tmp_path), "run"), 1)
    writer.save(TrainState(3, precision="fp16"), learner.tensors())
    writer.wait()
    checkpoint, _ = latest_checkpoint(RunFolder(str(tmp_path), "run"))
    restored.load({part: checkpoint.load(part) for part in PARTS})
    for one in (learner, restored):
        train(one, config, range(3, 5))
    assert_close(weights_of(restored), weights_of(learner), atol=0.0)
    scales = [one.tensors()["optimizer"]["loss_scale"].tolist() for one in (learner, restored)]
    assert scales == [[2.0**15, 2.0]] * 2
    assert "loss_scale" not in small_learner(small_config()).tensors()["optimizer"]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="Inductor needs a C++ compiler")
def test_compiling_changes_rounding_only():
    torch.compiler.reset()
    weights = []
    for is_compiled in (True, False):
        config = small_config(runtime__compile=is_compiled, **DAMPED)
        learner = Learner(config, *small_pair(num_layers=1), CPU, "fp32")
        train(learner, config, range(2))
        weights.append(weights_of(learner))
    assert_close(*weights)


# Numbers that must not drift

GOLDEN_LOSSES = [
    *(1.93391, 1.97564, 1.63621, 1.57698, 1.40984, 1.46109, 1.31331, 1.36972, 1.24894, 1.30153),
    *(1.20905, 1.25689, 1.18112, 1.22753, 1.15809, 1.20757, 1.13988, 1.19453, 1.12781, 1.18736),
]


def test_the_loss_curve_is_the_known_one():
    config = small_config(optim__num_steps=20, optim__learning_rate=5e-3, runtime__micro_batch_size=4)
    learner = small_learner(config)
    losses = []
    for step in range(20):
        meter = learner.new_meter(1)
        learner.update(step_rows(config, seed=step % 2), step, step / 20, meter)
        losses.append(meter.record()["train/loss"])
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=0, abs=1e-4)
