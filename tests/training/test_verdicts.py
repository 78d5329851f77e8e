"""Each check of the doctor, on made-up nodes: what it lets pass and what it says otherwise."""

import pytest
from training_parts import small_config, small_pair

from distil_ray.config import parse_config
from distil_ray.training import verdicts
from distil_ray.training.all_reduce import AllReduce, network_in
from distil_ray.training.verdicts import (
    Node,
    NodeFacts,
    all_reduce,
    answers,
    dashboard,
    gpus,
    jobs_api,
    labels,
    object_stores,
    reading_and_writing,
    shared_storage,
    versions,
)

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"}
DATA = {"ray-subcluster": "data"}
TYPED = {"ray.io/node-group": "cpu"}  # as an autoscaler starts nodes


WORKS = {"storage": "", "models": "", "text": ""}


def facts(*, gpu_names=(), memory=10**10, errors=None, warnings=(), fast="0.1.0", attention="", **changed) -> NodeFacts:
    errors = WORKS | (errors or {})
    return NodeFacts(VERSIONS | changed, fast, list(gpu_names), memory, errors, list(warnings), attention)


def untried(*names) -> NodeFacts:
    return NodeFacts(VERSIONS, "0.1.0", [], 10**10, {name: error for name, error in WORKS.items() if name not in names})


def node(name="a", cpus=8, gpus=0, store=2e9, label=None, seen=None) -> Node:
    resources = {"CPU": cpus, "GPU": gpus, "object_store_memory": store}
    return Node(name, resources, label or {}, seen if seen is not None else facts(gpu_names=["H100"] * gpus))


def config(**runtime):
    return parse_config(
        {
            "run": {"name": "run"},
            "teacher": {"path": "org/teacher"},
            "data": {"sources": "/text"},
            "optim": {"num_steps": 10},
            "runtime": {"data_cpus": 4, **runtime},
        }
    )


def test_every_node_has_to_answer():
    assert answers([node(), node("b")]).outcome == "ok"
    verdict = answers([node(), node("b", seen="no answer within 300 seconds")])
    assert (verdict.outcome, verdict.detail) == ("failed", "b: no answer within 300 seconds")


def test_versions_are_the_same_everywhere():
    assert (
        versions({"a": facts(), "b": facts()}).detail == "equal on all nodes (python 3.11.7, ray 2.60.0, torch 2.13.0)"
    )

    verdict = versions({"a": facts(), "b": facts(), "c": facts(torch="2.12.0", python="3.12.1")})

    assert verdict.outcome == "failed"
    assert "python is 3.11.7 on 2 nodes, 3.12.1 on 1 node" in verdict.detail
    assert "torch is 2.13.0 on 2 nodes, 2.12.0 on 1 node" in verdict.detail
    assert "ray is" not in verdict.detail


def test_a_faster_tokenizer_on_some_of_the_nodes_is_a_warning():
    verdict = versions({"a": facts(), "b": facts(fast="not installed"), "c": facts()})

    assert verdict.outcome == "warning"
    assert verdict.detail.startswith("nanotoken is 0.1.0 on 2 nodes, not installed on 1 node: data tasks are slower")
    assert versions({"a": facts(fast="not installed")}).outcome == "ok"


def test_packages_that_are_missing_everywhere():
    verdict = versions({"a": facts(torch="not installed"), "b": facts(torch="not installed")})

    assert verdict.outcome == "failed"
    assert "torch is not installed on 2 nodes" in verdict.detail


def test_what_cannot_be_read_or_written_is_said_with_the_node():
    fine, bad = facts(), facts(errors={"models": "org/teacher does not exist", "text": "no such file"})
    verdicts = {verdict.check: verdict for verdict in reading_and_writing({"a": fine, "b": bad}, is_listed=True)}

    assert {check: verdict.outcome for check, verdict in verdicts.items()} == {
        "storage": "ok",
        "models": "failed",
        "text": "failed",
    }
    assert verdicts["models"].detail == "b: org/teacher does not exist"


def text_verdict(facts, *, is_listed=True):
    (verdict,) = [verdict for verdict in reading_and_writing(facts, is_listed=is_listed) if verdict.check == "text"]
    return verdict.outcome, verdict.detail


def test_what_was_not_tried_is_not_said_to_work():
    assert text_verdict({"a": untried("text")}, is_listed=False) == ("not tried", "it could not be listed, see above")
    assert text_verdict({"a": untried("text")}) == ("not tried", "no node has the label runtime.data_label")
    assert text_verdict({"a": untried("text"), "b": facts()})[0] == "ok"
    assert text_verdict({}) == ("not tried", "no node has answered")
    assert {verdict.outcome for verdict in reading_and_writing({}, is_listed=True)} == {"not tried"}
    assert versions({}).outcome == "not tried"
    assert shared_storage([], {}).outcome == "not tried"


def test_what_is_doubtful_about_the_text_is_a_warning():
    seen = {
        "a": facts(warnings=["5.0% of the pieces are [UNK]"]),
        "b": facts(warnings=["5.0% of the pieces are [UNK]"]),
    }
    assert text_verdict(seen) == ("warning", "5.0% of the pieces are [UNK]")
    assert text_verdict(seen | {"b": facts(errors={"text": "gone"})}) == ("failed", "b: gone")


def test_all_nodes_write_to_the_same_storage():
    both = {"a": facts(), "b": facts()}
    assert shared_storage(["a", "b"], both).outcome == "ok"
    verdict = shared_storage(["a"], both)
    assert verdict.outcome == "failed"
    assert "what b wrote is not seen from here" in verdict.detail
    # What could not be written at all has been said already.
    assert shared_storage(["a"], {"a": facts(), "b": facts(errors={"storage": "denied"})}).outcome == "ok"
    assert shared_storage([], {"a": facts(errors={"storage": "denied"})}).outcome == "not tried"


@pytest.mark.parametrize(
    ("nodes", "use_gpu", "outcome", "detail"),
    [
        ([node(gpus=8)], True, "ok", "8 × H100"),
        ([node(gpus=1, seen=facts(gpu_names=["L4"], attention="attention: …"))], True, "ok", "1 × L4; attention: …"),
        ([node()], False, "ok", "none now"),
        ([node()], True, "warning", "none now: an autoscaler would have to add them"),
        ([node(gpus=8, seen=facts(gpu_names=["H100"] * 7))], True, "failed", "a: Ray has 8, torch sees 7"),
        ([node(gpus=1, seen="no answer")], True, "failed", "a: Ray has 1, torch sees 0"),
    ],
)
def test_gpus(nodes, use_gpu, outcome, detail):
    verdict = gpus(nodes, config(use_gpu=use_gpu))

    assert verdict.outcome == outcome
    assert verdict.detail.startswith(detail)


@pytest.mark.parametrize(
    ("nodes", "label", "outcome", "detail"),
    [
        ([node()], None, "ok", "none needed"),
        ([node(gpus=8)], None, "ok", "none needed"),
        ([node(), node("b", gpus=8)], None, "warning", "runtime.data_label is not set"),
        ([node(label=DATA), node("b", gpus=8)], DATA, "ok", "8 CPUs with ray-subcluster=data"),
        ([node(cpus=2, label=DATA), node("b", gpus=8)], DATA, "failed", "nodes with ray-subcluster=data have 2 CPUs"),
        ([node(cpus=2, label=DATA | TYPED)], DATA, "warning", "nodes with ray-subcluster=data have 2 CPUs"),
        ([node(label=TYPED)], DATA, "failed", "nodes with ray-subcluster=data have 0 CPUs"),  # Ray Data would wait
        ([node()], DATA, "failed", "nodes with ray-subcluster=data have 0 CPUs, runtime.data_cpus = 4 are asked for"),
        ([node(gpus=8, label=DATA)], DATA, "warning", "a has GPUs and the label"),
    ],
)
def test_labels(nodes, label, outcome, detail):
    verdict = labels(nodes, config(data_label=label))

    assert verdict.outcome == outcome
    assert verdict.detail.startswith(detail)


@pytest.mark.parametrize(
    ("num_workers", "num_nodes", "milliseconds", "by", "outcome", "figures"),
    [
        (16, 2, 12.3, ("nccl", "Libfabric"), "ok", "16 workers on 2 nodes in 12.3 ms, 40.8 GB/s (nccl, Libfabric)"),
        (16, 2, 250.0, ("nccl", "Socket"), "warning", "16 workers on 2 nodes in 250.0 ms, 2.01 GB/s (nccl, Socket): "),
        (16, 2, 250.0, ("nccl", ""), "ok", "16 workers on 2 nodes in 250.0 ms, 2.01 GB/s (nccl)"),
        (8, 1, 2.5, ("nccl", "Socket"), "ok", "8 workers on 1 node in 2.5 ms, 188 GB/s (nccl)"),  # NVLink between them
        (2, 2, 1000.0, ("gloo", ""), "ok", "2 workers on 2 nodes in 1,000.0 ms, 0.268 GB/s (gloo)"),
    ],
)
def test_the_network_of_the_gradients(num_workers, num_nodes, milliseconds, by, outcome, figures):
    verdict = all_reduce(AllReduce(66_985_530, num_workers, num_nodes, milliseconds / 1e3, *by))

    assert verdict.outcome == outcome
    assert verdict.detail.startswith(f"66,985,530 gradients (268 MB) over {figures}")
    assert ("aws-ofi-nccl" in verdict.detail) == (outcome == "warning")


def test_the_network_is_found_among_what_nccl_says():
    log = (
        "node:41:83 [0] NCCL INFO NET/Plugin: Loaded net plugin Libfabric\nnode:41:83 [0] NCCL INFO Using network {}\n"
    )
    assert [network_in(log.format(name)) for name in ("AWS Libfabric", "Socket")] == ["AWS Libfabric", "Socket"]
    assert network_in("node:41:83 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.7<0>\n") == ""


def test_object_stores():
    assert object_stores([node()]).detail == "2.0 GB or more"
    small = object_stores([node(), node("b", store=5e8)])
    assert (small.outcome, small.detail) == ("warning", "b: 0.5 GB; start Ray there with --object-store-memory")
    on_disk = object_stores([node(seen=facts(memory=64 * 2**20))])
    assert on_disk.outcome == "warning"
    assert "but /dev/shm holds 0.1 GB" in on_disk.detail


@pytest.mark.parametrize(
    ("status", "address", "outcome"),
    [
        (401, "10.0.0.1:8265", "ok"),
        (403, "10.0.0.1:8265", "ok"),
        (200, "10.0.0.1:8265", "failed"),
        (500, "10.0.0.1:8265", "failed"),
        (None, "10.0.0.1:8265", "warning"),
        (None, None, "warning"),
    ],
)
def test_the_job_server_asks_for_a_token(status, address, outcome):
    assert jobs_api(status, address).outcome == outcome


@pytest.mark.parametrize(
    ("address", "outcome"),
    [("127.0.0.1:8265", "ok"), ("localhost:8265", "ok"), (None, "ok"), ("10.0.0.1:8265", "warning")],
)
def test_the_dashboard_listens_to_its_own_node(address, outcome):
    assert dashboard(address).outcome == outcome


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_attention_is_asked_in_a_process_of_its_own(monkeypatch, precision):
    ask = verdicts._on_gpus
    monkeypatch.setattr(verdicts, "_on_gpus", lambda script: ask(script.replace("'cuda'", "'cpu'")))
    settings = small_config(runtime__precision=precision)
    line = verdicts._attention(settings, small_pair(dropout=0.1))
    assert line.startswith("attention: teacher FLASH_ATTENTION, student MATH; cuDNN ")
    assert verdicts._attention(settings, []) == ""  # models that did not load
