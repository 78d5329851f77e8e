"""A checkpoint of a run -> its student as it was then, in a Hugging Face folder of its own."""

from pathlib import Path

import torch

from distil_ray.errors import InputError
from distil_ray.models.embedding import NO_FILES, sentence_transformers_files
from distil_ray.runs.console import Console
from distil_ray.runs.storage import RunFolder
from distil_ray.training.assembly import build_models, build_tokenizer
from distil_ray.training.checkpoint import checkpoint_of
from distil_ray.training.export import export_student
from distil_ray.training.history import read_history
from distil_ray.training.metrics import summarize


def export_checkpoint(path: str, output: Path, step: int | None, console: Console) -> None:
    """Write the student of the run in the folder ``path`` to ``output``, as `export_student` does at a run's end.

    Args:
        output: a new or an empty folder.
        step: of the checkpoint; None: the newest.

    Raises:
        InputError: there is no run or no such checkpoint, it is damaged, the models cannot be loaded, or ``output``
            holds files.
        OutageError: a storage or the Hub does not answer.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"--output: given {output}, which is there already; expected a new or an empty folder")
    history = read_history(path)
    checkpoint = checkpoint_of(history.folder, step)
    config = history.config
    tokenizer = build_tokenizer(config, history.models)
    _, student = build_models(config, tokenizer, history.models)
    tensors = checkpoint.load("student")
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(tensors[name])
    pin = history.models.get("teacher")
    embedding = NO_FILES if pin is None else sentence_transformers_files(pin.origin, student)
    for line in embedding.omitted:
        console.line(line)
    summary = summarize(history.records, checkpoint.state)
    folder = RunFolder.at(str(output.parent))
    export_student(folder, student, tokenizer, config, summary, embedding.files, name=output.name)
    console.line(f"{history.name} at step {checkpoint.state.step:,}: {output}")
