"""`distil-ray ablate`: what each part of the recipe contributes, as in the DistilBERT paper's table 4."""

import argparse
from pathlib import Path

from distil_ray.cli import add_tasks, main_of, parser_of, program_of
from distil_ray.config import describe_keys, output_path
from distil_ray.errors import InputError

_AFTER_INTERRUPT = "the same command keeps finished runs and resumes the interrupted one from its last checkpoint"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 runs failed, 2 bad configuration or input."""
    return main_of(program_of("ablate"), _ablate, argv, after_interrupt=_AFTER_INTERRUPT)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    from distil_ray.evaluation.protocol import Protocol
    from distil_ray.studies.settings import AblationConfig

    keys = "\n\n".join([describe_keys(AblationConfig), describe_keys(), f"protocol keys:\n\n{describe_keys(Protocol)}"])
    parser = parser_of(
        "ablate", "Train a student without each part of the recipe, over several seeds, and compare.", keys
    )
    add_tasks(
        parser,
        tasks="also fine-tune the students on these tasks and score them (default: none)",
        protocol="YAML file with protocol keys, for --tasks",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="local folder for report.html, .md and .json (default: <run.storage_path>/<run.name>)",
    )
    parser.add_argument(
        "--variants", nargs="+", default=[], metavar="NAME", help="of ablation.variants, only these (default: all)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be run; train nothing")
    return parser


def _ablate(argv: list[str] | None) -> None:
    arguments = make_parser().parse_intermixed_args(argv)
    # Imported late, here and below, so that mistakes answer at once.
    from distil_ray.evaluation.protocol import load_protocol
    from distil_ray.studies.settings import load_ablation

    plan = load_ablation(arguments.config, arguments.settings, arguments.variants)
    protocol = load_protocol(arguments.protocol, arguments.set)
    from distil_ray.evaluation.evaluate import check_rows
    from distil_ray.evaluation.kinds import facts_of
    from distil_ray.evaluation.results import Results
    from distil_ray.evaluation.tasks import Task, chosen_tasks, read_tasks
    from distil_ray.reporting.report import NAME, make_folder, publish
    from distil_ray.runs.console import Console
    from distil_ray.runs.lease import holding
    from distil_ray.runs.storage import RunFolder
    from distil_ray.runs.trackers import check_trackers
    from distil_ray.studies.ablation import Comparison, check_heldout, check_tasks, report_on, run_all, with_scores
    from distil_ray.training.assembly import build_tokenizer

    check_trackers(plan.config)
    chosen: list[Task] = []
    if arguments.tasks:
        chosen = chosen_tasks(arguments.tasks, arguments.glue, protocol.tasks)
        check_tasks(plan)
    else:
        check_heldout(plan)
    tasks, data = read_tasks(chosen, protocol)  # before anything is trained
    remarks = check_rows([build_tokenizer(plan.config)], tasks, data, protocol) if tasks else []
    if "://" in plan.folder and not arguments.output:
        raise InputError("--output: missing; with a run.storage_path that is a URL, name a local folder for the report")
    output = Path(output_path(arguments.output) if arguments.output else plan.folder)
    console = Console()
    for remark in remarks:
        console.line(remark)
    if arguments.dry_run:
        for (variant, seed), _ in plan.runs.items():
            changes = ", ".join(f"{key}={value}" for key, value in plan.variants[variant].items())
            console.line(f"{variant}, seed {seed}: {changes or 'no change'}")
        return
    make_folder(output)
    with holding(RunFolder.at(str(output)), "distil-ray ablate", console.line):
        outcomes = run_all(plan, console)
        if tasks:
            outcomes = with_scores(outcomes, Results(output, protocol, tasks, data), console)
        facts = {task.name: facts_of(task, data[task.name], protocol.finetuning_on(task.name)) for task in tasks}
        publish(report_on(Comparison(outcomes, facts)), output / NAME)
