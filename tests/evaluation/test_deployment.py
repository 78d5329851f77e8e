"""Files for a device: with the names of the classes, kept when another model's export fails, and of this content."""

import json

import pytest
from glue_rows import write_glue
from small_models import small_model
from training_parts import save_model

from distil_ray.errors import RunError
from distil_ray.evaluation.deployment import deploy_all, stale_files
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.protocol import load_protocol
from distil_ray.evaluation.results import FinetuneJob, Results
from distil_ray.evaluation.tasks import chosen_tasks, read_tasks
from distil_ray.models.origin import Origin


def test_a_failed_export_leaves_the_others(ray_cluster, tmp_path):
    protocol = load_protocol([], ["finetuning.num_epochs=1", "finetuning.max_seq_length=12"])
    tasks, data = read_tasks(chosen_tasks(["sst2"], str(write_glue(tmp_path / "glue")), {}), protocol)
    results, folder = Results(tmp_path, protocol, tasks, data), tmp_path / "on-device"
    model = save_model(tmp_path / "model", small_model("bert", num_hidden_layers=1))
    places = {"gone": "/no/such/model", "half": model}
    jobs = [FinetuneJob(Model(name, Origin(path)), "sst2", 1) for name, path in places.items()]
    lines: list[str] = []
    with pytest.raises(
        RunError, match=r"^1 of 2 exports for a device failed:\n  gone on sst2, seed 1: .*/no/such/model"
    ):
        deploy_all(jobs, results, folder, lines.append)

    assert f"half: sst2 for a device, in {folder}/half" in lines
    config = json.loads((folder / "half/config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["label2id"] == {"negative": 0, "positive": 1}
    found = deploy_all(jobs[1:], results, folder, lines.append)
    assert [one.format for one in found["half"]] == ["PyTorch", "ONNX", "ONNX int8"]

    assert stale_files(jobs, results, folder) == []
    figures = (folder / "half/figures.json").read_text()
    (folder / "half/figures.json").write_text("")  # as after a power cut
    assert stale_files(jobs, results, folder) == []
    assert deploy_all(jobs[1:], results, folder, lines.append).keys() == {"half"}
    assert json.loads((folder / "half/figures.json").read_text())["made_with"] == json.loads(figures)["made_with"]

    save_model(tmp_path / "model", small_model("bert", num_hidden_layers=1, seed=4))
    (stale,) = stale_files(
        [FinetuneJob(Model("half", Origin(model)), "sst2", 1)], Results(tmp_path, protocol, tasks, data), folder
    )
    assert stale.file == folder / "half/figures.json"
    assert stale.reasons == [f"half: the model in {model} has other weights or another configuration"]
