"""Templates -> pages: self-contained HTML files, which load nothing from elsewhere."""

from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from distil_ray import __version__

Chart = tuple[str, str]  # title and SVG element


def render(
    template: str, *, title: str, findings: Sequence[str], footer: str, charts: Sequence[Chart], **rest: Any
) -> str:
    """Fill a template, a file beside this one that extends ``base.html.j2``."""
    environment = Environment(loader=FunctionLoader(_read), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    safe = [(name, Markup(svg)) for name, svg in charts]  # ours, and already escaped
    return environment.get_template(template).render(title=title, findings=findings, footer=footer, charts=safe, **rest)


def _read(name: str) -> str:
    return resources.files("distil_ray.reporting").joinpath(name).read_text(encoding="utf-8")


def made_by() -> str:
    """What made a page, and when."""
    return f"distil_ray {__version__}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
