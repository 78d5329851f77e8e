"""What MkDocs does beyond its own: pages made of the repository's other files, links that hold on GitHub and in the
site, tables of all keys, and formulas without a script.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from distil_ray.config import Config, Section
from distil_ray.config.description import fields, is_mapping, section_of, type_text
from distil_ray.config.sections import shown
from distil_ray.evaluation.protocol import Protocol
from distil_ray.studies.settings import AblationConfig, SearchConfig

ROOT = Path(__file__).parents[1]

# Pages of the site, and the files that they are made of.
PAGES = {
    "index.md": "README.md",
    "measured.md": "benchmarks/RESULTS.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
KEYS: dict[str, type[Section]] = {
    "run": Config,
    "search": SearchConfig,
    "ablation": AblationConfig,
    "protocol": Protocol,
}

# Code, in which brackets are no links, or a link to a file: its text, its target and an anchor there.
_CODE_OR_LINK = re.compile(
    r"^(?P<indent> *)```.*?^(?P=indent)```$"
    r"|(?P<image>!?)\[(?P<text>(?:[^][]|\[[^][]*])*)]\((?![a-z]+:|#)(?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)"
    r"|`[^`\n]+`",
    re.DOTALL | re.MULTILINE,
)


def on_config(config: Any) -> None:
    """Add the fence ``math``, which GitHub has, too."""
    fence = {"name": "math", "class": "math", "format": formula}
    config["mdx_configs"]["pymdownx.superfences"] = {"custom_fences": [fence]}


def on_files(files: Any, config: Any) -> None:
    """Add the pages that other files make."""
    from mkdocs.structure.files import File

    for page, origin in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text(encoding="utf-8")))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the tables of keys, and turn links into the repository to what the site has of it."""
    uri = page.file.src_uri
    markdown = re.sub(r"^<!-- keys: (\w+) -->$", lambda found: keys(KEYS[found[1]]), markdown, flags=re.MULTILINE)
    return linked(markdown, uri, config["repo_url"])


def on_post_page(output: str, page: Any, config: Any) -> None:
    """Keep the promise that a page can be read without a network.

    Raises:
        RuntimeError: the page fetches something from elsewhere.
    """
    fetched = re.findall(r'<(?:script|img|link)\s[^>]*(?:src|href)="((?:https?:)?//[^"]+)"', output)
    if fetched:
        raise RuntimeError(f"{page.file.src_uri}: fetches {', '.join(fetched)}; expected files of the site alone")


def linked(markdown: str, page: str, repo_url: str | None = None) -> str:
    """Return a page's text with its relative links as the site has them.

    A link to a file that is no page leads to the repository, where its address is known; otherwise its text remains.

    Raises:
        FileNotFoundError: a link leads to no file.
    """
    return _CODE_OR_LINK.sub(partial(_link, page=page, repo_url=repo_url), markdown)


def _link(found: re.Match[str], *, page: str, repo_url: str | None) -> str:
    if found["target"] is None:
        return found[0]
    text, anchor = found["text"], found["anchor"] or ""
    origin = PAGES.get(page, f"docs/{page}")
    path = os.path.normpath(f"{os.path.dirname(origin)}/{found['target']}".lstrip("/"))
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{origin}: the link to {found['target']} leads to no file")
    pages = {file: name for name, file in PAGES.items()}
    inside = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if inside is not None:
        return f"{found['image']}[{text}]({os.path.relpath(inside, os.path.dirname(page) or '.')}{anchor})"
    return f"[{text}]({repo_url}/blob/main/{path}{anchor})" if repo_url else text


def keys(root: type[Section]) -> str:
    """Return a heading, what it is about, and a table of keys for each section below ``root``."""
    rows: list[str] = []
    seen = ""
    is_new = False  # whether the section has no table yet
    for key, field in fields(root):
        name, _, rest = key.partition(".")
        if name != seen:
            seen, is_new = name, True
            section = root.model_fields[name]
            about = section.description if is_mapping(section) else (section_of(section.annotation) or root).__doc__
            rows += ["", f"### {name}", "", about or ""]
        if rest:
            rows += ["", "| key | type | default | |", "|---|---|---|---|"] if is_new else []
            is_new = False
            default = "required" if field.is_required() else f"`{shown(field.default)}`"
            cells = (f"`{key}`", type_text(field.annotation, field.metadata), default, field.description or "")
            rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def formula(source: str, *_: Any, **__: Any) -> str:
    """Return TeX as MathML, which browsers show by themselves."""
    from latex2mathml.converter import convert

    to_mathml: Callable[..., str] = convert
    return f"<p>{to_mathml(source, display='block')}</p>"
