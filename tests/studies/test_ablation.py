"""An ablation's settings are checked, its table says what changed, and its runs go on where they stopped."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from glue_rows import write_glue
from runs import changed

from distil_ray.commands import ablate
from distil_ray.errors import InputError
from distil_ray.evaluation.kinds import TaskFacts
from distil_ray.studies.ablation import (
    Comparison,
    Outcome,
    findings,
    report_on,
    same_batches,
    table,
    task_table,
)
from distil_ray.studies.settings import load_ablation


def outcome(variant, seed, loss, score=None, digests=("a", "b"), *, is_start=False):
    history = SimpleNamespace(
        digests=list(digests),
        is_start=is_start,
        export_path=f"runs/{variant}",
        curve=lambda _: [(0, 9.0), (10, loss)],
    )
    tasks = {} if score is None else {"cola": score, "rte": score}
    return Outcome(variant, seed, {"eval/mlm_loss": loss}, history, tasks)


@pytest.fixture
def comparison():
    scores = {"full": [70.0, 72.0], "without-ce": [66.0, 69.0], "without-cos": [71.0, 71.0], "random": [50.0, 49.0]}
    return Comparison(
        [
            outcome(name, seed, 10 - values[seed] / 10, values[seed])
            for seed in (0, 1)
            for name, values in scores.items()
        ]
    )


def test_changes_are_against_the_first_with_the_same_seed(comparison):
    assert table(comparison) == [
        ["variant", "score", "change", "held-out MLM loss", "change"],
        ["full", "71.0", "–", "2.900", "–"],
        ["without-ce", "67.5", "-3.5 (-4.0 to -3.0)", "3.250", "+0.350 (+0.300 to +0.400)"],
        ["without-cos", "71.0", "+0.0 (-1.0 to +1.0)", "2.900", "+0.000 (-0.100 to +0.100)"],
        ["random", "49.5", "-21.5 (-23.0 to -20.0)", "5.050", "+2.150 (+2.000 to +2.300)"],
    ]


def test_changes_on_each_task(comparison):
    comparison.outcomes[0].tasks["rte"] = 73.0  # of full with seed 0, instead of 70
    assert task_table(comparison) == [
        ["variant", "cola", "rte"],
        ["full", "71.0", "72.5"],
        ["without-ce", "-3.5 (-4.0 to -3.0)", "-5.0 (-7.0 to -3.0)"],
        ["without-cos", "+0.0 (-1.0 to +1.0)", "-1.5 (-2.0 to -1.0)"],
        ["random", "-21.5 (-23.0 to -20.0)", "-23.0 (-23.0 to -23.0)"],
    ]
    assert task_table(Comparison([outcome("full", 1, 3.0), outcome("other", 1, 2.5)])) == []


def test_what_the_scores_are_of(comparison):
    facts = TaskFacts("classification", ("accuracy",), 100, 2490, 277, 3, (2e-5,), 32, 128, 52.7)
    known = Comparison(comparison.outcomes, {"cola": facts, "rte": facts})
    assert task_table(known)[-1] == ["one answer for all rows", "52.7", "52.7"]
    report = report_on(known)
    text = report.to_markdown()
    assert "| rte | accuracy | 100 of 2,490 | 277 | 3 | 2e-05 | 32 | up to 128 |" in text
    assert "<td>100 of 2,490</td>" in report.to_html()
    assert json.loads(report.to_json())["tasks"]["rte"]["constant_score"] == 52.7


def test_what_matters_most_comes_first_and_seeds_that_disagree_are_named(comparison):
    assert findings(comparison) == [
        "random: score -21.5 (-23.0 to -20.0), worse with every seed.",
        "without-ce: score -3.5 (-4.0 to -3.0), worse with every seed.",
        "without-cos: score +0.0 (-1.0 to +1.0), seeds disagree.",
    ]


def test_without_scores_the_held_out_loss_decides():
    comparison = Comparison([outcome("full", 1, 3.0), outcome("better", 1, 2.5), outcome("worse", 1, 4.0)])
    assert findings(comparison) == [
        "worse: held-out MLM loss +1.000, worse with every seed.",
        "better: held-out MLM loss -0.500, better with every seed.",
    ]


def test_other_batches_are_remarked_on(comparison):
    assert same_batches(comparison).startswith(
        "All variants of a seed trained on the same batches in the same order: 2"
    )
    start = outcome("start", 1, 6.0, digests=(), is_start=True)
    assert same_batches(Comparison([*comparison.outcomes, start])) == same_batches(comparison)
    lost = outcome("lost", 1, 6.0, digests=())
    assert "seed 1 did not train on the same batches" in same_batches(Comparison([*comparison.outcomes, lost]))
    other = Comparison([outcome("full", 1, 3.0), outcome("other", 1, 2.5, digests=("a", "c"))])
    assert same_batches(other) == "The runs with seed 1 did not train on the same batches: their digests differ."


def test_page_text_and_json_agree(comparison):
    report = report_on(comparison)
    page, text = report.to_html(), report.to_markdown()
    assert "<td>-3.5 (-4.0 to -3.0)</td>" in page
    assert page.count("<svg") == 1
    assert "<h2>Tasks</h2>" in page
    assert "<h2>Tasks</h2>" not in report_on(Comparison([outcome("full", 1, 3.0), outcome("other", 1, 2.5)])).to_html()
    assert "| variant | cola | rte |" in text
    assert "| without-ce | 67.5 | -3.5 (-4.0 to -3.0) |" in text
    found = json.loads(report.to_json())
    assert found["changes"]["random"]["score"] == {
        **{"median": -21.5, "low": -23.0, "high": -20.0, "num_seeds": 2},
        "values": [-20.0, -23.0],
    }
    assert len(found["runs"]) == 8


def test_the_score_is_of_tasks_that_were_fine_tuned_for():
    tuned = TaskFacts("classification", ("accuracy",), 100, 2490, 277, 3, (2e-5,), 32, 128, 52.7)
    similarity = TaskFacts("similarity", ("spearman",), 0, 0, 1500, 0, (2e-5,), 32, 128, 0.0)
    one = replace(outcome("full", 1, 3.0, 70.0), tasks={"cola": 70.0, "rte": 90.0})
    assert Comparison([one], {"cola": tuned, "rte": similarity}).values("full", "score") == {1: 70.0}
    assert Comparison([one], {"cola": tuned, "rte": tuned}).values("full", "score") == {1: 80.0}


def test_the_papers_table_4():
    plan = load_ablation(["configs/quickstart.yaml", "configs/ablation.yaml"], [])

    assert list(plan.variants) == ["full", "without-ce", "without-cos", "without-mlm", "random-init"]
    assert len(plan.runs) == 15
    run = plan.runs["without-ce", 2]
    assert (run.distill.alpha_ce, run.distill.alpha_mlm, run.run.seed, run.run.name) == (0, 2, 2, "without-ce-seed-2")
    assert plan.runs["random-init", 1].student.init == "random"
    assert run.run.storage_path == f"{plan.folder}/runs"


def test_some_of_the_variants_alone():
    files = ["configs/quickstart.yaml", "configs/ablation.yaml"]
    plan = load_ablation(files, ["ablation.seeds=[1]"], ["random-init", "full"])

    assert list(plan.variants) == ["full", "random-init"]  # the reference stays the first of the configuration's
    assert list(plan.runs) == [("full", 1), ("random-init", 1)]
    everything = load_ablation(files, ["ablation.seeds=[1]"])
    assert plan.runs.items() <= everything.runs.items()


def test_losses_are_compared_on_equal_batches():
    plan = load_ablation(["configs/quickstart.yaml", "configs/ablation-losses.yaml"], [])

    shares = {
        variant: {name for name, share in plan.runs[variant, 1].distill.shares.items() if share > 0}
        for variant in plan.variants
    }
    assert shares == {
        "triple": {"ce", "mlm", "cos"},
        "triple-and-relations": {"ce", "mlm", "cos", "relations"},
        "relations-and-mlm": {"relations", "mlm"},
        "hidden-and-mlm": {"hidden", "mlm"},
        "mlm": {"mlm"},
        "half-the-width": {"relations", "mlm"},
    }
    assert all(run.eval.relation_loss for run in plan.runs.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ablation.seeds=[1, 1]", "ablation.seeds: given .*expected different seeds"),
        (
            "ablation.variants={a: {}, b: {data.sources: x}}",
            "variants.b: given .data.sources., expected a key of distill",
        ),
        ("ablation.variants={a: {}, b: {distill.alpha: 1}}", "variants.b: unknown key distill.alpha, did you mean"),
        ("ablation.variants={a: {}, b/c: {}}", "ablation.variants.b/c: run.name: given"),
        ("ablation.seed=3", "unknown key ablation.seed, did you mean ablation.seeds"),
        ("optim.num_step=3", "unknown key optim.num_step, did you mean optim.num_steps"),
    ],
)
def test_settings_that_do_not_fit(given, message):
    with pytest.raises(InputError, match=message):
        load_ablation(["configs/quickstart.yaml", "configs/ablation.yaml"], [given])


@pytest.mark.parametrize("given", ["ablation.variants={a: {}}", "ablation.seeds=[1]", "run.seed=1"])
def test_there_is_nothing_to_compare(given):
    with pytest.raises(InputError, match=r"ablation.variants: .*expected"):
        load_ablation(["configs/quickstart.yaml"], [given])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "sst-2"], "--tasks: given sst-2"),
        (["--tasks", "sst2", "--glue", "{tmp}/none"], "--glue"),
        (["--tasks", "sst2", "--glue", "{glue}", "run.storage_path=s3://bucket/runs"], "expected a folder that"),
        (["run.storage_path=s3://bucket/runs"], "--output: missing"),
        (
            ["--tasks", "answers", "--set=tasks.answers={kind: span, train: {long}, validation: {long}}"],
            "so that finetuning.max_seq_length 128 leaves no room for a context",
        ),
        (["data.eval_fraction=0", "data.eval_sources=null"], "ablation: given neither held-out text nor --tasks"),
        (["--variants", "full", "half"], "--variants: given half, expected names of ablation.variants: full"),
        (["--output", "{glue}/sst2/train-00000-of-00001.parquet"], "--output: cannot write into"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(tmp_path, capsys, more, message):
    glue = write_glue(tmp_path / "glue")
    long = {"question": "how long? " * 60, "context": "so long", "answers": {"text": [], "answer_start": []}}
    (tmp_path / "long.jsonl").write_text(json.dumps(long))
    places = {"{long}": tmp_path / "long.jsonl", "{tmp}": tmp_path, "{glue}": glue}
    for name, path in places.items():
        more = [text.replace(name, str(path)) for text in more]
    given = ["--config=configs/quickstart.yaml", "--config=configs/ablation.yaml", f"run.storage_path={tmp_path}/runs"]
    assert (
        ablate.main([*given, *(text.replace("{tmp}", str(tmp_path)).replace("{glue}", str(glue)) for text in more)])
        == 2
    )
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


def test_variants_are_run_scored_and_not_repeated(distilled, ray_cluster, tmp_path, capsys):
    settings, done = distilled
    folder = tmp_path / "run"
    shutil.copytree(done, folder / "runs/full-seed-56")  # one that is finished
    settings = changed(settings, run__name="run", run__storage_path=str(tmp_path), runtime__num_workers=1)
    variants = {"full": {}, "without-ce": {"distill.alpha_ce": 0.0}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings | {"ablation": {"variants": variants, "seeds": [56]}}))
    given = [f"--config={tmp_path}/a.yaml", "--tasks=sst2", f"--glue={write_glue(tmp_path / 'glue')}"]
    given += ["--set=finetuning.max_seq_length=12", "--set=finetuning.num_epochs=1"]
    assert ablate.main(given) == 0

    out = capsys.readouterr().out
    assert "full-seed-56 is finished" in out
    assert "without-ce, seed 56: run 2 of 2" in out
    report = json.loads((folder / "report.json").read_text())
    full, without = report["runs"]
    assert without["eval/kl_to_teacher"] > full["eval/kl_to_teacher"]
    assert set(without["tasks"]) == {"sst2"}
    change = report["changes"]["without-ce"]["eval/kl_to_teacher"]["median"]
    assert change == without["eval/kl_to_teacher"] - full["eval/kl_to_teacher"]
    assert "All variants of a seed trained on the same batches" in out
    assert {"report.html", "report.md", "report.json", "results", "runs"} == {path.name for path in folder.iterdir()}

    assert ablate.main(given) == 0
    out = capsys.readouterr().out
    assert "without-ce-seed-56 is finished" in out
    assert "2 of 2 fine-tunings are already done" in out
