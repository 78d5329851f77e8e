"""Trials -> a report: the best setting, every trial, and how much each setting mattered."""

from collections.abc import Iterator

from distil_ray.config import parse_mapping
from distil_ray.errors import InputError
from distil_ray.reporting.plots import line_chart, scatter_chart, ternary_chart
from distil_ray.reporting.report import Block, Cell, Charts, Report, ReportSection, Table, made_by, number
from distil_ray.runs.storage import DIGESTS_FILE, RunFolder
from distil_ray.studies.settings import SEARCH_FILE, SearchPlan, brief, plan_of, short
from distil_ray.studies.space import Range
from distil_ray.studies.suggest import MIN_TRIALS, importances
from distil_ray.studies.trials import TRIALS_FILE, Trial, Trials, best, common_step, value_at

_LABELS = {
    "eval/mlm_loss": "held-out MLM loss",
    "eval/kl_to_teacher": "KL divergence from the teacher",
    "eval/mlm_accuracy": "held-out accuracy",
    "eval/teacher_agreement": "agreement with the teacher",
    "eval/relation_loss": "loss between relations",
    "eval/hidden_loss": "loss between hidden states",
}


def read_search(path: str) -> tuple[SearchPlan, Trials]:
    """Read the folder of a search, ``<storage_path>/<name>``, which may have been moved.

    Raises:
        InputError: there is no search.
    """
    folder = RunFolder.at(path)
    if not is_search(path):
        raise InputError(f"{path}: is not the folder of a search (it has no {TRIALS_FILE})")
    plan = plan_of(parse_mapping(folder.read_bytes(SEARCH_FILE).decode(), f"{path}/{SEARCH_FILE}"))
    return plan, Trials(path, plan.search.metric)


def is_search(path: str) -> bool:
    return RunFolder.at(path).exists(TRIALS_FILE)


def report_on(plan: SearchPlan, trials: Trials) -> Report:
    listed = list(trials)
    step = common_step(listed)
    shares = importances(plan, listed, step)
    charts = list(_charts(plan, listed, step))
    note = "The newest figure of each trial. Trials that were stopped took fewer steps than those that finished"
    note += f"; all can be compared after {step} steps, as below." if step else "."
    return Report(
        title=f"Search {plan.config.run.name}",
        findings=findings(plan, listed),
        sections=[
            ReportSection("Trials", [Table(_highlighted(plan, listed)), note, *remarks(plan, trials)]),
            *([ReportSection("Charts", [Charts(charts)])] if charts else []),
            ReportSection("How much each setting mattered", _importance(plan, shares, step)),
        ],
        footer=made_by(),
        data={
            "metric": plan.search.metric,
            "trials": [vars(trial) | {"values": plan.values(trial.settings)} for trial in listed],
            "importances": shares,
        },
    )


def _highlighted(plan: SearchPlan, trials: list[Trial]) -> list[list[str | Cell]]:
    top = best(trials, plan.direction)
    rows: list[list[str | Cell]] = []
    for row in table(plan, trials):
        is_best = top is not None and row[0] == top.name
        rows.append([Cell(text, is_right=is_best) for text in row])
    return rows


def _importance(plan: SearchPlan, shares: dict[str, float], step: int | None) -> list[Block]:
    if not shares:
        return [f"Too few trials to tell: at least {MIN_TRIALS} with different figures are needed."]
    rows = [[Cell(key), Cell(f"{share:.0%}"), Cell("", bar=share)] for key, share in shares.items()]
    return [
        Table([["setting", "share", ""], *rows], is_text=True),
        f"Share of the variance of the {_LABELS[plan.search.metric]} after {step} steps that a forest of trees "
        "attributes to each setting (fANOVA, Hutter et al. 2014), within the ranges that were tried. With few trials, "
        "this is only a hint.",
    ]


def table(plan: SearchPlan, trials: list[Trial]) -> list[list[str]]:
    """A header and one row per trial: those that finished, the best first, then the others by how far they got."""

    def rank(trial: Trial) -> tuple[bool, int, float]:
        step = trial.scores[-1].step if trial.scores else 0
        return trial.status != "finished", -step, trial.loss(plan.direction)

    rows = [["trial", plan.search.metric, "status", "step", *map(short, plan.space.keys)]]
    for trial in sorted(trials, key=rank):
        step = trial.scores[-1].step if trial.scores else 0
        value = number(trial.value, ".4f")
        status = "not finished" if trial.status == "open" else trial.status
        rows.append([trial.name, value, status, f"{step:,}", *map(brief, plan.values(trial.settings).values())])
    return rows


def findings(plan: SearchPlan, trials: list[Trial]) -> list[str]:
    """What the search found, even if that is not what one hoped for."""
    top, first = best(trials, plan.direction), trials[0]
    sentences = [_count(plan, trials)]
    if top is None or top.value is None:
        return sentences
    values = ", ".join(f"{key} {brief(value)}" for key, value in plan.values(top.settings).items())
    label = _LABELS[plan.search.metric]
    sentences.append(f"Best: {top.name}, {label} {top.value:.4f}, with {values}.")
    if top == first:
        sentences.append("No trial did better than the unchanged settings.")
    elif first.status == "finished" and first.value is not None:
        sentences.append(
            f"The unchanged settings ({first.name}) reach {first.value:.4f}: "
            f"the best is {'lower' if top.value < first.value else 'higher'} by {abs(top.value - first.value):.4f}."
        )
    return sentences


def _count(plan: SearchPlan, trials: list[Trial]) -> str:
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "open": "not finished"}
    counts = {how: sum(trial.status == status for trial in trials) for status, how in words.items()}
    listed = ", ".join(f"{count} {how}" for how, count in counts.items() if count)
    return f"{len(trials)} of {max(plan.num_trials, len(trials))} trials: {listed}."


def remarks(plan: SearchPlan, trials: Trials) -> list[str]:
    caution = (
        "The best trial was chosen on these held-out rows, so its figure is slightly optimistic: before relying on a "
        "small difference, train it and the unchanged settings again with another run.seed."
    )
    return [_same_batches(trials), caution]


def _same_batches(trials: Trials) -> str:
    """Whether all trials trained on the same batches, as far as each got."""
    digests = {trial.name: _digests(trials, trial.name) for trial in trials}
    longest = max(digests.values(), key=len, default=[])
    differing = [name for name, own in digests.items() if own != longest[: len(own)]]
    if differing:
        return f"Not all trials trained on the same batches: the digests of {', '.join(differing)} differ."
    return f"All trials trained on the same batches in the same order: up to {len(longest):,} steps of equal digests."


def _digests(trials: Trials, name: str) -> list[str]:
    run = trials.run_folder(name)
    return run.read_bytes(DIGESTS_FILE).decode().splitlines()[1:] if run.exists(DIGESTS_FILE) else []


# ------------------------------------------------------------------------------------------------- charts


def _charts(plan: SearchPlan, trials: list[Trial], step: int | None) -> Iterator[tuple[str, str]]:
    label = _LABELS[plan.search.metric]
    title = f"{label[0].upper()}{label[1:]}"
    scored = [trial for trial in trials if trial.scores]
    if not scored:
        return
    yield f"{title} of every trial", _curves(plan, scored, label)
    at_step = [(plan.values(trial.settings), value_at(trial, step)) for trial in scored]
    compared = [(values, value) for values, value in at_step if value is not None]
    ended = [(plan.values(trial.settings), trial.scores[-1].value) for trial in scored if trial.status == "finished"]
    for simplex in plan.space.simplexes():
        if len(simplex.keys) == 3 and compared:
            first, second, third = simplex.keys
            yield (
                f"{title} over {simplex.name}, after {step:,} steps",
                ternary_chart(
                    [(values[first], values[second], values[third], value) for values, value in compared],
                    corners=(short(first), short(second), short(third)),
                    label=label,
                ),
            )
    for key in plan.space.keys:
        is_logarithmic = any(
            isinstance(rule, Range) and rule.key == key and getattr(rule.distribution, "log", False)
            for rule in plan.space.rules
        )
        if all(_is_number(values[key]) for values, _ in compared):
            yield (
                f"{title} against {key}",
                scatter_chart(
                    {
                        "finished, at the end": [(values[key], value) for values, value in ended],
                        f"all, after {step} steps": [(values[key], value) for values, value in compared],
                    },
                    x_label=key,
                    y_label=label,
                    is_logarithmic=is_logarithmic,
                ),
            )


def _curves(plan: SearchPlan, trials: list[Trial], label: str) -> str:
    top = best(trials, plan.direction)
    named = {trial.name: "the unchanged settings" for trial in trials[:1] if not trial.settings}
    if top is not None:
        named[top.name] = "the best" if top.settings else "the unchanged settings, the best"
    curves = {trial.name: [(float(score.step), score.value) for score in trial.scores] for trial in trials}
    return line_chart(
        {f"{name}, {what}": curves[name] for name, what in named.items()},
        x_label="steps",
        y_label=label,
        levels={},
        others=[curve for name, curve in curves.items() if name not in named],
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
