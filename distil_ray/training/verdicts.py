"""What `doctor` finds: what one node sees of itself, storage, models and text, and the verdict on each question."""

import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from transformers import PreTrainedModel

from distil_ray.config import Config
from distil_ray.data.fast_tokenizer import PACKAGE as FAST_PACKAGE
from distil_ray.data.plan import DataPlan
from distil_ray.data.tally import text_warnings
from distil_ray.errors import InputError, reason_of
from distil_ray.models.attention import Attention
from distil_ray.runs.cluster import has_label, is_autoscaled
from distil_ray.runs.storage import RunFolder
from distil_ray.training.all_reduce import AllReduce
from distil_ray.training.assembly import build_models, build_tokenizer

PACKAGES = ("distil-ray", "ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "safetensors")


@dataclass(frozen=True)
class NodeFacts:
    """What a node found out.

    Attributes:
        versions: of Python and of the packages that have to be equal; "not installed" where one is missing.
        fast_version: of the package that tokenizes faster; the same.
        gpu_names: of all GPUs that torch sees.
        shared_memory_bytes: size of /dev/shm; None where there is none.
        errors: by what was tried (storage, models, text): why it did not work, empty if it did.
        text_warnings: what should be looked at in the text.
        attention: which implementation of it the models get on the first GPU; empty without one.
        num_gradients: one for each of the student's parameters that are trained; 0 if it has not been loaded.
    """

    versions: dict[str, str]
    fast_version: str
    gpu_names: list[str]
    shared_memory_bytes: int | None
    errors: dict[str, str] = field(default_factory=dict)
    text_warnings: list[str] = field(default_factory=list)
    attention: str = ""
    num_gradients: int = 0


def probe(config: Config, plan: DataPlan | None, mark: str, node: str, *, has_data_tasks: bool) -> NodeFacts:
    """Look around on this node.

    Args:
        plan: of the data; None leaves the text out.
        mark: folder in the run's storage path, the same for all nodes, where each leaves a file.
        node: name of that file.
        has_data_tasks: whether text will be read here.
    """
    warnings: list[str] = []
    models: list[PreTrainedModel | None] = []
    errors = {
        "storage": _error(lambda: RunFolder(config.run.storage_path, mark).write_text(node, node)),
        "models": _error(lambda: models.extend(build_models(config, build_tokenizer(config)))),
    }
    if has_data_tasks and plan is not None:
        errors["text"] = _error(lambda: warnings.extend(_look_at_text(config, plan)))
    gpu_names = _on_gpus(
        "import torch\nfor i in range(torch.cuda.device_count()): print(torch.cuda.get_device_name(i))"
    )
    return NodeFacts(
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        fast_version=_version(FAST_PACKAGE),
        gpu_names=gpu_names,
        attention=_attention(config, models) if gpu_names else "",
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        errors=errors,
        text_warnings=warnings,
        num_gradients=models[1].num_parameters(only_trainable=True) if models and models[1] is not None else 0,
    )


def _error(attempt: Callable[[], object]) -> str:
    """Why something does not work; empty if it does."""
    try:
        attempt()
    except InputError as error:
        return str(error)
    except Exception as error:  # of any kind: it is the answer
        return f"{type(error).__name__}: {reason_of(error)}"
    return ""


def _look_at_text(config: Config, plan: DataPlan) -> list[str]:
    """Make rows of a little text, and return what is worth a warning."""
    tally = plan.glance()
    limit = config.data.warn_skipped_fraction
    return text_warnings(tally.counts(), tally.first_places, max_lost_fraction=limit)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _attention(config: Config, models: Sequence[PreTrainedModel | None]) -> str:
    """Which implementation of attention the models get on the first GPU; empty if they have not been loaded."""
    roles = {role: model for role, model in zip(("teacher", "student"), models, strict=False) if model is not None}
    attentions = {role: tuple(Attention.of(model, is_trained=role == "student")) for role, model in roles.items()}
    given = config.runtime.precision
    precision = "fastest_precision(gpu)" if given == "auto" else repr(given)
    script = (
        "import torch\n"
        "from distil_ray.models.attention import Attention, describe_attention\n"
        "from distil_ray.models.precision import DTYPES, fastest_precision\n"
        "gpu = torch.device('cuda')\n"
        f"models = {{role: Attention(*values) for role, values in {attentions!r}.items()}}\n"
        f"print(describe_attention(models, {config.data.max_seq_length}, DTYPES[{precision}], gpu))"
    )
    return " ".join(_on_gpus(script)) if roles else ""


def _on_gpus(script: str) -> list[str]:
    """The lines that a script prints, in a process of its own: Ray hides the GPUs from a task that asks for none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    return result.stdout.splitlines()


Outcome = Literal["ok", "warning", "failed", "not tried"]
_MIN_OBJECT_STORE_BYTES = 10**9


@dataclass(frozen=True)
class Verdict:
    """The result of a check."""

    check: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Node:
    """What Ray says about a node, and what the node says about itself (or why it does not)."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    facts: NodeFacts | str


def answers(nodes: Sequence[Node]) -> Verdict:
    """Whether every node has answered."""
    silent = [f"{node.name}: {node.facts}" for node in nodes if isinstance(node.facts, str)]
    if silent:
        return Verdict("nodes", "failed", "; ".join(silent))
    return Verdict("nodes", "ok", f"{len(nodes)} answer")


def versions(facts: Mapping[str, NodeFacts]) -> Verdict:
    """Whether Python and packages are the same everywhere."""
    if not facts:
        return Verdict("versions", "not tried", "no node has answered")
    found: dict[str, Counter[str]] = {}
    for one in facts.values():
        for package, number in one.versions.items():
            found.setdefault(package, Counter())[number] += 1
    differing = {package: counts for package, counts in found.items() if len(counts) > 1}
    missing = [package for package, counts in found.items() if "not installed" in counts]
    if differing or missing:
        listed = [
            f"{package} is " + ", ".join(f"{version} on {_nodes(count)}" for version, count in counts.items())
            for package, counts in (differing or {name: found[name] for name in missing}).items()
        ]
        return Verdict(
            "versions", "failed", "; ".join(listed) + ": install the same everywhere, as from constraints.txt"
        )
    fast = Counter(one.fast_version for one in facts.values())
    if len(fast) > 1:
        listed = [f"{version} on {_nodes(count)}" for version, count in fast.items()]
        detail = f"{FAST_PACKAGE} is {', '.join(listed)}: data tasks are slower where it is not what the driver has"
        return Verdict("versions", "warning", detail)
    named = ", ".join(f"{name} {next(iter(found[name]))}" for name in ("python", "ray", "torch") if name in found)
    return Verdict("versions", "ok", f"equal on all nodes ({named})")


def reading_and_writing(facts: Mapping[str, NodeFacts], *, is_listed: bool) -> Iterator[Verdict]:
    """Whether storage, models and text can be reached from every node. ``is_listed``: whether the text could be."""
    why_not = {}
    if facts:
        reason = "no node has the label runtime.data_label" if is_listed else "it could not be listed, see above"
        why_not["text"] = reason
    texts = {
        "storage": "every node writes to run.storage_path",
        "models": "teacher, student and tokenizer load on every node",
        "text": "rows are made of the text on every node that will read it",
    }
    for name, fine in texts.items():
        tried = {node: one.errors[name] for node, one in facts.items() if name in one.errors}
        wrong = [f"{node}: {error}" for node, error in tried.items() if error]
        doubts = list(dict.fromkeys(line for one in facts.values() for line in one.text_warnings if name == "text"))
        if wrong:
            yield Verdict(name, "failed", "; ".join(wrong))
        elif not tried:
            yield Verdict(name, "not tried", why_not.get(name, "no node has answered"))
        elif doubts:
            yield Verdict(name, "warning", "; ".join(doubts))
        else:
            yield Verdict(name, "ok", fine)


def shared_storage(written: Sequence[str], facts: Mapping[str, NodeFacts]) -> Verdict:
    """Whether what the nodes have written is all in one place, so that they write to the same storage."""
    writers = [node for node, one in facts.items() if one.errors.get("storage") == ""]
    if not writers:
        return Verdict("one storage", "not tried", "no node has written anything")
    lost = [node for node in writers if node not in written]
    if lost:
        detail = f"what {', '.join(lost)} wrote is not seen from here: expected s3://, gs:// or a shared file system"
        return Verdict("one storage", "failed", detail)
    return Verdict("one storage", "ok", "what every node writes is seen from here")


def gpus(nodes: Sequence[Node], config: Config) -> Verdict:
    """Whether torch sees the GPUs that Ray hands out."""
    wrong = []
    total = 0
    kinds: Counter[str] = Counter()
    for node in nodes:
        promised = int(node.resources.get("GPU", 0))
        seen = node.facts.gpu_names if isinstance(node.facts, NodeFacts) else []
        total += promised
        kinds.update(seen[:promised])
        if len(seen) < promised:
            wrong.append(f"{node.name}: Ray has {promised}, torch sees {len(seen)}; is torch the CUDA build there?")
    if wrong:
        return Verdict("GPUs", "failed", "; ".join(wrong))
    if total == 0:
        outcome: Outcome = "warning" if config.runtime.use_gpu else "ok"
        return Verdict(
            "GPUs", outcome, "none now" + (": an autoscaler would have to add them" if outcome != "ok" else "")
        )
    attentions = [node.facts.attention for node in nodes if isinstance(node.facts, NodeFacts) and node.facts.attention]
    kinds_and_attentions = [", ".join(f"{count} × {kind}" for kind, count in kinds.items()), *dict.fromkeys(attentions)]
    return Verdict("GPUs", "ok", "; ".join(kinds_and_attentions))


def labels(nodes: Sequence[Node], config: Config) -> Verdict:
    """Whether data tasks stay away from the nodes with GPUs."""
    label = config.runtime.data_label
    gpu_nodes = [node for node in nodes if node.resources.get("GPU", 0) > 0]
    others = [node for node in nodes if node not in gpu_nodes and node.resources.get("CPU", 0) > 0]
    if not label:
        if gpu_nodes and others:
            detail = "runtime.data_label is not set: data tasks would take CPUs of the nodes with GPUs, too"
            return Verdict("labels", "warning", detail)
        return Verdict("labels", "ok", "none needed")
    shown = ", ".join(f"{key}={value}" for key, value in label.items())
    cpus = sum(node.resources.get("CPU", 0) for node in nodes if has_label(node.labels, label))
    if cpus < config.runtime.data_cpus:
        detail = f"nodes with {shown} have {cpus:g} CPUs, runtime.data_cpus = {config.runtime.data_cpus} are asked for"
        if cpus and any(is_autoscaled(node.labels) for node in nodes):
            return Verdict("labels", "warning", f"{detail}: an autoscaler would have to add them")
        return Verdict("labels", "failed", detail)
    both = [node.name for node in gpu_nodes if has_label(node.labels, label)]
    if both:
        return Verdict("labels", "warning", f"{', '.join(both)} has GPUs and the label {shown} of the data tasks")
    return Verdict("labels", "ok", f"{cpus:g} CPUs with {shown}")


def all_reduce(measured: AllReduce) -> Verdict:
    """How fast the workers add up their gradients, and whether NCCL has found the network that is made for it."""
    several, network = measured.num_nodes > 1, measured.network
    by = f"{measured.backend}, {network}" if several and network else measured.backend
    detail = (
        f"{measured.num_elements:,} gradients ({measured.num_bytes / 1e6:,.0f} MB) over {measured.num_workers} workers "
        f"on {_nodes(measured.num_nodes)} in {measured.seconds * 1e3:,.1f} ms, "
        f"{measured.bus_bandwidth / 1e9:.3g} GB/s ({by})"
    )
    # No bandwidth tells TCP from the rest: 100 Gbit/s may be a single EFA, or sockets at their best. NCCL tells.
    if several and network == "Socket":
        remedy = (
            "NCCL goes over TCP between the nodes; where they have EFA, use an image with aws-ofi-nccl (see "
            "docs/clusters/aws.md), else look in Ray's logs for what NCCL says (NET/) in the workers' output"
        )
        return Verdict("all-reduce", "warning", f"{detail}: {remedy}")
    return Verdict("all-reduce", "ok", detail)


def object_stores(nodes: Sequence[Node]) -> Verdict:
    """Whether each object store is large enough, and is in memory."""
    wrong = []
    for node in nodes:
        store = node.resources.get("object_store_memory", 0.0)
        memory = node.facts.shared_memory_bytes if isinstance(node.facts, NodeFacts) else None
        if 0 < store < _MIN_OBJECT_STORE_BYTES:
            wrong.append(f"{node.name}: {store / 1e9:.1f} GB; start Ray there with --object-store-memory")
        elif memory is not None and memory < store:
            wrong.append(
                f"{node.name}: {store / 1e9:.1f} GB, but /dev/shm holds {memory / 1e9:.1f} GB, so it is on a disk; "
                "start the container with --shm-size"
            )
    smallest = min((node.resources.get("object_store_memory", 0.0) for node in nodes), default=0.0)
    return Verdict("object store", "warning" if wrong else "ok", "; ".join(wrong) or f"{smallest / 1e9:.1f} GB or more")


def jobs_api(status: int | None, address: str | None) -> Verdict:
    """Whether Ray's job server runs what anybody sends. ``status``: its answer to a request without a token."""
    if address is None:
        return Verdict("authentication", "warning", "this cluster has no dashboard to ask")
    if status is None:
        return Verdict("authentication", "warning", f"the dashboard at {address} does not answer from here")
    if status in (401, 403):
        return Verdict("authentication", "ok", f"{address} asks for a token")
    return Verdict(
        "authentication",
        "failed",
        f"{address} takes requests without a token: anyone who reaches it can run code on this cluster. Start Ray with "
        "RAY_AUTH_MODE=token and a token file (`ray get-auth-token --generate`)",
    )


def dashboard(address: str | None) -> Verdict:
    """Whether the dashboard listens to its own node only."""
    host = (address or "127.0.0.1").rpartition(":")[0] or "127.0.0.1"
    if host in ("127.0.0.1", "localhost", "[::1]"):
        return Verdict("dashboard", "ok", "listens on its own node only")
    detail = f"listens on {host}: expected --dashboard-host 127.0.0.1, and `ray dashboard` or SSH to reach it"
    return Verdict("dashboard", "warning", detail)


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count > 1)}"
