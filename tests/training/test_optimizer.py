"""The optimizer, its schedule, the flat gradients and the loss scale, against PyTorch's and transformers' own."""

import pytest
import torch
from processes import run_workers
from small_models import WITH_HEAD, random_ids, small_model
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from training_parts import CPU
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from distil_ray.training.optimizer import (
    FlatGradients,
    LossScale,
    Optimizer,
    build_adamw,
    learning_rate_factor,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
    set_learning_rate,
)


def names_of_groups(model):
    """The names of the parameters that decay, and of those that do not."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, exempt = parameter_groups(dict(model.named_parameters()), 0.3)
    assert (decaying["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)
    return [{names[id(parameter)] for parameter in group["params"]} for group in (decaying, exempt)]


@pytest.mark.parametrize("family", WITH_HEAD)
def test_all_decay_but_biases_and_norms(family):
    model = small_model(family)
    decaying, exempt = names_of_groups(model)
    assert decaying.isdisjoint(exempt)
    norms = [module for module in model.modules() if type(module).__name__ in ("LayerNorm", "EuroBertRMSNorm")]
    without_decay = {id(parameter) for norm in norms for parameter in norm.parameters()}
    assert len(norms) > model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        assert (name in exempt) == (id(parameter) in without_decay or name.endswith("bias"))
        assert (name in decaying) == (name not in exempt)


def test_a_norm_of_any_class_and_name_does_not_decay():
    _, exempt = names_of_groups(small_model("distilbert"))
    layer = "distilbert.transformer.layer.3"
    assert {f"{layer}.sa_layer_norm.weight", f"{layer}.output_layer_norm.weight", "vocab_layer_norm.weight"} <= exempt
    _, exempt = names_of_groups(small_model("bert"))
    assert {"bert.embeddings.LayerNorm.weight", "cls.predictions.bias"} <= exempt
    _, exempt = names_of_groups(small_model("eurobert"))
    assert {"model.norm.weight", "model.layers.3.input_layernorm.weight"} <= exempt
    decaying, _ = names_of_groups(small_model("mpnet"))
    assert "mpnet.encoder.relative_attention_bias.weight" in decaying


def test_decay_reaches_matrices_alone():
    model = small_model("distilbert")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_adamw(dict(model.named_parameters()), betas=(0.9, 0.98), eps=1e-6, weight_decay=0.5)
    set_learning_rate(optimizer, 0.1)
    FlatGradients(model.parameters())  # all zero: nothing moves but by decay
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


@pytest.mark.parametrize("num_warmup_steps", [0, 1, 25, 100])
@pytest.mark.parametrize(
    ("schedule", "reference"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_schedules_are_those_of_transformers(schedule, reference, num_warmup_steps):
    num_steps = 100
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer, num_warmup_steps, num_steps)
    for step in range(num_steps):
        factor = learning_rate_factor(step / num_steps, schedule, num_warmup_steps / num_steps)
        assert factor == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-12), step
        optimizer.step()
        scheduler.step()


def test_constant_stays_at_the_peak_after_the_warmup():
    factors = [learning_rate_factor(progress, "constant", 0.5) for progress in (0.0, 0.25, 0.5, 0.99)]
    assert factors == [0.0, 0.5, 1.0, 1.0]


def test_set_learning_rate_reaches_every_group():
    optimizer = build_adamw(dict(small_model("bert").named_parameters()), betas=(0.9, 0.9), eps=1e-6, weight_decay=0.1)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


# Flat gradients


def loss_of(model):
    return model(input_ids=random_ids(2, 8)).logits.square().mean()


def test_backward_fills_the_buffer_and_adds_to_it():
    model, plain = small_model("bert"), small_model("bert")
    gradients = FlatGradients(model.parameters())
    loss_of(model).backward()
    loss_of(plain).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradients.buffer, expected, rtol=0, atol=0)
    loss_of(model).backward()
    torch.testing.assert_close(gradients.buffer, 2 * expected)
    storage = gradients.buffer.untyped_storage().data_ptr()
    assert {parameter.grad.untyped_storage().data_ptr() for parameter in model.parameters()} == {storage}
    gradients.zero()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_tied_weights_stand_in_the_buffer_once():
    model = small_model("bert")
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    gradients = FlatGradients(model.parameters())
    assert gradients.buffer.numel() == model.num_parameters()


def test_frozen_parameters_have_no_gradient():
    model = small_model("bert")
    model.bert.embeddings.requires_grad_(False)
    num_trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert FlatGradients(model.parameters()).buffer.numel() == num_trainable < model.num_parameters()


def test_the_norm_is_that_of_pytorch():
    model, plain = small_model("bert"), small_model("bert")
    gradients = FlatGradients(model.parameters())
    loss_of(model).backward()
    loss_of(plain).backward()
    assert gradients.norm().item() == pytest.approx(get_total_norm(p.grad for p in plain.parameters()).item(), rel=1e-5)


def summed_gradients(rank, world_size):
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))]
    gradients = FlatGradients(parameters)
    for index, parameter in enumerate(parameters):
        parameter.grad += (rank + 1) * 10**index
    gradients.all_reduce()
    return [parameter.grad.tolist() for parameter in parameters]


def test_all_reduce_sums_over_the_workers():
    expected = [[[3.0, 3.0], [3.0, 3.0]], [30.0, 30.0, 30.0]]
    assert run_workers(summed_gradients, 2) == [expected, expected]


# State


def optimizer_of(model):
    optimizer = build_adamw(dict(model.named_parameters()), betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    set_learning_rate(optimizer, 1e-2)
    return optimizer


def update(model, optimizer, num_updates):
    gradients = FlatGradients(model.parameters())
    for _ in range(num_updates):
        gradients.zero()
        loss_of(model).backward()
        optimizer.step()


@pytest.mark.parametrize("num_before", [0, 3])
def test_a_restored_optimizer_goes_on_bit_for_bit(num_before):
    model = small_model("bert")
    optimizer = optimizer_of(model)
    update(model, optimizer, num_before)
    tensors = {
        name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, dict(model.named_parameters())).items()
    }
    assert len(tensors) == (3 * len(list(model.parameters())) if num_before else 0)
    other = small_model("bert", seed=1)
    other.load_state_dict(model.state_dict())
    restored = optimizer_of(other)
    load_optimizer_tensors(restored, dict(other.named_parameters()), tensors)
    update(model, optimizer, 2)
    update(other, restored, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    fresh = small_model("bert", seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


# A step


@pytest.mark.parametrize("max_norm", [1e-3, 1e6])
def test_steps_are_those_of_pytorch(max_norm):
    model, plain = small_model("bert"), small_model("bert")
    optimizer = Optimizer(dict(model.named_parameters()), weight_decay=0.1, max_grad_norm=max_norm, precision="fp32")
    theirs = torch.optim.AdamW(parameter_groups(dict(plain.named_parameters()), 0.1), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (loss_of(model) * optimizer.loss_scale).backward()
        norm = optimizer.step(1e-3)
        theirs.zero_grad()
        loss_of(plain).backward()
        assert norm.item() == pytest.approx(clip_grad_norm_(plain.parameters(), max_norm).item(), rel=1e-5)
        theirs.step()
    for mine, expected in zip(model.parameters(), plain.parameters(), strict=True):
        # Where a gradient is zero but for rounding, Adam makes steps of any size below the learning rate of it.
        assert (mine - expected).abs().mean() < 3e-5


# The scale of the loss with fp16


def test_the_loss_scale_is_that_of_pytorch(monkeypatch):
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)
    scale = LossScale(CPU, is_active=True)
    theirs, growth_tracker = torch.tensor(LossScale.INITIAL), torch.tensor(0, dtype=torch.int32)
    found = []
    for is_finite in (True, True, True, True, False, True, False, False, True, True, True, True):
        scale.update(torch.tensor(is_finite))
        torch._amp_update_scale_(theirs, growth_tracker, torch.tensor(float(not is_finite)), 2.0, 0.5, 3)
        assert scale.factor == theirs
        found.append(scale.factor.item() / LossScale.INITIAL)
    assert found == [1, 1, 2, 2, 1, 1, 0.5, 0.25, 0.25, 0.25, 0.5, 0.5]
