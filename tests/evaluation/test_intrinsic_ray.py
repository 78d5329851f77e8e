"""Models on held-out text, streamed through a real Ray: the same figures however many processes there are."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from intrinsic_parts import TEXT, VOCABULARY, all_rows, close, listed, save_models, totals_of, write_text

from distil_ray.config import Source
from distil_ray.data.batch import Arrays
from distil_ray.data.pipeline import Room, evaluated_blocks
from distil_ray.errors import InputError
from distil_ray.evaluation import intrinsic
from distil_ray.evaluation.intrinsic import measure_intrinsic, text_plan
from distil_ray.evaluation.protocol import Resources
from distil_ray.models.loading import load_masked_lm


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def test_figures_are_those_of_one_process(ray_cluster, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(intrinsic, "SECONDS_BETWEEN_LINES", 0.0)
    sources = write_text(tmp_path / "text.parquet", [29, 89, 0, 139, 49])
    rows, models = all_rows(sources, TEXT), [load_masked_lm(path).eval() for path in paths.values()]
    expected = totals_of(models, rows, TEXT)
    assert len(rows["row"]) == 19  # in blocks of 4; the empty document gives none

    for cpus, num_processes in ((4, 1), (3, 2)):  # the two leave no slot for the text
        lines: list[str] = []
        found = measure_intrinsic(listed(paths), sources, TEXT, Resources(cpus=cpus), lines.append)
        assert list(found) == ["teacher", "half"]
        for index, figures in enumerate(found.values()):
            assert figures._asdict() == close(expected.of(index)._asdict(), rel=1e-6)
        assert f"from 5 of 5 units; processes: {num_processes} × {cpus} CPU" in lines[0]
        assert lines[-1].startswith("text: 19 rows, 100%, ")


def counted_blocks(path: Path) -> list[int]:
    """The rows of each block of a text, by an evaluator that needs no model."""

    class Count:  # in here, it is sent to the actors by value
        def __call__(self, rows: Arrays) -> Arrays:
            return {"num_rows": np.array([len(rows["row"])])}

    plan = text_plan([Source(path=str(path))], VOCABULARY, TEXT)
    room = Room(num_actors=1, cpus=1, gpus=0, data_cpus=1, max_restarts=0)
    return [int(block["num_rows"][0]) for block in evaluated_blocks(plan, Count, (), block_rows=4, room=room)]


def test_a_text_without_a_row_has_no_block(ray_cluster, tmp_path):
    (tmp_path / "text.txt").write_text("\n \n")
    assert counted_blocks(tmp_path / "text.txt") == []


def test_a_damaged_text(ray_cluster, tmp_path):
    path = tmp_path / "text.parquet"
    pq.write_table(pa.table({"text": [f"w{i} w3" for i in range(2000)]}), path, compression="snappy")
    assert counted_blocks(path) == [4, 4, 4, 4, 4, 2]
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        counted_blocks(path)
    assert str(caught.value).startswith(f"{path}: row group 0: damaged (")
    assert "\n" not in str(caught.value)
