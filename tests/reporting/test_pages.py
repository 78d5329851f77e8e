"""Pages in a real browser: on a desk and on a phone, light and dark, nothing is cut off, empty or hard to read."""

import pytest
from browser import CHROMIUM, assert_readable, look_at

from distil_ray.reporting.plots import COLORS, line_chart, scatter_chart, ternary_chart
from distil_ray.reporting.report import Cell, Charts, Code, Gap, Report, ReportSection, Table

LONG = "a_run_whose_name_is_as_long_as_the_settings_that_it_was_made_with_learning_rate_1e4_temperature_2"
CURVES = {f"run {i}": [(step * 1e5, 6 - i / 10 - step / 20) for step in range(60)] for i in range(len(COLORS))}
CHARTS = [
    ("Many runs", line_chart(CURVES, x_label="tokens", y_label="MLM loss", levels={"teacher": 2.5})),
    (
        "Beside others",
        line_chart({LONG: [(0, 1)]}, x_label="x", y_label="y", levels={}, others=[[(0, 0.5), (1, 2.5)]]),
    ),
    (
        "Points",
        scatter_chart(
            {"finished": [(1e-4, 2.0), (2e-3, 3.0)], "stopped": [(5e-4, 4.0)]},
            x_label="optim.learning_rate",
            y_label="eval/mlm_loss",
            is_logarithmic=True,
        ),
    ),
    (
        "Weights",
        ternary_chart(
            [(0.2, 0.3, 0.5, 2.0), (1.0, 0.0, 0.0, 3.0)], corners=("alpha_ce", "alpha_mlm", "alpha_cos"), label="loss"
        ),
    ),
]
WIDE = Table([["model", *(f"column {i}" for i in range(14))], [LONG, *(f"{i}.000" for i in range(14))]])
REPORT = Report(
    title=f"Report on {LONG}",
    findings=[f"{LONG}: 40% fewer parameters.", "A short one."],
    sections=[
        ReportSection("Figures", [WIDE, f"{LONG} is not finished."]),
        ReportSection("Curves", [Charts(CHARTS)]),
        ReportSection("Guesses", [Gap("The ", "cat", f" sat {LONG}."), Code(f'load("/runs/{LONG}/{LONG}")')]),
        ReportSection(
            "Importance",
            [
                Table([["setting", "share"], ["a", Cell("", bar=0.4)]], is_text=True),
                Table([["model", "guess"], ["teacher", Cell("cat", note="99%", is_right=True)]], is_text=True),
            ],
        ),
    ],
    footer=f"made of {LONG}",
)


@pytest.mark.slow
def test_everything_that_a_page_can_hold_is_readable(tmp_path):
    assert_readable(REPORT.to_html(), tmp_path, num_charts=4)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("overflow-wrap: break-word;", "", "the page is"),
        ("<p class=", '<p style="color: #ccc" class=', "text is hard to read"),
        ('<p class="remark">', '<p style="width: 40px; overflow-wrap: normal">', "text runs over its box"),
        ("max-width: 29rem", "max-width: 5rem", "a chart is too small to read"),
        ("#0072b2", "currentColor", "a chart is empty"),
    ],
)
def test_what_is_wrong_with_a_page_is_found(tmp_path, before, after, problem):
    chart = line_chart({"only": [(0, 1), (1, 2)]}, x_label="x", y_label="y", levels={})
    sections = [ReportSection("Curves", [Charts([("Loss", chart)]), f"{LONG} is not finished."])]
    page = Report(f"Report on {LONG}", [], sections, "made today").to_html()
    assert not look_at(page, tmp_path, width=1200, is_dark=False)["problems"]
    assert before in page
    problems = look_at(page.replace(before, after), tmp_path, width=390, is_dark=False)["problems"]
    assert any(problem in one for one in problems), problems
