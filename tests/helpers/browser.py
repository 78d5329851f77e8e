"""A page as a reader's browser shows it: what runs over, is cut off, empty or hard to read."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
# The page is in a frame, which can be narrower than a window may be; what is found is left as text beside it.
_AROUND = """<!doctype html><meta charset="utf-8"><body style="margin: 0">
<iframe id="page" style="width: {width}px; height: 5000px; border: 0" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{ document.getElementById("found").textContent = JSON.stringify(look(frame.contentDocument)); }};

function look(page) {{
  const problems = [], style = element => page.defaultView.getComputedStyle(element);
  const say = (what, element) => problems.push(`${{what}}: ${{element.textContent.trim().slice(0, 60)}}`);
  const root = page.documentElement, title = page.querySelector("h1");
  if (root.scrollWidth > root.clientWidth + 1) say(`the page is ${{root.scrollWidth}} px wide`, title);

  for (const element of page.body.querySelectorAll("*:not(svg, svg *)")) {{
    const isOver = element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1;
    if (isOver && style(element).overflowX === "visible") say("text runs over its box", element);
    if ([...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) {{
      if (contrast(style(element).color, ground(element)) < 4.5) say("text is hard to read", element);
    }}
  }}
  for (const chart of page.querySelectorAll("svg")) {{
    const box = chart.getBoundingClientRect(), ink = style(chart).color;
    const caption = chart.parentElement;
    if (box.width < 200 || box.height < 100) say("a chart is too small to read", caption);
    const isMark = mark => {{
      const {{ stroke, fill }} = style(mark), size = mark.getBoundingClientRect();
      const isColored = [stroke, fill].some(color => color !== "none" && color !== ink);
      return isColored && size.width + size.height > 3 && mark.closest("[clip-path], [id^=PathCollection]");
    }};
    if (![...chart.querySelectorAll("path, use")].some(isMark)) say("a chart is empty", caption);
    const places = [];
    for (const label of chart.querySelectorAll("text")) {{
      const at = label.getBoundingClientRect();
      const isOver = other => Math.min(at.right, other.right) - Math.max(at.left, other.left) > 2
        && Math.min(at.bottom, other.bottom) - Math.max(at.top, other.top) > 2;
      if (places.some(isOver)) say("labels overlap", label);
      places.push(at);
      const isBeside = at.left < box.left - 2 || at.right > box.right + 2;
      if (isBeside || at.top < box.top - 2 || at.bottom > box.bottom + 2) say("a label is cut off", label);
      if (contrast(style(label).fill, ground(chart)) < 4.5) say("a label is hard to read", label);
    }}
  }}
  return {{ problems, ground: ground(page.body), numCharts: page.querySelectorAll("svg").length }};

  function ground(element) {{
    for (let one = element; one; one = one.parentElement) {{
      const color = style(one).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)") return color;
    }}
    return "rgb(255, 255, 255)";
  }}
}}

// Of WCAG 2: (lighter + 0.05) / (darker + 0.05).
function contrast(one, other) {{
  const luminance = color => {{
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(value => {{
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    }});
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }};
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}}
</script>
"""


def look_at(page: str, folder: Path, *, width: int, is_dark: bool) -> dict[str, object]:
    """Open a page of HTML in Chromium.

    Args:
        folder: for the browser's own files.
        width: of the window, in pixels.
        is_dark: whether the reader prefers dark pages.

    Returns:
        ``problems`` (a sentence each), the color of the page's ``ground``, and ``numCharts``.
    """
    assert CHROMIUM is not None
    around = folder / f"around-{width}-{is_dark}.html"
    around.write_text(_AROUND.format(width=width, page=html.escape(page)), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    command = [CHROMIUM, *_FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", "--dump-dom", around.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="found">(.+?)</pre>', shown, flags=re.DOTALL)
    assert found is not None, f"the page was not loaded:\n{shown[-2000:]}"
    answer: dict[str, object] = json.loads(html.unescape(found[1]))
    return answer


def assert_readable(page: str, folder: Path, *, num_charts: int) -> None:
    """Check a page on a desk and on a phone, light and dark; skips the rest of the test where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    for width in (1200, 390):
        for is_dark in (False, True):
            found = look_at(page, folder, width=width, is_dark=is_dark)
            where = f"{width} px wide, {'dark' if is_dark else 'light'}"
            assert not found["problems"], f"{where}: {found['problems']}"
            assert found["numCharts"] == num_charts
            assert (found["ground"] == "rgb(255, 255, 255)") != is_dark, where
