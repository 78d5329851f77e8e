"""Which number format is taken, and what it is applied to."""

import copy
import time

import pytest
import torch
from small_models import WITH_HEAD, random_ids, small_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from distil_ray.models import precision
from distil_ray.models.loading import encode, predict
from distil_ray.models.precision import (
    autocast,
    common_precision,
    fastest_precision,
    to_precision,
    use_autocast_layer_norms,
)
from distil_ray.models.threads import using_threads

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("speedup", "expected"), [(0.5, "fp32"), (1.1, "fp32"), (2.0, "bf16")])
def test_a_processor_takes_bf16_if_that_is_faster(monkeypatch, speedup, expected):
    monkeypatch.setattr(precision, "_speedup", lambda dtype: speedup if dtype is torch.bfloat16 else 99)
    assert fastest_precision(CPU) == expected


def test_a_processor_is_tried():
    assert 0.001 < precision._speedup(torch.bfloat16) < 100
    assert 0.1 < precision._speedup(torch.float64) < 0.9  # twice as many bits take about twice as long


def test_a_processor_is_tried_in_one_thread(monkeypatch):
    # Threads that wait for each other on a busy machine take CPU time, which hid that bf16 is three times as fast.
    seen, thread_time = set(), time.thread_time
    monkeypatch.setattr(time, "thread_time", lambda: seen.add(torch.get_num_threads()) or thread_time())
    with using_threads(2):
        precision._speedup(torch.bfloat16)
        assert torch.get_num_threads() == 2
    assert seen == {1}


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_takes_bf16_if_it_has_it(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert fastest_precision(CUDA) == expected


def test_other_devices_take_fp32():
    assert fastest_precision(torch.device("meta")) == "fp32"


@pytest.mark.parametrize(
    ("precisions", "expected"),
    [(["bf16", "bf16"], "bf16"), (["bf16", "fp16"], "fp16"), (["bf16", "fp32"], "fp32"), (["fp16"], "fp16")],
)
def test_workers_take_what_all_of_them_can(precisions, expected):
    assert common_precision(precisions) == expected


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_concerns_products(name, dtype):
    with autocast(CPU, name):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


# What passes from layer to layer


def with_autocast_layer_norms(model):
    model = copy.deepcopy(model)
    use_autocast_layer_norms(model)
    return model


@pytest.mark.parametrize("family", [name for name in WITH_HEAD if name != "eurobert"])
def test_layer_norms_are_the_same_without_autocast(family):
    model = small_model(family)
    changed, ids = with_autocast_layer_norms(model), random_ids(2, 9)
    assert torch.equal(encode(changed, ids), encode(model, ids))
    assert changed.state_dict().keys() == model.state_dict().keys()
    kinds = {type(module).__name__ for module in changed.modules()}
    assert "AutocastLayerNorm" in kinds
    assert "LayerNorm" not in kinds


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_layer_norms_round_no_more_than_their_inputs_and_outputs(name, has_bias):
    dtype = precision.DTYPES[name]
    norm = nn.LayerNorm(256, bias=has_bias)
    with torch.no_grad():
        for parameter, mean in zip(norm.parameters(), (1, 0), strict=False):
            parameter.normal_(mean, 0.2)
    hidden = (100 + 0.5 * torch.randn(64, 256)).to(dtype)  # statistics in half precision would lose these digits
    weight, bias = norm.weight.to(dtype).double(), norm.bias.to(dtype).double() if has_bias else None
    expected = F.layer_norm(hidden.double(), (256,), weight, bias)
    changed = with_autocast_layer_norms(nn.Sequential(norm))
    with autocast(CPU, name):
        out = changed(hidden)
    out.sum().backward()
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)
    assert changed[0].weight.grad.dtype == torch.float32


def test_layer_norms_compile_as_one_graph():
    model = with_autocast_layer_norms(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
    compiled, inputs = torch.compile(model, backend="aot_eager", fullgraph=True), torch.randn(4, 8)
    with autocast(CPU, "bf16"):
        assert torch.equal(compiled(inputs), model(inputs))
        assert compiled(inputs).dtype == torch.bfloat16


def test_a_teacher_in_bf16_says_what_it_says_in_fp32():
    model, ids = small_model("bert"), random_ids(8, 20)
    half = with_autocast_layer_norms(model)
    nn.Module.to(half, dtype=torch.bfloat16)
    with torch.no_grad():
        log_q = predict(model, encode(model, ids).flatten(0, 1)).log_softmax(-1)
        with autocast(CPU, "bf16"):
            log_p = predict(half, encode(half, ids).flatten(0, 1)).float().log_softmax(-1)
    kl = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    assert 0 < kl < 2e-3
    other = predict(small_model("bert", seed=1), encode(small_model("bert", seed=1), ids).flatten(0, 1))
    assert F.kl_div(other.log_softmax(-1), log_q, log_target=True, reduction="batchmean") > 0.5


@pytest.mark.parametrize("family", ["modernbert", "eurobert"])
def test_rotary_positions_keep_their_digits_in_bf16(family):
    model, half = small_model(family), small_model(family)
    to_precision(half, CPU, "bf16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    frequencies = {name: buffer for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert frequencies
    for name, buffer in frequencies.items():
        assert torch.equal(half.get_buffer(name), buffer)
        assert not torch.equal(buffer.bfloat16(), buffer)
    with torch.no_grad():
        error = encode(half, random_ids(2, 20)).float() - encode(model, random_ids(2, 20))
    assert error.abs().mean() < 0.05


class Outputs(TorchDispatchMode):
    """Notes the dtype and shape of every operation's output."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **kwargs or {})
        for output in filter(torch.is_tensor, outputs if isinstance(outputs, tuple) else (outputs,)):
            self.found.append((function.overloadpacket.__name__, output.dtype, tuple(output.shape)))
        return outputs


def outputs_on_a_gpu(model, monkeypatch, shape=(2, 12)):
    """The outputs of `encode` as autocast to bf16 gives them on a GPU, on tensors without data; no GPU is needed."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    # A PyTorch without CUDA cannot trace it there.
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *args, **kwargs: query)
    model, mode = copy.deepcopy(model), FakeTensorMode(allow_non_fake_inputs=True)

    def on_gpu(tensor):
        return FakeTensor(mode, tensor.detach().to("meta"), torch.device("cuda:0"))

    with mode:
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module._parameters[name] = nn.Parameter(on_gpu(parameter), requires_grad=False)
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = on_gpu(buffer)
        with torch.no_grad(), Outputs() as outputs, autocast(CUDA, "bf16"):
            encode(model, on_gpu(torch.zeros(shape, dtype=torch.int64)))
    return outputs.found


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_nothing_passes_from_layer_to_layer_in_fp32(family, monkeypatch):
    model = small_model(family)
    hidden = (2, 12, model.config.hidden_size)

    def dtypes_of_norms_and_sums(model):
        found = outputs_on_a_gpu(model, monkeypatch)
        found = [(name, dtype) for name, dtype, shape in found if shape == hidden]
        first = [name for name, _ in found].index("native_layer_norm")  # the embeddings before it are fp32
        return {dtype for name, dtype in found[first:] if name in ("native_layer_norm", "add")}

    assert dtypes_of_norms_and_sums(with_autocast_layer_norms(model)) == {torch.bfloat16}
    assert dtypes_of_norms_and_sums(model) == {torch.float32}  # this can be seen
