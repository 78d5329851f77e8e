"""Models on held-out text: the figures against plain ones, which rows are taken, and what cannot be evaluated."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from intrinsic_parts import (
    TEXT,
    TOKENIZER,
    VOCABULARY,
    all_rows,
    close,
    listed,
    nearby,
    plain_figures,
    save_models,
    totals_of,
    write_text,
)
from small_models import small_model
from training_parts import save_model, small_tokenizer

from distil_ray.config import Source
from distil_ray.data.masking import special_table
from distil_ray.data.plan import IN_SAMPLE, MAX_HELDOUT_UNITS, make_plan
from distil_ray.errors import InputError
from distil_ray.evaluation.intrinsic import (
    Totals,
    figures_of,
    mask_each,
    measure_intrinsic,
    room_on,
    rows_per_block,
    text_digest,
    text_plan,
)
from distil_ray.evaluation.protocol import Resources, load_protocol
from distil_ray.training import heldout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """15 units of 3 to 17 rows of 12 pieces, 150 rows in all."""
    return write_text(tmp_path_factory.mktemp("text") / "text.parquet", [10 * n - 1 for n in range(3, 18)])


@pytest.fixture(scope="module")
def models():
    teacher = small_model("bert", num_hidden_layers=2)
    return [teacher, nearby(teacher), small_model("distilbert", n_layers=1, seed=5)]


@pytest.fixture(scope="module")
def rows(sources):
    return all_rows(sources, TEXT)


# ------------------------------------------------------------------------------------------------ numerics


def found_by(models, rows, text=TEXT):
    totals = totals_of(models, rows, text)
    return [totals.of(index)._asdict() for index in range(len(models))]


def with_hits(rows, model):
    """The rows with the model's guesses as labels in every third, so that no accuracy is zero."""
    input_ids, positions = (torch.from_numpy(rows[name].astype("int64")) for name in ("input_ids", "masked_positions"))
    with torch.no_grad():
        guesses = model(input_ids=input_ids).logits.argmax(-1).gather(1, positions).numpy()
    labels = rows["masked_labels"].copy()
    labels[::3] = guesses[::3]
    return rows | {"masked_labels": labels}


def test_figures_are_those_of_a_plain_evaluation(models, rows):
    rows = with_hits(rows, models[1])
    teacher, half, other = found_by(models, rows)

    assert [teacher, half, other] == [close(plain, rel=1e-5) for plain in plain_figures(models, rows)]
    assert 0 < half["mlm_accuracy"] < 1
    assert 0 < half["teacher_agreement"] < 1
    assert 0 < half["kl_to_teacher"] < other["kl_to_teacher"]
    assert half["pseudo_perplexity"] != pytest.approx(math.exp(half["mlm_loss"]), rel=0.01)


def test_a_teacher_agrees_with_itself(models, rows):
    teacher, itself = found_by([models[0], models[0]], rows)
    assert (itself["kl_to_teacher"], itself["teacher_agreement"]) == (0.0, 1.0)
    assert teacher == itself | {"kl_to_teacher": None, "teacher_agreement": None}


def test_without_a_sample_there_is_no_pseudo_perplexity(models, rows):
    found = found_by(models, rows | {IN_SAMPLE: np.zeros(len(rows["row"]), dtype=bool)})
    assert [figures["pseudo_perplexity"] for figures in found] == [None] * 3
    assert found == [figures | {"pseudo_perplexity": None} for figures in found_by(models, rows)]


def test_few_logits_are_alive_at_once(models, rows, monkeypatch):
    sizes, expected = [], found_by(models, rows)

    def predict(model, hidden):
        logits = original(model, hidden)
        sizes.append(logits.numel())
        return logits

    original = heldout.predict
    monkeypatch.setattr(heldout, "predict", predict)
    monkeypatch.setattr(heldout, "MAX_LOGITS", 200)
    assert found_by(models, rows) == [close(figures, rel=1e-6) for figures in expected]
    assert max(sizes) <= 200


def test_each_piece_is_masked_alone_and_no_special_one():
    cls, sep, mask, unk = (getattr(TOKENIZER, f"{name}_token_id") for name in ("cls", "sep", "mask", "unk"))
    row = torch.tensor([cls, 20, sep, 21, unk, 20, sep])
    batch = mask_each(row, torch.from_numpy(special_table(VOCABULARY.size, VOCABULARY.special_ids)), mask)

    assert batch.masked_positions.tolist() == [[1], [3], [5]]
    assert batch.masked_labels.tolist() == [[20], [21], [20]]
    assert batch.input_ids.tolist() == [
        [cls, mask, sep, 21, unk, 20, sep],
        [cls, 20, sep, mask, unk, 20, sep],
        [cls, 20, sep, 21, unk, mask, sep],
    ]


# -------------------------------------------------------------------------------------------- rows and masks


def changed(**keys):
    return TEXT.model_copy(update=keys)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"max_seq_length": 11}, {"input_ids"}),
        ({"mlm_probability": 0.3}, {"input_ids", "masked_positions", "masked_labels"}),
        ({"seed": 2}, {"input_ids", "masked_positions", "masked_labels"}),
        ({"num_rows": 21}, {"input_ids", "masked_positions", "masked_labels"}),
        ({"pseudo_perplexity_rows": 4}, {IN_SAMPLE}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_key_changes_the_rows(sources, rows, change, names):
    other = all_rows(sources, changed(**change))
    assert names <= {name for name in rows if not np.array_equal(rows[name], other[name])}


def test_the_batch_size_changes_rounding_only(models, sources, rows):
    text = changed(batch_size=7)
    assert found_by(models, rows, text) == [close(expected, rel=1e-6) for expected in found_by(models, rows)]
    assert rows_per_block(text) == 7
    # More rows make larger blocks, as long as there are enough blocks for many processes.
    assert rows_per_block(changed(num_rows=64 * 7 * 2, batch_size=7)) == 14
    assert rows_per_block(changed(num_rows=None, batch_size=7)) == 7 * 16


def test_rows_come_from_all_over_the_text_in_proportion(sources):
    text = changed(num_rows=75, pseudo_perplexity_rows=15)
    plan = text_plan(sources, VOCABULARY, text)
    units = [plan.rows_of(index) for index in range(len(plan.units))]

    num_rows = np.array([len(rows["row"]) for rows in units])
    assert num_rows.sum() == 75
    assert np.abs(num_rows - (plan.units + 3) / 2).max() <= 1  # unit i has i + 3 rows: half of them
    sampled = np.array([rows[IN_SAMPLE].sum() for rows in units])
    assert sampled.sum() == 15
    assert np.abs(sampled - num_rows / 5).max() <= 1
    shares = [plan.share_completed(*(int(rows[name][-1]) for name in ("group", "row", "group_rows"))) for rows in units]
    assert shares == pytest.approx(np.arange(1, 16) / 15)


def test_all_rows_are_taken(sources):
    rows = all_rows(sources, changed(num_rows=None, pseudo_perplexity_rows=4))
    assert len(rows["row"]) == len(all_rows(sources, changed(num_rows=10_000))["row"]) == 150
    assert rows[IN_SAMPLE].sum() == 4
    assert not all_rows(sources, changed(pseudo_perplexity_rows=0))[IN_SAMPLE].any()
    pieces = set(rows["input_ids"].flatten().tolist()) | set(rows["masked_labels"].flatten().tolist())
    assert len(pieces - set(VOCABULARY.special_ids)) == VOCABULARY.size - len(VOCABULARY.special_ids)


def test_of_many_units_enough_are_read(tmp_path):
    sources = write_text(tmp_path / "text.parquet", [299] * 200)
    assert len(text_plan(sources, VOCABULARY, changed(num_rows=100)).units) == MAX_HELDOUT_UNITS
    assert len(text_plan(sources, VOCABULARY, changed(num_rows=5)).units) == 5
    many = changed(num_rows=1000)
    assert MAX_HELDOUT_UNITS < len(text_plan(sources, VOCABULARY, many).units) < 200
    assert len(all_rows(sources, many)["row"]) == 1000


def test_rows_are_those_that_a_run_holds_out(sources):
    plan = text_plan(sources, VOCABULARY, changed(num_rows=None))
    run = make_plan(
        [Source(path=sources[0].path)],
        [Source(path=sources[0].path)],
        VOCABULARY,
        plan.settings,
        eval_fraction=0.0,
        num_epochs=1,
        on_bad_file="error",
    )
    for index in (0, 14):
        held_out, _ = run.rows_of("eval", index)
        rows = plan.rows_of(index)
        assert all(np.array_equal(rows[name], values) for name, values in held_out.items())


# --------------------------------------------------------------------------------------------- the cluster


@pytest.mark.parametrize(
    ("num_parameters", "gpus", "num_fitting"), [(4e6, 0.125, 16), (66e6, 0.25, 8), (340e6, 0.5, 4), (1e9, 1.0, 2)]
)
def test_a_share_of_a_gpu_goes_by_the_size_of_the_model(num_parameters, gpus, num_fitting):
    auto, models = Resources(gpus="auto"), [SimpleNamespace(num_parameters=num_parameters / 2)] * 2
    assert auto.gpus_for(models) == gpus
    assert auto.num_fitting({"CPU": 32.0, "GPU": 2.0}, gpus) == num_fitting
    assert auto.num_fitting({"CPU": 32.0}, gpus) == 0
    assert Resources(gpus=0.5).gpus_for(models) == 0.5
    assert Resources(gpus=0.5).gpus_for([None]) == 0.5  # no size is asked for


def test_processes_take_what_fits_and_leave_the_rest_for_the_text():
    nodes = [{"CPU": 4.0}, {"CPU": 3.0}, {"CPU": 8.0, "GPU": 2.0}]
    two_cpus, gpu = Resources(cpus=2, max_retries=5), Resources(cpus=2, gpus=0.5)

    assert room_on(nodes, two_cpus, 0.0, None, can_grow=False) == (7, 2, 0.0, 1, 5)
    assert room_on(nodes, two_cpus, 0.0, 3, can_grow=False) == (3, 2, 0.0, 9, 5)
    assert room_on(nodes, gpu, 0.5, None, can_grow=False) == (4, 2, 0.5, 7, 2)
    assert room_on(nodes[:1], gpu, 0.5, None, can_grow=True) == (1, 2, 0.5, 2, 2)
    with pytest.raises(InputError, match=r"no node of the cluster has 2 CPU slots and 0\.5 GPUs"):
        room_on(nodes[:2], gpu, 0.5, None, can_grow=False)


# ---------------------------------------------------------------------------------------------- bad inputs


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def refused(models, sources, text=TEXT):
    with pytest.raises(InputError) as caught:
        measure_intrinsic(listed(models), sources, text, Resources(), print)
    return str(caught.value)


def test_a_text_that_is_not_there(paths):
    assert "no such file or folder: /no/such/text" in refused(paths, [Source(path="/no/such/text")])


def test_a_text_without_a_row(sources):
    named = rf"{sources[0]}: no row has 2 ordinary pieces to mask; expected text"
    with pytest.raises(InputError, match=named):
        figures_of(Totals.zero(2), ["teacher", "half"], sources, TEXT)


def test_a_digest_is_of_the_text_and_not_of_its_place(paths, tmp_path):
    models = listed(paths)

    def digest(name, lengths, text=TEXT):
        (tmp_path / name).mkdir(exist_ok=True)
        return text_digest(write_text(tmp_path / name / "text.parquet", lengths), models, text)

    first = digest("a", [29, 39])
    assert digest("b", [29, 39]) == first
    assert digest("c", [29, 40]) != first
    assert digest("d", [39, 29]) != first
    corrected = tmp_path / "b/text.txt"
    corrected.write_text("w1 w2 w3 w4 w5\n")
    before = text_digest([Source(path=str(corrected))], models, TEXT)
    corrected.write_text("w1 w2 w3 w4 w6\n")  # as many bytes
    assert text_digest([Source(path=str(corrected))], models, TEXT) != before


def test_models_that_cannot_be_compared(paths, sources, tmp_path):
    swapped = save_model(tmp_path / "swapped", small_model("bert"), small_tokenizer(swapped=True))
    larger = save_model(tmp_path / "larger", small_model("bert", vocab_size=70))
    smaller = save_model(tmp_path / "smaller", small_model("bert", vocab_size=20))

    assert f"other, {swapped}: the vocabularies of teacher" in refused(paths | {"other": swapped}, sources)
    assert f"other, {larger}: its vocab_size is 70, the teacher's 61" in refused(paths | {"other": larger}, sources)
    assert f"other, {smaller}: the tokenizer has ids for 61 tokens" in refused(paths | {"other": smaller}, sources)
    message = refused(paths, sources, changed(max_seq_length=25))
    assert f"text.max_seq_length: given 25, but teacher, {paths['teacher']}, takes 24 tokens at most" in message


def test_a_protocol_that_masks_nothing():
    with pytest.raises(
        InputError, match=r"text: given mlm_probability 0\.05 and max_seq_length 8, which masks nothing"
    ):
        load_protocol([], ["text.mlm_probability=0.05", "text.max_seq_length=8"])
