"""The shipped recipes for more families and losses: each runs, with small models of the family and little text."""

from pathlib import Path
from typing import Any

import pytest
from plain_runs import PlainRun
from runs import records
from small_models import small_encoder, small_model
from transformers import PreTrainedTokenizerBase

from distil_ray.config import load_config, to_settings
from distil_ray.models.families import has_head
from distil_ray.models.loading import load_encoder, load_masked_lm, load_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {
    "minilmv2-6x768": ("bert", {"num_hidden_layers": 12}),
    "minilmv2-6x384": ("bert", {"num_hidden_layers": 12}),
    "distil-modernbert": ("modernbert", {"num_hidden_layers": 22}),
    "distil-embedding": ("bert", {"num_hidden_layers": 6}),
}


def save_teacher(folder: Path, recipe: str, tokenizer: PreTrainedTokenizerBase, *, has_head: bool) -> str:
    family, fields = RECIPES[recipe]
    fields = fields | {"hidden_size": 96, "max_position_embeddings": 34, "pad_token_id": tokenizer.pad_token_id}
    if has_head:
        small_model(family, vocab_size=len(tokenizer), **fields).save_pretrained(folder)
    else:
        small_encoder(family, vocab_size=len(tokenizer), **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def smaller(recipe: str, corpus: Path, folder: Path, teacher: str) -> dict[str, Any]:
    """A recipe's settings, with a teacher and a text of this machine, for a few short rows and steps."""
    config = load_config([str(CONFIGS / f"{recipe}.yaml")], [f"data.sources={corpus}", f"teacher.path={teacher}"])
    settings = to_settings(config)
    settings["run"]["storage_path"] = str(folder / "runs")
    settings["data"] |= {"max_seq_length": 32, "eval_fraction": 0.1, "steps_per_block": 1}
    settings["optim"] |= {"global_batch_size": 16, "num_steps": 6, "num_epochs": None, "learning_rate": 2e-3}
    settings["eval"] |= {"every_steps": 6, "num_rows": 16}
    settings["checkpoint"] |= {"every_steps": 6, "every_minutes": None}
    if settings["student"].get("hidden_size"):
        settings["student"]["hidden_size"] = 48
    settings["runtime"] |= {"num_workers": 1, "use_gpu": False, "compile": False, "precision": "fp32", "data_cpus": 1}
    return settings


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_on_a_small_model_of_its_family(recipe, corpus, tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    config = load_config([str(CONFIGS / f"{recipe}.yaml")], ["data.sources=a"])
    assert config.teacher is not None
    teacher = save_teacher(tmp_path / "teacher", recipe, tokenizer, has_head=config.teacher.head is None)
    run = PlainRun(smaller(recipe, corpus, tmp_path, teacher))
    assert run.start().kind == "finished"
    first, last = records(run.path)[0], records(run.path)[-1]
    assert last["eval/relation_loss"] < first["eval/relation_loss"]
    load = load_masked_lm if config.student.head is None else load_encoder
    student = load(str(run.path / "export"))
    assert has_head(student) == (config.student.head is None)
    assert student.config.hidden_size == (48 if config.student.hidden_size else 96)
    assert student.config.num_hidden_layers == (RECIPES[recipe][1]["num_hidden_layers"] + 1) // 2
