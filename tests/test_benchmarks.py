"""The benchmarks run, at the smallest sizes, and print their figures last. What they measure here means nothing.

benchmarks/memory.py is left out: it consists of two runs of the training command, which others test.
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import own_ray

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "distil_ray/quickstart/teacher"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=own_ray(), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def figures(output: str) -> dict:
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_a_step_of_each_way_with_its_kernels_and_as_a_table(tmp_path):
    output = run(
        *("step", "--device=cpu", "--shape=mini", "--rows=2", "--tokens=16", "--steps=1", "--threads=1", "--profile"),
        *("--without", "half-layer-norms", "padded-decoder", "fast-on-processor"),
        *("--variants", "ours (masked)", "ours (all)", "original", "original (mask)", "tuned"),
    )
    results = figures(output)["results"]
    assert len(results) == 5
    assert all(result["tokens_per_second"] > 0 for result in results)
    (tmp_path / "results.jsonl").write_text(json.dumps({"part": "peers-16"} | figures(output)))
    table = run("gpu_table", "--results", str(tmp_path / "results.jsonl"))
    assert "original" in table
    assert "ours (masked)" in table


@pytest.mark.slow
def test_fine_tuning_each_way():
    results = figures(run("finetune", "--device=cpu", "--model=small", "--rows=1", "--rounds=1", "--threads=1"))
    assert {"ours", "plain"} <= {result["way"] for result in results["results"]}


@pytest.mark.slow
def test_the_data_plane(corpus):
    arguments = ("--megabytes=0.02", "--rounds=1", "--data-cpus=1", "--block-rows=8", "--tokens=16")
    output = run("data", f"--source={corpus}", f"--tokenizer={TOKENIZER}", *arguments)
    assert "pipeline_vs_hugging_face" in output
    assert figures(output)["benchmark"] == "data"


@pytest.mark.slow
def test_one_pipeline_and_many_workers():
    assert figures(run("scale", "--consumers=2", "--blocks=20", "--data-cpus=1"))["benchmark"] == "scale"


def test_the_sentences_to_distil_on_are_those_of_no_validation_row(tmp_path):
    def write(task: str, split: str, **columns: list) -> None:
        (tmp_path / "glue" / task).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "glue" / task / f"{split}-00000-of-00001.parquet")

    write("cola", "train", sentence=["One.", "Two.", " Two."], label=[0, 1, 1])
    write("cola", "validation", sentence=["Five."], label=[0])
    write("rte", "train", sentence1=["Three.", "Four."], sentence2=["Five.", "Six."], label=[0, 1])
    write("rte", "validation", sentence1=["Six."], sentence2=["Seven."], label=[1])
    arguments = ("claim/sentences", str(tmp_path / "glue"), str(tmp_path / "text"), "--tasks", "cola", "rte")
    assert "4 sentences in 64 files" in run(*arguments)
    texts = [text for path in (tmp_path / "text").iterdir() for text in pq.read_table(path)["text"].to_pylist()]
    assert sorted(texts) == ["Four.", "One.", "Three.", "Two."]
    with pytest.raises(AssertionError, match="is not empty; name a new folder"):
        run(*arguments)
