"""Students without an MLM head, with a new one, and of teachers that have none."""

import pytest
import torch
from small_models import WITH_HEAD, random_ids, small_encoder, small_model
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from distil_ray.errors import InputError
from distil_ray.models.families import FAMILIES, family_of, has_head
from distil_ray.models.loading import encode, predict
from distil_ray.models.student import build_student, grow_head

B, T = 3, 10


def student_of(teacher: PreTrainedModel, **options: object) -> PreTrainedModel:
    given = {"layers": 4, "architecture": None, "init": "teacher", "seed": 0} | options
    return build_student(teacher, **given).eval()  # type: ignore[arg-type]


def assert_equal(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_of_all_layers_is_the_teachers(family: str, tmp_path) -> None:
    for teacher in [small_encoder(family), *([small_model(family)] if family in WITH_HEAD else [])]:
        student = student_of(teacher, head="none")
        assert not has_head(student)
        ids = random_ids(B, T)
        with torch.no_grad():
            assert_equal(encode(student, ids), encode(teacher, ids))
    some = student_of(small_encoder(family), layers=[0, 3], head="none")
    some.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_equal(encode(again, ids), encode(some, ids))


@pytest.mark.parametrize("family", WITH_HEAD)
def test_a_new_head_predicts_pieces_like_the_hidden_states(family: str, tmp_path) -> None:
    teacher, ids = small_encoder(family), random_ids(B, T)
    student = student_of(teacher, head="new")
    dense = family_of(student.config).dense
    with torch.no_grad():
        assert_equal(encode(student, ids), encode(teacher, ids))
        assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
        logits = predict(student, encode(student, ids).flatten(0, 1))
        assert torch.isfinite(logits).all()
        if dense is not None:
            matrix = student.get_parameter(f"{dense}.weight")
            assert torch.equal(matrix, torch.eye(*matrix.shape))
    student.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_equal(predict(again, encode(again, ids).flatten(0, 1)), logits)
    other = student_of(teacher, head="new")
    assert all(torch.equal(one, two) for one, two in zip(student.parameters(), other.parameters(), strict=True))


def test_a_head_is_grown_on_an_encoder_as_it_is() -> None:
    encoder, ids = small_encoder("bert"), random_ids(B, T)
    model = grow_head(encoder, seed=0).eval()
    with torch.no_grad():
        assert torch.equal(encode(model, ids), encode(encoder, ids))
    assert encoder.config.model_type == model.config.model_type
    assert not has_head(encoder)


def test_silent_random_heads_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"no masked-language-modelling head for the student to copy; set student\.head"
    ):
        student_of(small_encoder("bert"))
    for head in ("new", None):
        with pytest.raises(InputError, match=r"'deberta-v2', whose published models have no .* head"):
            student_of(small_encoder("deberta-v2"), head=head)
    with pytest.raises(InputError, match="deberta-v2"):
        grow_head(small_encoder("deberta-v2"), 0)
