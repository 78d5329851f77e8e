"""Curves as pictures: SVG text that a page can hold."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

Curve = Sequence[tuple[float, float]]

# Told apart by people who see few colours, too (Okabe and Ito 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SIZE_INCHES = (6.4, 3.6)


def line_chart(curves: Mapping[str, Curve], *, x_label: str, y_label: str, levels: Mapping[str, float]) -> str:
    """Return an SVG element with a line a curve, and a dashed horizontal line for each of ``levels``."""
    # Text stays text, and the same data gives the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "distil_ray", "font.family": "sans-serif"}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        for index, (name, curve) in enumerate(curves.items()):
            xs, ys = zip(*curve, strict=True) if curve else ((), ())
            marker = "o" if len(xs) < 40 else None
            axes.plot(xs, ys, label=name, color=COLORS[index % len(COLORS)], marker=marker, markersize=3)
        for name, level in levels.items():
            axes.axhline(level, label=name, color="0.4", linestyle="--", linewidth=1)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
