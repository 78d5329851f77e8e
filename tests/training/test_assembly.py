"""From a configuration to the parts of a run, and what does not go together."""

import json

import numpy as np
import pytest
import torch
from small_models import VOCAB_SIZE, small_model
from training_parts import T, save_model, small_config, small_tokenizer

from distil_ray.errors import InputError
from distil_ray.training.assembly import (
    build_models,
    build_plan,
    build_tokenizer,
    outline_models,
    smoothing_weights,
)
from distil_ray.training.identity import unpinned

WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
MLM_ONLY = {"alpha_ce": 0.0, "alpha_mlm": 1.0, "alpha_cos": 0.0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a teacher of four layers of width 32, for rows of up to 24 tokens."""
    return save_model(tmp_path_factory.mktemp("teacher"), small_model("bert"))


def models(config):
    return build_models(config, build_tokenizer(config))


def outlines(config):
    return outline_models(config, build_tokenizer(config), unpinned(config))


def weights(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def are_equal(model, other):
    other_weights = weights(other)
    return all(torch.equal(weight, other_weights[name]) for name, weight in weights(model).items())


# Tokenizers


def test_the_tokenizer_is_the_teachers(teacher):
    assert build_tokenizer(small_config(teacher__path=teacher)).get_vocab() == small_tokenizer().get_vocab()


def test_a_student_may_bring_the_same_vocabulary(teacher, tmp_path):
    tokenizer = small_tokenizer()
    tokenizer.model_max_length = 7
    tokenizer.save_pretrained(tmp_path)
    config = small_config(teacher__path=teacher, student__tokenizer=str(tmp_path))
    assert build_tokenizer(config).model_max_length == 7


@pytest.mark.parametrize("key", ["student__tokenizer", "student__path"])
def test_another_vocabulary_is_refused_even_of_the_same_size(teacher, tmp_path, key):
    other = save_model(tmp_path, small_model("distilbert"), small_tokenizer(swapped=True))
    with pytest.raises(InputError, match=r"the vocabularies of teacher .* differ, first in the token 'w5'"):
        build_tokenizer(small_config(**{"teacher__path": teacher, key: other}))


def test_without_a_teacher_the_tokenizer_is_the_students(tmp_path):
    path = save_model(tmp_path, small_model("bert"), small_tokenizer(swapped=True))
    own = build_tokenizer(small_config(teacher=None, student__path=path, distill=MLM_ONLY))
    assert own.get_vocab() == small_tokenizer(swapped=True).get_vocab()


# Models


@pytest.mark.parametrize("origin", ["teacher", "path", "config"])
def test_attention_dropout_is_set_wherever_the_student_comes_from(teacher, origin):
    student = {"teacher": {}, "path": {"path": teacher}, "config": {"config": {"model_type": "bert", **WIDTH}}}[origin]
    loaded, plain = models(small_config(teacher__path=teacher, student=student))
    _, changed = models(small_config(teacher__path=teacher, student=student | {"attention_dropout": 0.0625}))
    field = "attention_dropout" if origin == "teacher" else "attention_probs_dropout_prob"
    assert [getattr(model.config, field) for model in (plain, changed)] == [0.1, 0.0625]
    assert [module.p for module in changed.modules() if isinstance(module, torch.nn.Dropout)].count(0.0625) == (
        changed.config.num_hidden_layers
    )
    assert loaded.config.attention_probs_dropout_prob == 0.1
    assert are_equal(plain, changed)


def test_the_student_is_made_from_the_teachers_layers(teacher):
    loaded, student = models(small_config(teacher__path=teacher, student__layers=[0, 3]))
    assert are_equal(loaded, small_model("bert"))
    assert student.config.model_type == "distilbert"
    last = student.distilbert.transformer.layer[1].attention.q_lin.weight
    assert torch.equal(last, loaded.bert.encoder.layer[3].attention.self.query.weight)
    _, same = models(small_config(teacher__path=teacher, student__layers=4, student__architecture="same"))
    assert are_equal(same, loaded)


def test_random_weights_are_drawn_from_the_seed(teacher):
    def student(**settings):
        return models(small_config(teacher__path=teacher, **settings))[1]

    drawn = student(student__init="random")
    assert are_equal(drawn, student(student__init="random"))
    for other in (student(student__init="random", run__seed=1), student()):
        assert weights(other).keys() == weights(drawn).keys()
        assert not any(
            torch.equal(weight, weights(drawn)[name]) for name, weight in weights(other).items() if weight.ndim == 2
        )


def test_an_existing_student_is_loaded(teacher, tmp_path):
    existing = small_model("bert", seed=3, num_hidden_layers=1)
    path = save_model(tmp_path, existing)
    _, student = models(small_config(teacher__path=teacher, student__path=path))
    assert are_equal(student, existing)


FIELDS = {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48}


@pytest.mark.parametrize("is_file", [False, True])
def test_a_described_student_gets_the_vocabulary_and_seeded_weights(teacher, tmp_path, is_file):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    described = str(tmp_path) if is_file else FIELDS
    _, student = models(small_config(teacher__path=teacher, student__config=described))
    assert (student.config.vocab_size, student.config.pad_token_id) == (VOCAB_SIZE, 0)
    assert (student.config.model_type, student.config.n_layers, student.config.dim) == ("distilbert", 1, 32)
    _, again = models(small_config(teacher__path=teacher, student__config=described))
    _, other = models(small_config(teacher__path=teacher, student__config=described, run__seed=1))
    assert are_equal(student, again)
    assert not are_equal(student, other)


def test_a_described_student_without_a_teacher(tmp_path):
    small_tokenizer().save_pretrained(tmp_path)
    student = {"config": FIELDS, "tokenizer": str(tmp_path)}
    teacher, model = models(small_config(teacher=None, student=student, distill=MLM_ONLY))
    assert teacher is None
    assert model.config.vocab_size == VOCAB_SIZE


# What does not go together


def test_rows_longer_than_the_teachers_positions_are_refused(teacher):
    with pytest.raises(
        InputError,
        match=r"data\.max_seq_length: given 25, but the teacher has positions for 24 tokens; expected at most",
    ):
        models(small_config(teacher__path=teacher, data__max_seq_length=25))
    models(small_config(teacher__path=teacher, data__max_seq_length=24))


def test_rows_longer_than_the_students_positions_are_refused(teacher):
    short = {**FIELDS, "max_position_embeddings": T - 1}
    with pytest.raises(InputError, match=f"given {T}, but the student has positions for {T - 1} tokens"):
        models(small_config(teacher__path=teacher, student__config=short))


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tmp_path):
    path = save_model(tmp_path, small_model("bert", vocab_size=VOCAB_SIZE - 1))
    with pytest.raises(
        InputError, match=f"the tokenizer has ids for {VOCAB_SIZE} tokens, the model only {VOCAB_SIZE - 1}"
    ):
        models(small_config(teacher__path=path))


def test_a_student_of_another_width_is_refused_before_the_run(teacher):
    wide = {**FIELDS, "dim": 64}
    with pytest.raises(InputError, match="hidden states are 32 wide, the student's 64"):
        models(small_config(teacher__path=teacher, student__config=wide))
    models(small_config(teacher__path=teacher, student__config=wide, distill__alpha_cos=0.0))


def test_a_narrower_student_keeps_a_part_of_the_teacher(teacher):
    config = small_config(teacher__path=teacher, student={"hidden_size": 16, "layers": [0, 3]}, distill__alpha_cos=0.0)
    loaded, student = models(config)
    assert (student.config.dim, student.config.n_heads, student.config.hidden_dim) == (16, 2, 24)
    kept = loaded.get_input_embeddings().weight[:, student.kept_dimensions]
    assert torch.equal(student.get_input_embeddings().weight, kept)
    assert are_equal(student, models(config)[1])
    _, outline = outlines(config)
    assert {name: one.shape for name, one in outline.state_dict().items()} == {
        name: one.shape for name, one in student.state_dict().items()
    }


@pytest.mark.parametrize(
    ("student", "distill", "message"),
    [
        ({"hidden_size": 64}, {}, r"student\.hidden_size: given 64, more than the teacher's 32"),
        ({"num_heads": 5}, {}, r"student\.num_heads: given 5, more than the teacher's 4"),
        ({"hidden_size": 22, "num_heads": 4}, {}, r"student\.num_heads: 4 heads do not divide the hidden size 22"),
        ({"hidden_size": 22, "num_heads": 4, "init": "random"}, {}, "4 heads do not divide the hidden size 22"),
        ({"hidden_size": 16}, {}, "hidden states are 32 wide, the student's 16; expected the same for loss_cos"),
        (
            {"hidden_size": 24},
            {"alpha_cos": 0.0, "alpha_relations": 1.0, "relation_heads": 16},
            r"distill\.relation_heads: given 16, which does not divide .* 24 \(the student's\); expected one of 1, 2,",
        ),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_before_any_weights_are_read(teacher, student, distill, message):
    config = small_config(teacher__path=teacher, student=student, distill=distill)
    for made in (outlines, models):
        with pytest.raises(InputError, match=message):
            made(config)


def test_layers_that_the_teacher_lacks_are_refused(teacher):
    with pytest.raises(InputError, match="asks for 5 layers; expected 1 to 4"):
        models(small_config(teacher__path=teacher, student__layers=5))


def test_a_teacher_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="none does not exist"):
        models(small_config(teacher__path=str(tmp_path / "none")))


# Data


def test_the_plan_follows_the_configuration(tmp_path):
    for name in ("train", "eval"):
        (tmp_path / f"{name}.txt").write_text("w1 w2 w3\n\n" * 50)
    config = small_config(
        data__sources=str(tmp_path / "train.txt"),
        data__eval_sources=str(tmp_path / "eval.txt"),
        data__mask_replace_prob=0.7,
        data__random_replace_prob=0.2,
        data__on_bad_file="skip",
        optim={"global_batch_size": 8, "num_epochs": 3},
        run__seed=9,
    )
    plan = build_plan(config, small_tokenizer())
    assert [file.path for file in plan.corpus.files] == [str(tmp_path / "train.txt")]
    assert [file.path for file in plan.eval_corpus.files] == [str(tmp_path / "eval.txt")]
    assert (plan.schedule.num_epochs, plan.schedule.seed, plan.skip_bad_files) == (3, 9, True)
    assert plan.vocabulary.size == VOCAB_SIZE
    settings = plan.settings
    assert (settings.max_seq_length, settings.mlm_probability, settings.seed) == (T, 0.2, 9)
    assert (settings.mask_replace_prob, settings.random_replace_prob) == (0.7, 0.2)


def test_a_source_says_what_its_files_are(tmp_path):
    (tmp_path / "part-0").write_text('{"text": "w1 w2"}\n' * 50)
    config = small_config(
        data__sources=[{"path": str(tmp_path / "part-0"), "format": "jsonl"}], data__eval_fraction=0.0
    )
    assert build_plan(config, small_tokenizer()).corpus.files[0].format == "jsonl"
    with pytest.raises(InputError, match="by the source's key format"):
        build_plan(small_config(data__sources=str(tmp_path / "part-0")), small_tokenizer())


def test_smoothing_weighs_rare_pieces_more():
    weights = smoothing_weights(np.array([0, 1, 16, 81]), 0.5)
    np.testing.assert_allclose(weights, [1.0, 1.0, 1 / 4, 1 / 9])
