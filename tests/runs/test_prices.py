"""What a cluster's YAML says of prices, and which nodes a run takes of it."""

from pathlib import Path

import pytest
import yaml

from distil_ray.config import parse_config
from distil_ray.errors import InputError
from distil_ray.runs.prices import nodes_for, read_prices

AWS = Path(__file__).parents[2] / "cluster" / "aws.yaml"
DATA = {"ray-subcluster": "data"}


def config(**runtime):
    return parse_config(
        {
            "run": {"name": "run"},
            "teacher": {"path": "org/teacher"},
            "data": {"sources": "/text"},
            "optim": {"num_steps": 10, "global_batch_size": 1024},
            "runtime": {"use_gpu": True, "num_workers": 8, "data_cpus": 32, "data_label": DATA, **runtime},
        }
    )


def written(folder, change):
    """The file that is shipped, after ``change`` to what it holds."""
    cluster = yaml.safe_load(AWS.read_text())
    change(cluster)
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    return folder / "cluster.yaml"


def hired(config, path=AWS):
    hire = nodes_for(config, read_prices(path))
    return {node_type.name: count for node_type, count in hire.counts.items()}, hire


@pytest.mark.parametrize(
    ("runtime", "counts"),
    [
        ({}, {"head": 1, "cpu": 1, "gpu": 1}),
        ({"num_workers": [1, 16], "data_cpus": 33}, {"head": 1, "cpu": 2, "gpu": 2}),
        ({"resources_per_worker": {"GPU": 0.5}}, {"head": 1, "cpu": 1, "gpu": 1}),
        ({"num_workers": 16, "resources_per_worker": {"GPU": 0.5}}, {"head": 1, "cpu": 1, "gpu": 1}),
        ({"num_workers": 4, "resources_per_worker": {"GPU": 3}}, {"head": 1, "cpu": 1, "gpu": 2}),  # two on a node
        ({"use_gpu": False, "resources_per_worker": {"CPU": 8}}, {"head": 1, "cpu": 3}),
        ({"data_label": None}, {"head": 1, "cpu": 1, "gpu": 1}),
    ],
)
def test_nodes_that_a_run_takes(runtime, counts):
    assert hired(config(**runtime))[0] == counts


def test_an_hour_costs_what_the_nodes_cost():
    _, hire = hired(config(num_workers=16, data_cpus=64))
    assert hire.usd_per_hour == pytest.approx(0.40 + 2 * 0.72 + 2 * 21.96)
    assert (hire.of_workers.gpu, str(hire.of_workers)) == ("A100", "p4d.24xlarge")


def test_prices_and_gpus_follow_the_instance_type_and_its_market(tmp_path):
    def on_spot(cluster):
        types = cluster["available_node_types"]
        types["gpu"]["max_workers"], types["gpu-spot"]["max_workers"] = 0, 8
        types["gpu-spot"]["node_config"]["InstanceType"] = "p5.48xlarge"

    counts, hire = hired(config(), written(tmp_path, on_spot))
    assert counts == {"head": 1, "cpu": 1, "gpu-spot": 1}
    assert (hire.of_workers.gpu, str(hire.of_workers)) == ("H100", "p5.48xlarge on spot")
    assert hire.usd_per_hour == pytest.approx(0.40 + 0.72 + 18.35)


def test_a_price_that_is_changed_in_the_file_counts(tmp_path):
    def dearer(cluster):
        cluster["metadata"]["prices"]["instances"]["p4d.24xlarge"]["on_demand"] = 32

    assert hired(config(), written(tmp_path, dearer))[1].usd_per_hour == pytest.approx(0.40 + 0.72 + 32)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"num_workers": 128}, "no node type of .*aws.yaml has room for 128 times 1 GPU; .* raise max_workers"),
        ({"data_cpus": 257}, "has room for 257 times 1 CPU"),
        ({"data_label": {"zone": "b"}}, r"with the label {'zone': 'b'} has room for 32 times 1 CPU"),
    ],
)
def test_a_run_that_the_cluster_cannot_hold(runtime, message):
    with pytest.raises(InputError, match=message):
        hired(config(**runtime))


def without_prices(cluster):
    del cluster["metadata"]["prices"]


def without_a_type(cluster):
    del cluster["metadata"]["prices"]["instances"]["c7i.8xlarge"]


def without_spot(cluster):
    del cluster["metadata"]["prices"]["instances"]["c7i.8xlarge"]["spot"]


def with_a_gpu_that_nobody_knows(cluster):
    cluster["metadata"]["prices"]["instances"]["p4d.24xlarge"]["gpu"] = "Voodoo2"


def with_text_for_a_price(cluster):
    cluster["metadata"]["prices"]["instances"]["p4d.24xlarge"]["on_demand"] = "much"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_prices, "prices"),
        (without_a_type, "c7i.8xlarge"),
        (without_spot, "spot"),
        (with_a_gpu_that_nobody_knows, "Voodoo2"),
        (with_text_for_a_price, "much"),
    ],
)
def test_a_file_without_its_prices_is_refused(tmp_path, change, reason):
    with pytest.raises(InputError, match=rf"^--cluster: .*cluster.yaml has no such prices as .*{reason}"):
        read_prices(written(tmp_path, change))


@pytest.mark.parametrize("content", ["", "- a list", "a: [", "metadata: text", b"\xff\xfe"])
def test_what_is_no_cluster_is_refused(tmp_path, content):
    path = tmp_path / "cluster.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"^--cluster: .*cluster\.yaml "):
        read_prices(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_prices(tmp_path / "none.yaml")
