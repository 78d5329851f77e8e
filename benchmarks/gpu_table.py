"""Reads what `gpu.sh` has measured: prints a run's figures as JSON, or all results as tables in Markdown."""

import argparse
import json
from pathlib import Path
from typing import Any

RUN_FIGURES = ("perf/tokens_per_second", "perf/mfu", "perf/data_wait_fraction", "train/loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a run")
    parser.add_argument("--results", type=Path, help="file of JSON lines")
    parser.add_argument("--failed", nargs="*", default=[], help="names of parts")
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run_figures(arguments.run)))
    else:
        lines = arguments.results.read_text().splitlines()
        print("\n".join(tables([json.loads(line) for line in lines], arguments.failed)))


def run_figures(folder: Path) -> dict[str, Any]:
    """The last figures of each name; the speed is that of the fastest record, as start-up slows down the first."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {name: record[name] for record in records for name in RUN_FIGURES if name in record}
    speeds = [record["perf/tokens_per_second"] for record in records if "perf/tokens_per_second" in record]
    return {"benchmark": "run", **last, "perf/tokens_per_second": max(speeds)}


def tables(results: list[dict[str, Any]], failed: list[str]) -> list[str]:
    steps = [(part, record) for part in results if part["benchmark"] == "step" for record in part["results"]]
    lines = ["# Training on a GPU", ""]
    if steps:
        names = ("device", "driver", "cuda", "cudnn", "torch", "transformers", "python", "date")
        lines += [", ".join(f"{name} {steps[0][0][name]}" for name in names if name in steps[0][0]), ""]
        lines += row("part", "variant", "rows × tokens", "ms a step", "tokens/s", "MFU", "GB", "× original")
        lines += ["|---|---|--:|--:|--:|--:|--:|--:|"]
    for part, record in steps:
        speedup = record["speedup_over"].get("original")
        lines += row(
            part["part"],
            record["variant"],
            f"{part['rows']} × {part['tokens']}",
            f"{1e3 * record['step_seconds']:.1f}",
            f"{record['tokens_per_second']:,.0f}",
            f"{record['mfu']:.1%}" if record["mfu"] else "",
            f"{record['gigabytes']:.1f}" if record["gigabytes"] else "",
            f"{speedup:.2f}" if speedup else "",
        )
    profiled = [(part, record) for part, record in steps if record["kernels"]]
    kinds = list(dict.fromkeys(kind for _, record in profiled for kind in record["kernels"]))
    if profiled:
        lines += ["", "ms a step by kind of kernel, as the profiler sees them:", ""]
        lines += [*row("part", "variant", *kinds), "|---|---|" + "--:|" * len(kinds)]
    for part, record in profiled:
        shown = (f"{1e3 * record['kernels'].get(kind, 0):.1f}" for kind in kinds)
        lines += row(part["part"], record["variant"], *shown)
    for result in results:
        if result["benchmark"] == "run":
            figures = ", ".join(f"{name} {result[name]:,.4g}" for name in RUN_FIGURES if name in result)
            lines += ["", f"The quickstart's run: {figures}"]
    return [*lines, "", f"Failed: {', '.join(failed) or 'none'}"]


def row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


if __name__ == "__main__":
    main()
