"""The page: complete, self-contained, escaped; and the same table as text."""

import re
from html.parser import HTMLParser

from distil_ray.comparison.cost import Cost
from distil_ray.comparison.guesses import Gap, Guess
from distil_ray.comparison.page import HEADER, Page, Row, to_html, to_text
from distil_ray.reporting.plots import line_chart

PAGE = Page(
    title="Report on <a> & b",
    run_names=["<a>", "b"],
    rows=[
        Row("teacher", "path/to/it", 2.5, 0.5, None, Cost(5_000_000, 20.0, 9.87), [Guess("cat", 0.9, True)]),
        Row("<a>", "distilled", 2.75, 0.4, 0.625, Cost(3_000_000, 12.0, 5.0), [Guess("dog<", 0.25, False)]),
        Row("b", "not finished", None, None, None, None),
    ],
    findings=["It helps."],
    remarks=["b is not finished."],
    differences=[("student.init", ["teacher", "random"])],
    gaps=[Gap([1, 2], 1, "cat", "The ", " sat <still>.")],
    charts=[("Loss", line_chart({"<a>": [(0, 1.0), (10, 0.5)]}, x_label="x", y_label="y", levels={"t": 0.25}))],
    students=[("<a>", "/runs/a/export")],
    footer="made today",
)
VOID = {"meta", "br", "path", "use", "rect"}


class Checker(HTMLParser):
    """Notes what a page loads and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [
            str(value)
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#")
        ]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing():
    checker = Checker()
    checker.feed(to_html(PAGE))
    assert checker.open == []
    assert checker.loaded == []
    assert "<script" not in to_html(PAGE)
    assert "@import" not in to_html(PAGE)


def test_everything_is_on_the_page_and_escaped():
    html = to_html(PAGE)
    for text in (
        "Report on &lt;a&gt; &amp; b", "It helps.", "b is not finished.", "2.500", "62.5%", "5,000,000", "9.87",
        "student.init", "dog&lt; <small>25%</small>", 'class="right">cat', " sat &lt;still&gt;.",
        'from_pretrained("/runs/a/export")', "made today", "<svg",
    ):  # fmt: skip
        assert text in html
    assert "<a>" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)


def test_the_same_table_as_text():
    lines = to_text(PAGE).splitlines()
    assert re.split(" {2,}", lines[0]) == list(HEADER)
    assert lines[1].split() == ["teacher", "2.500", "50.0%", "–", "5,000,000", "20.0", "9.87"]
    assert lines[3].split() == ["b", *"––––––"]
    assert lines[4:] == ["It helps.", "b is not finished."]
    assert len({len(line) for line in lines[:4]}) == 1


def test_charts_are_the_same_each_time_and_show_their_data():
    def chart() -> str:
        return line_chart({"one": [(0, 1.0), (1000, 3.0)], "none": []}, x_label="tokens", y_label="loss", levels={})

    assert chart() == chart()
    for text in ("one", "tokens", "loss", ">1k<"):
        assert text in chart()
