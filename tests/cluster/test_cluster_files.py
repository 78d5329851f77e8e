"""The clusters' descriptions hold together: with schemas, with the pinned versions, with the recipes."""

import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from distil_ray.config import load_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"

# The fields of KubeRay 1.6, as its API reference lists them. What is in a pod template is Kubernetes' own.
FIELDS = {
    "RayClusterSpec": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy networkPolicy rayVersion suspend upgradeStrategy workerGroupSpecs",
    "AuthOptions": "enableK8sTokenAuth mode secretName",
    "AutoscalerOptions": "env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode "
    "version volumeMounts",
    "HeadGroupSpec": "enableIngress headService labels rayStartParams resources serviceType template",
    "WorkerGroupSpec": "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams replicas "
    "resources scaleStrategy suspend template",
    "RayJobSpec": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
    "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished",
}


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def test_ray_accepts_the_files():
    validate_config(prepare_config(read("aws.yaml")))
    local = read("local.yaml")
    local["provider"] |= {"head_ip": "192.0.2.1", "worker_ips": ["192.0.2.2", "192.0.2.3"]}
    prepared = prepare_config(local)
    validate_config(prepared)
    assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == 2


def test_a_slip_would_be_seen():
    cluster = read("aws.yaml")
    cluster["available_node_types"]["gpu"]["lables"] = {}
    with pytest.raises(Exception, match="lables"):
        validate_config(prepare_config(cluster))


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_nobody_gets_in_without_a_token(name):
    text = (CLUSTER / name).read_text()
    assert "RAY_AUTH_MODE=token" in text
    starts = [command for command in read(name)["head_start_ray_commands"] if "ray start --head" in command]
    assert all("--dashboard-host=127.0.0.1" in command for command in starts)
    assert len(starts) == 1
    assert "~/.ray" in read(name)["file_mounts"].values() or "~/.ray/auth_token" in read(name)["file_mounts"].values()
    assert "chmod 600 ~/.ray/auth_token" in read(name)["setup_commands"]


def test_images_have_the_pinned_ray_and_the_cuda_of_the_pinned_torch():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert (ray.__version__, torch.__version__.partition("+")[0]) == (pins["ray"], pins["torch"])
    texts = {name: (CLUSTER / name).read_text() for name in ("aws.yaml", "kuberay.yaml", "Dockerfile")}
    images = {image for text in texts.values() for image in re.findall(r"rayproject/ray:\S+", text)}
    assert {image.rstrip(".") for image in images} == {
        f"rayproject/ray:{pins['ray']}-py311-cpu",
        f"rayproject/ray:{pins['ray']}-py311-cu130",  # torch 2.13's wheels are built with CUDA 13.0
    }
    assert pins["torch"].startswith("2.13.")
    assert kuberay()[0]["spec"]["rayVersion"] == pins["ray"]


def test_the_image_has_efa_where_it_is_asked_for():
    """Without Docker: its commands as far as they go without being root, and who asks for which version."""
    joined = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    (script,) = re.findall(r"^RUN (if .*)$", joined, flags=re.MULTILINE)
    for efa, options in (("", []), ("1.50.0", ["-n"])):  # on CPU nodes it does nothing; of the rest, the syntax
        ran = subprocess.run(["sh", "-eu", *options, "-c", script], env={"EFA": efa}, capture_output=True, text=True)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert script.index("sha256sum --check") < script.index("tar --extract") < script.index("./efa_installer.sh")
    assert re.search(r"^ARG EFA=$", joined, flags=re.MULTILINE)
    assert re.search(r"^ARG EFA_SHA256=[0-9a-f]{64}$", joined, flags=re.MULTILINE)
    lines = joined.splitlines()
    assert lines.index("USER root") < lines.index(f"RUN {script}") < lines.index("USER ray")
    texts = [(ROOT / name).read_text() for name in ("cluster/Dockerfile", "cluster/aws.yaml", "docs/clusters/aws.md")]
    assert [set(re.findall(r"--build-arg EFA=([\d.]+\d)", text)) for text in texts] == [{"1.50.0"}] * 3


def kuberay() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))


def test_kuberay_knows_every_field():
    cluster, job = kuberay()
    assert {(one["apiVersion"], one["kind"]) for one in (cluster, job)} == {
        ("ray.io/v1", "RayCluster"),
        ("ray.io/v1", "RayJob"),
    }
    spec = cluster["spec"]
    objects = [("RayClusterSpec", spec), ("AuthOptions", spec["authOptions"]), ("RayJobSpec", job["spec"])]
    objects += [("AutoscalerOptions", spec["autoscalerOptions"]), ("HeadGroupSpec", spec["headGroupSpec"])]
    objects += [("WorkerGroupSpec", group) for group in spec["workerGroupSpecs"]]
    for kind, one in objects:
        assert set(one) <= set(FIELDS[kind].split()), kind


def test_pods_are_restricted():
    cluster, job = kuberay()
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    for group in (cluster["spec"]["headGroupSpec"], *groups.values()):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/dev/shm"]
        assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
    (gpu,) = groups["gpu"]["template"]["spec"]["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "distil_ray.drain --now" in gpu["lifecycle"]["preStop"]["exec"]["command"][2]
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def test_kubernetes_accepts_the_pods():
    """With Kubernetes' own schemas, of which pip has a package of 22 MB; by hand, when the pods change."""
    validate = pytest.importorskip("kubernetes_validate").validate
    cluster, job = kuberay()
    templates = [
        group["template"] for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"])
    ]
    for template in (*templates, job["spec"]["submitterPodTemplate"]):
        document = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        validate(document, "1.33", strict=True)


def test_clusters_offer_what_the_recipes_ask_for():
    aws = read("aws.yaml")["available_node_types"]
    groups = {group["groupName"]: group for group in kuberay()[0]["spec"]["workerGroupSpecs"]}
    assert aws["cpu"]["labels"] == groups["cpu"]["labels"] == {"ray-subcluster": "data"}
    assert aws["gpu"]["labels"] == groups["gpu"]["labels"]
    assert (aws["cpu"]["min_workers"], groups["cpu"]["minReplicas"]) == (1, 1)
    assert (aws["head"]["resources"], kuberay()[0]["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"]) == (
        {"CPU": 0},
        "0",
    )
    command = kuberay()[1]["spec"]["entrypoint"]
    recipe = re.search(r"--config (\S+)", command)[1]
    config = load_config([recipe], ["run.storage_path=s3://bucket/runs"])
    assert config.runtime.max_workers <= 8 * aws["gpu"]["max_workers"]
    assert config.runtime.data_cpus <= 32 * aws["cpu"]["max_workers"]


# The fields that the documentation of SkyPilot 0.14 (YAML spec) and Anyscale 0.26 (JobConfig, ComputeConfig) have.
SKY_FIELDS = {
    "": "name workdir num_nodes resources envs secrets volumes file_mounts setup run config service pool",
    "resources": "infra accelerators accelerator_args cpus memory instance_type use_spot disk_size disk_tier "
    "network_tier image_id ports labels autostop any_of ordered job_recovery",
}
ANYSCALE_FIELDS = {
    "": "name image_uri containerfile compute_config working_dir excludes requirements env_vars py_modules "
    "py_executable cloud project registry_login_secret connections priority entrypoint max_retries job_queue_config "
    "timeout_s tags",
    "compute_config": "cloud cloud_resource head_node worker_nodes min_resources max_resources zones "
    "enable_cross_zone_scaling advanced_instance_config flags auto_select_worker_config",
    "head_node": "instance_type resources required_resources labels required_labels advanced_instance_config flags "
    "cloud_deployment",
}
ANYSCALE_FIELDS["worker_nodes"] = f"{ANYSCALE_FIELDS['head_node']} name min_nodes max_nodes market_type"


def command_in(script: str) -> list[str]:
    """The words of the command that trains, after its module."""
    words = shlex.split(script.replace("\\\n", " "))
    return words[words.index("distil_ray.train") + 1 :]


def test_skypilot_knows_every_field():
    task = read("sky.yaml")
    assert set(task) <= set(SKY_FIELDS[""].split())
    assert set(task["resources"]) <= set(SKY_FIELDS["resources"].split())
    for script in ("setup", "run"):
        checked = subprocess.run(["bash", "-n", "-c", task[script]], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_run_on_skypilot_is_valid():
    task = read("sky.yaml")
    (option, name, storage, workers) = command_in(task["run"])[:4]
    assert (option, name) == ("--config", "$CONFIG")
    storage = storage.replace("$STORAGE", task["envs"]["STORAGE"])
    assert workers == "runtime.num_workers=[8, $((8 * SKYPILOT_NUM_NODES))]"
    workers = workers.replace("$((8 * SKYPILOT_NUM_NODES))", str(8 * task["num_nodes"]))
    config = load_config([str(ROOT / "configs" / f"{task['envs']['CONFIG']}.yaml")], [storage, workers])
    assert config.runtime.max_workers == 16
    assert all(name.endswith(":8") for name in task["resources"]["accelerators"])


def test_anyscale_knows_every_field():
    job = read("anyscale.yaml")
    compute = job["compute_config"]
    objects = [("", job), ("compute_config", compute), ("head_node", compute["head_node"])]
    for kind, one in [*objects, *(("worker_nodes", group) for group in compute["worker_nodes"])]:
        assert set(one) <= set(ANYSCALE_FIELDS[kind].split()), kind


def test_the_run_on_anyscale_is_valid_and_finds_its_nodes():
    job = read("anyscale.yaml")
    option, name, *settings = command_in(job["entrypoint"])
    assert option == "--config"
    config = load_config([str(ROOT / "configs" / f"{name}.yaml")], settings)
    cpu, gpu = job["compute_config"]["worker_nodes"]
    assert config.runtime.data_label == cpu["labels"]
    assert config.runtime.max_workers == 8 * gpu["max_nodes"]
    assert config.runtime.data_cpus <= 32 * cpu["max_nodes"]


def test_what_a_job_takes_along(tmp_path):
    """What Ray packs of a checkout in which somebody has worked."""
    folder, package = tmp_path / "checkout", tmp_path / "package.zip"
    kept = {
        "distil_ray/train.py",
        "distil_ray/quickstart/teacher/model.safetensors",
        "configs/tiny.yaml",
        "my/text.txt",
    }
    left = {"runs/a/export/model.safetensors", "tests/test_a.py", "my/checkpoint_000000010/student.safetensors"}
    for name in kept | left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    create_package(str(folder), package, include_gitignore=True)
    with zipfile.ZipFile(package) as packed:
        files = {name for name in packed.namelist() if not name.endswith("/")}
    assert files - {".gitignore", ".rayignore"} == kept


def test_the_limit_in_the_guide_is_that_of_rays_job_server():
    files = ("cluster/README.md", "docs/clusters/index.md", "docs/troubleshooting.md", ".rayignore")
    text = "".join((ROOT / name).read_text() for name in files)
    assert set(re.findall(r"(\d+) MiB", text)) == {str(DASHBOARD_CLIENT_MAX_SIZE // 2**20)}


def test_what_nodes_install_is_the_package_with_its_exact_versions(tmp_path):
    """`make dist`, in a copy of what git has."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "copy")], check=True)
    (tmp_path / "copy" / ".venv").symlink_to(ROOT / ".venv")
    made = subprocess.run(
        ["make", "--old-file", ".venv/.installed", "dist"], cwd=tmp_path / "copy", capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    files = sorted(path.name for path in (tmp_path / "copy" / "dist").iterdir())
    assert files[0] == "constraints.txt"
    with zipfile.ZipFile(tmp_path / "copy" / "dist" / files[1]) as wheel:
        names = wheel.namelist()
    assert {"distil_ray/train.py", "distil_ray/configs/tiny.yaml", "distil_ray/reporting/report.html.j2"} <= set(names)
