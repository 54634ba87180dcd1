import re
import shutil
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.eval.protocols.statistics import Score
from pipeline.eval.report.queries import QueryCount
from pipeline.eval.report.report import (
    Example,
    RejectedPair,
    ReportInputs,
    group_results,
    key_figures,
    learning_curves,
    render_report,
    write_report,
)
from tests.pipeline.eval.conftest import HOSTILE

SECTIONS = (
    "results",
    "overlap",
    "predictions",
    "objectives",
    "training",
    "funnel",
    "links",
    "queries",
    "kept",
    "rejected",
    "run",
)
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def sections_of(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page)


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless Chromium, which writes its console to standard error."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update",
               "--disable-background-networking", "--disable-sync", f"--user-data-dir={profile}",
               "--enable-logging=stderr", "--v=0", *options, page.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console_of(browsed: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in browsed.stderr.splitlines() if "CONSOLE" in line]


@needs_chromium
def test_chromium_renders_every_section_without_a_console_error(report_inputs: ReportInputs, tmp_path: Path) -> None:
    write_report(report_inputs, tmp_path / "report.html")
    screenshot = tmp_path / "report.png"
    browsed = browse(
        tmp_path / "report.html",
        tmp_path / "profile",
        "--dump-dom",
        f"--screenshot={screenshot}",
        "--window-size=1280,1000",
    )
    assert console_of(browsed) == []
    with Image.open(screenshot) as shown:
        assert shown.size == (1_280, 1_000)
        assert len(shown.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 100
    assert sections_of(browsed.stdout) == list(SECTIONS)
    # Every <svg> was parsed, and no hostile text became an element.
    assert browsed.stdout.count("</svg>") == 12
    assert "<script" not in browsed.stdout
    assert "onerror=" not in re.sub(r"&lt;.*?&gt;", "", browsed.stdout)


@needs_chromium
def test_the_console_reports_a_forbidden_request(report_inputs: ReportInputs, tmp_path: Path) -> None:
    page = render_report(replace(report_inputs, kept_pairs=(), examples=(), rejected=()))
    (tmp_path / "report.html").write_text(page.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'))
    (line,) = console_of(browse(tmp_path / "report.html", tmp_path / "profile", "--dump-dom"))
    assert "Content Security Policy" in line


def test_the_page_makes_no_requests_and_is_small(report_inputs: ReportInputs) -> None:
    page = render_report(report_inputs)
    assert len(page) < 400_000
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"<(script|link(?! rel=\"icon\" href=\"data:)|iframe|object|embed|form|video|audio)\b", page)
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'\bsrc="([^"]*)"', page))
    assert all(address.startswith(("#", "data:")) for address in re.findall(r'\bhref="([^"]*)"', page))
    assert "url(" not in page
    assert "@import" not in page


def test_texts_from_the_web_are_escaped_everywhere(report_inputs: ReportInputs) -> None:
    page = render_report(report_inputs)
    assert HOSTILE not in page
    assert "<script>alert" not in page
    # It is a caption, a query, a reason in the funnel (text and tooltip), and the caption and URL of a rejected pair.
    assert page.count("&lt;script&gt;alert(2)&lt;/script&gt; &amp;amp; &#34;quotes&#34;") >= 6


@pytest.mark.parametrize("name", [field.name for field in fields(ReportInputs) if field.name != "title"])
def test_every_part_can_be_the_only_part(report_inputs: ReportInputs, name: str) -> None:
    page = render_report(ReportInputs(title="Part", **{name: getattr(report_inputs, name)}))
    shown = {
        "funnel": ["funnel"],
        "queries": ["queries"],
        "link_rot": ["links"],
        "kept_pairs": ["kept"],
        "rejected": ["rejected"],
        "metrics": ["training"],
        "scores": ["results"],
        "overlap": ["overlap"],
        "objectives": ["objectives"],
        "examples": ["predictions"],
        "configuration": ["run"],
        "versions": ["run"],
        "seconds_by_stage": ["run"],
        "snapshot": [],
    }
    assert sections_of(page) == shown[name]
    assert re.findall(r'<a href="#(\w+)">', page) == shown[name]


def test_an_empty_report_is_a_page() -> None:
    page = render_report(ReportInputs(title="Nothing yet"))
    assert "<h1>Nothing yet</h1>" in page
    assert sections_of(page) == []


def test_overlap_is_shown_for_each_set(report_inputs: ReportInputs) -> None:
    page = render_report(report_inputs)
    section = page[page.index('<section id="overlap">') : page.index('<section id="predictions">')]
    assert "Of 6 sets, 1 shares no picture" in section
    assert "104 of 500" in section
    assert "the mean 3.2%, and 7 scores changed" in section  # the paper's results
    for result in report_inputs.overlap:
        assert f"{100 * result.change:+.2f}" in section
    assert section.count("<circle") == 5


def test_the_funnel_shows_every_drop_with_its_reason(report_inputs: ReportInputs) -> None:
    page = render_report(report_inputs)
    section = page[page.index('<section id="funnel">') : page.index('<section id="queries">')]
    for stage in report_inputs.funnel:
        assert f"{stage.kept:,}" in section
        for count in stage.dropped.values():
            assert f"<b>{count:,}</b>" in section
    assert section.index("<b>101</b>") < section.index("<b>74</b>") < section.index("<b>40</b> connection failed")


def test_the_results_show_chance_interval_and_verdict(report_inputs: ReportInputs) -> None:
    page = render_report(report_inputs)
    row = page[page.index(">Digit<") : page.index(">Handwriting<")]
    assert "12.2%" in row
    assert "9.5–15.4" in row
    assert "10.0%" in row
    assert "may be chance" in row
    assert "may be chance" not in page[page.index(">Shape<") : page.index(">Colour<")]
    assert "12.2%, between 9.5% and 15.4%; chance 10.0%" in row


def test_results_follow_the_order_of_the_suite_with_unknown_sets_last() -> None:
    score = Score(value=0.5, low=0.4, high=0.6, chance=0.1, metric="r@1", num_samples=10)
    names = ["my_birds", "sklearn_digits", "rendered_pairs/text_to_image_r@1", "rendered_shape"]
    grouped = group_results(dict.fromkeys(names, score))
    assert [benchmark.title for benchmark, _ in grouped] == ["Shape", "Handwriting", "Pairs", "my birds"]
    assert grouped[2][1][0].metric == "text to image, R@1"


def test_a_score_below_chance_is_labelled() -> None:
    score = Score(value=0.02, low=0.01, high=0.05, chance=0.1, metric="accuracy", num_samples=300)
    assert group_results({"x": score})[0][1][0].verdict == "below chance"


def test_link_rot_is_shown_in_charts_and_text(report_inputs: ReportInputs) -> None:
    page = render_report(report_inputs)
    section = page[page.index('<section id="links">') : page.index('<section id="queries">')]
    assert "120,010 image URLs were tried, and 69.0% gave an image:" in section
    assert "28.0% of those on pages of 2013, and" in section
    assert "93.0% of those on pages of 2026." in section
    assert section.count('<figure class="large">') == 2
    assert "no date 60.0% of 310" in section
    assert all(title in section for title in ("not allowed 6.2%", "permanent failure 15.5%"))
    one_year = render_report(
        replace(report_inputs, link_rot=[row for row in report_inputs.link_rot if row.name == "2026"])
    )
    assert "on pages of" not in one_year


def test_queries_without_any_match_are_shown() -> None:
    page = render_report(ReportInputs(title="x", queries=[QueryCount("lonely", "unigram", 0, 0)]))
    assert "1 query, 1 of them without a matching caption" in page


def test_only_logged_metrics_have_a_curve(report_inputs: ReportInputs) -> None:
    assert [heading for heading, _ in learning_curves(report_inputs.metrics)][:2] == [
        "Loss",
        "Accuracy within the batch",
    ]
    assert [heading for heading, _ in learning_curves([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])] == ["Loss"]
    assert learning_curves([{"loss": 3.0}]) == []


def test_the_key_figures_omit_missing_parts(report_inputs: ReportInputs) -> None:
    assert key_figures(ReportInputs(title="x")) == []
    figures = {label: value for value, label in key_figures(report_inputs)}
    assert figures["rows read"] == "3,412"
    assert figures["training steps"] == "600"
    assert figures["total time"] == "4 min 19 s"
    assert 800 < int(figures["pairs per second"]) < 820


def test_an_image_that_cannot_be_decoded_raises() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        render_report(ReportInputs(title="x", examples=[Example(b"<html>", "a", [("a", 1.0)])]))


def test_a_rejected_pair_may_have_no_decodable_image() -> None:
    rejected = [RejectedPair(content, "a cat", "http://a/", "no image", "fetch") for content in (b"<html>", None)]
    page = render_report(ReportInputs(title="x", rejected=rejected))
    assert page.count("a cat") == 2
    assert "<img" not in page


def test_rejected_pairs_are_grouped_by_stage_in_their_order(report_inputs: ReportInputs) -> None:
    page = render_report(report_inputs)
    section = page[page.index('<section id="rejected">') : page.index('<section id="run">')]
    assert re.findall("<h3>(.*)</h3>", section) == ["dedupe", "caption rules", "fetch", "image"]
    assert section.count('class="card"') == len(report_inputs.rejected)
