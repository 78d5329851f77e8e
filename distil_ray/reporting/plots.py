"""Figures as pictures: SVG text that a page can hold."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

Curve = Sequence[tuple[float, float]]

# Told apart by people who see few colors, too (Okabe and Ito 2008).
# The last stands for the color of the page's text, which matplotlib cannot name: dark or light, as the reader has it.
_INK = "#010203"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", _INK)
_SIZE_INCHES = (6.4, 3.6)
_LEGEND_CHARACTERS = 40
# Text stays text, and the same data gives the same bytes.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "distil_ray",
    "font.family": "sans-serif",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}


def line_chart(
    curves: Mapping[str, Curve],
    *,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float],
    others: Sequence[Curve] = (),
) -> str:
    """Return an SVG element with a line per curve, and a dashed horizontal line for each of ``levels``.

    ``others`` stand in the background, without a name.
    """
    with _chart() as (axes, svg):
        for curve in others:
            axes.plot(*_columns(curve), color=_INK, alpha=0.25, linewidth=1, zorder=1)
        for index, (name, curve) in enumerate(curves.items()):
            marker = "o" if len(curve) < 40 else None
            axes.plot(*_columns(curve), label=name, color=COLORS[index % len(COLORS)], marker=marker, markersize=3)
        for name, level in levels.items():
            axes.axhline(level, label=name, color=_INK, alpha=0.6, linestyle="--", linewidth=1)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _tidy(axes)
    return svg.getvalue()


def scatter_chart(groups: Mapping[str, Curve], *, x_label: str, y_label: str, is_logarithmic: bool) -> str:
    """Return an SVG element with a point for each pair, a color a group; the first group's are filled."""
    with _chart() as (axes, svg):
        for index, (name, points) in enumerate(groups.items()):
            color = COLORS[index % len(COLORS)]
            axes.scatter(*_columns(points), label=name, color=color, facecolor=color if index == 0 else "none", s=26)
        if is_logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _tidy(axes)
    return svg.getvalue()


def ternary_chart(
    points: Sequence[tuple[float, float, float, float]], *, corners: tuple[str, str, str], label: str
) -> str:
    """Return an SVG element with a triangle and a dot for each (weight of a corner × 3, value), colored by its value.

    The weights of a point sum to 1; at a corner, its weight is 1.
    """
    height = 3**0.5 / 2
    with _chart() as (axes, svg):
        axes.plot([0, 1, 0.5, 0], [0, 0, height, 0], color=_INK, linewidth=1, zorder=1)
        for share in (0.25, 0.5, 0.75):  # lines of equal weight
            for ends in (
                ((share, 0), ((1 + share) / 2, (1 - share) * height)),
                ((1 - share, 0), ((1 - share) / 2, (1 - share) * height)),
                ((share / 2, share * height), (1 - share / 2, share * height)),
            ):
                axes.plot(*_columns(ends), color=_INK, alpha=0.15, linewidth=0.8, zorder=0)
        xs = [second + third / 2 for _, second, third, _ in points]
        ys = [third * height for _, _, third, _ in points]
        dots = axes.scatter(xs, ys, c=[value for *_, value in points], cmap="viridis", edgecolor=_INK, s=44, zorder=2)
        axes.figure.colorbar(dots, label=label, shrink=0.8)
        for x, y, name, side in (
            (0, 0, corners[0], "top"),
            (1, 0, corners[1], "top"),
            (0.5, height, corners[2], "bottom"),
        ):
            axes.annotate(
                name, (x, y), (0, -6 if side == "top" else 6), textcoords="offset points", ha="center", va=side
            )
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.margins(0.12)
    return svg.getvalue()


@contextmanager
def _chart() -> Iterator[tuple[Axes, io.StringIO]]:
    """Give axes to draw on, whose picture is in the text when the block has ended."""
    svg = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        yield figure.add_subplot(), svg
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg.write(text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor"))


def _columns(points: Curve) -> tuple[Sequence[float], Sequence[float]]:
    xs, ys = zip(*points, strict=True) if points else ((), ())
    return xs, ys


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, map(_shortened, names), frameon=False, fontsize="small")


def _shortened(name: str) -> str:
    """A name that leaves room for the curves: what differs between names is at either end."""
    half = _LEGEND_CHARACTERS // 2
    return name if len(name) <= _LEGEND_CHARACTERS else f"{name[:half]}…{name[-half:]}"
