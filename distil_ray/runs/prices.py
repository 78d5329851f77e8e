"""A cluster's YAML, as `ray up` takes it -> which of its nodes a run takes, and what an hour of them costs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from distil_ray.config import Config
from distil_ray.errors import InputError
from distil_ray.models.flops import peak_flops
from distil_ray.runs.cluster import has_label, worker_resources


@dataclass(frozen=True)
class NodeType:
    """One of the YAML's ``available_node_types``, with what ``metadata.prices`` says of its instance type.

    Attributes:
        usd_per_hour: of a node, on spot if the node type is.
        gpu: what `peak_flops` knows its GPUs as; empty without any.
        is_head: one of these is always up, and no work is placed on it.
    """

    name: str
    instance_type: str
    is_spot: bool
    usd_per_hour: float
    num_cpus: int
    num_gpus: int
    gpu: str
    min_nodes: int
    max_nodes: int
    labels: Mapping[str, str] = field(hash=False)
    is_head: bool

    def __str__(self) -> str:
        """What stands for it in a sentence."""
        return f"{self.instance_type}{' on spot' if self.is_spot else ''}"


@dataclass(frozen=True)
class PricedCluster:
    """The node types of a cluster. ``basis``: where and when its prices were looked up."""

    path: Path
    basis: str
    node_types: tuple[NodeType, ...]


class Hire(NamedTuple):
    """The nodes that a run takes: how many of each type, and the type that its workers are on."""

    counts: dict[NodeType, int]
    of_workers: NodeType

    @property
    def usd_per_hour(self) -> float:
        """Price of an hour of all of them."""
        return math.fsum(count * node_type.usd_per_hour for node_type, count in self.counts.items())


def read_prices(path: Path) -> PricedCluster:
    """Read node types and prices.

    Raises:
        InputError: the file cannot be read, or has no ``metadata.prices`` of one of its instance types.
    """
    try:
        cluster = yaml.safe_load(path.read_text(encoding="utf-8"))
        prices = cluster["metadata"]["prices"]
        head = cluster["head_node_type"]
        types = [_node_type(name, one, prices, head) for name, one in cluster["available_node_types"].items()]
        return PricedCluster(path, str(prices["basis"]), tuple(types))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--cluster: {path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"--cluster: {path} has no such prices as cluster/aws.yaml has under metadata.prices, for each instance "
            f"type of its nodes: {type(error).__name__}: {error}"
        ) from error


def _node_type(name: str, described: Mapping[str, Any], prices: Mapping[str, Any], head: str) -> NodeType:
    node = described["node_config"]
    instance_type = node["InstanceType"]
    price = prices["instances"][instance_type]
    gpu = str(price["gpu"]) if "gpus" in price else ""
    if gpu and peak_flops(gpu) is None:
        raise ValueError(f"gpu: {gpu!r} is of unknown speed")
    is_spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return NodeType(
        name=name,
        instance_type=instance_type,
        is_spot=is_spot,
        usd_per_hour=float(price["spot" if is_spot else "on_demand"]),
        num_cpus=int(price["cpus"]),
        num_gpus=int(price.get("gpus", 0)),
        gpu=gpu,
        min_nodes=described.get("min_workers", 0),
        max_nodes=described.get("max_workers", 0),
        labels=described.get("labels", {}),
        is_head=name == head,
    )


def nodes_for(config: Config, cluster: PricedCluster) -> Hire:
    """Choose the nodes of a run with all its workers: the first node type of either kind that is allowed enough.

    Raises:
        InputError: there is none.
    """
    runtime = config.runtime
    worker = worker_resources(config)
    counts = {one: max(one.min_nodes, int(one.is_head)) for one in cluster.node_types}
    cpus: float = runtime.data_cpus
    if runtime.use_gpu:
        of_workers, count = _first(cluster, counts, "GPU", worker["GPU"], runtime.max_workers)
        counts[of_workers] = count
    else:
        cpus += worker["CPU"] * runtime.max_workers
    of_data, count = _first(cluster, counts, "CPU", 1, math.ceil(cpus), runtime.data_label)
    counts[of_data] = count
    return Hire({one: count for one, count in counts.items() if count}, of_workers if runtime.use_gpu else of_data)


def _first(
    cluster: PricedCluster,
    counts: Mapping[NodeType, int],
    kind: str,
    each: float,
    num_places: int,
    label: Mapping[str, str] | None = None,
) -> tuple[NodeType, int]:
    """The first node type of a kind with ``num_places`` times ``each`` GPUs (CPUs), and how many such nodes."""
    for one in cluster.node_types:
        places = (one.num_gpus if kind == "GPU" else one.num_cpus) // each
        if one.is_head or (kind == "GPU") != bool(one.num_gpus) or not places or not has_label(one.labels, label):
            continue
        count = max(math.ceil(num_places / places), counts[one])
        if count <= one.max_nodes:
            return one, count
    labelled = f" with the label {dict(label)}" if label else ""
    raise InputError(
        f"--cluster: no node type of {cluster.path}{labelled} has room for {num_places} times {each:g} {kind}; ask for "
        "fewer in runtime, or raise max_workers of one"
    )
