"""The monthly report in a real browser: what it looks like cannot be told from its text."""

import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
from months import Happened, busy_month
from playwright.sync_api import Browser, Page, Request, sync_playwright

from bot.audit.month import Month, parse_month
from bot.audit.report import Made, page
from bot.audit.review import review
from bot.database.verification import Verification

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--no-sandbox",  # root cannot have one; the page that is opened is ours
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
A4_WIDTH_PX: Final = 794
LEAST_CONTRAST: Final = 4.5
"""Of text of any size, by WCAG 2.2, level AA."""
LEAST_CONTRAST_OF_BARS: Final = 3.0

OCTOBER: Final = parse_month("2026-10", ZoneInfo("Asia/Seoul"))
MADE: Final = Made(at=datetime(2026, 11, 2, 1, 2, 3, tzinfo=UTC), by="cli:auditor", version="1.2.3")
SOUND: Final = Verification(events=4039, head_seq=4039, head_hash="9f" * 32)

CONTRAST: Final = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const channels = (text) => {
    if (!known.has(text)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = text;
      canvas.fillRect(0, 0, 1, 1);
      known.set(text, [...canvas.getImageData(0, 0, 1, 1).data]);
    }
    return known.get(text);
  };
  const luminance = (text) => {
    const [r, g, b] = channels(text).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (channels(colour)[3] > 0) return colour;
    }
    return "white";
  };
  const ratio = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    texts.push({ text: node.data.trim().slice(0, 40), ratio: ratio(colour, behind(element)) });
  }
  const bars = [...document.querySelectorAll(".bar i")].map((bar) => getComputedStyle(bar).backgroundColor);
  return { texts, bars: bars.map((bar) => ratio(bar, behind(document.body))) };
}
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The system's Chromium; where there is none, `REQUIRE_BROWSER` makes that a failure."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        lacking = "there is no Chromium: `apt-get install chromium`, or the like of your system"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(lacking)
        pytest.skip(lacking)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=list(FLAGS), timeout=60_000)
        yield opened
        opened.close()


class Opened:
    """A page that was opened, with everything that it complained of or asked for."""

    def __init__(self, shown: Page, path: Path) -> None:
        self.page = shown
        self.complaints: list[str] = []
        self.asked_for: list[str] = []
        shown.on("console", lambda message: self.complaints.append(message.text))
        shown.on("pageerror", lambda error: self.complaints.append(str(error)))
        shown.on("request", self._ask)
        shown.goto(path.as_uri())

    def _ask(self, request: Request) -> None:
        self.asked_for.append(request.url)

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)


def counted(happened: Happened, month: Month = OCTOBER) -> str:
    stored = [event for event in happened.stored() if month.begins_at <= event.occurred_at < month.ends_at]
    return page(review(month, stored, before=lambda _: ()), verification=SOUND, made=MADE)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a desk's month."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(counted(busy_month(OCTOBER.begins_at, requests=400)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a month in which nothing happened."""
    path = tmp_path_factory.mktemp("quiet") / "report.html"
    path.write_text(counted(Happened()), encoding="utf-8")
    return path


def test_the_report_opens_without_a_complaint_and_asks_for_nothing(browser: Browser, busy: Path, quiet: Path) -> None:
    """It is read where there is no network; what is asked for would tell somebody that it is being read."""
    for path in (busy, quiet):
        with browser.new_page() as shown:
            opened = Opened(shown, path)
            assert opened.complaints == []
            assert [url for url in opened.asked_for if not url.startswith("data:")] == [path.as_uri()]


def test_every_plot_can_be_seen(browser: Browser, busy: Path) -> None:
    """With bars in it, and all of its text inside of it."""
    with browser.new_page(viewport={"width": 1280, "height": 900}) as shown:
        plots = Opened(shown, busy).run(
            """() => [...document.querySelectorAll("svg.plot")].map((plot) => {
              const all = plot.getBoundingClientRect();
              const outside = [...plot.querySelectorAll("text")].filter((text) => {
                const box = text.getBoundingClientRect();
                return box.left < all.left - 2 || box.right > all.right + 2
                  || box.top < all.top - 2 || box.bottom > all.bottom + 2;
              });
              const seen = [...plot.querySelectorAll("path")].filter((path) => path.getBoundingClientRect().height > 4);
              return { name: plot.getAttribute("aria-label"), width: all.width, height: all.height,
                texts: plot.querySelectorAll("text").length, outside: outside.map((text) => text.textContent),
                seen: seen.length };
            })"""
        )
    assert len(plots) == 5
    for plot in plots:
        assert plot["width"] > 600, plot
        assert plot["height"] > 60, plot
        assert plot["texts"] >= 4, plot
        assert plot["seen"] >= 4, plot
        assert plot["outside"] == [], plot


@pytest.mark.parametrize("width", [1280, A4_WIDTH_PX, 400])
def test_the_page_is_no_wider_than_its_window(browser: Browser, busy: Path, quiet: Path, width: int) -> None:
    """Who must scroll sideways to read a sentence does not read it. Wide tables scroll by themselves."""
    for path in (busy, quiet):
        with browser.new_page(viewport={"width": width, "height": 900}) as shown:
            sizes = Opened(shown, path).run("[document.documentElement.scrollWidth, window.innerWidth]")
            assert sizes[0] <= sizes[1] == width


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_every_text_stands_out_from_what_is_behind_it(browser: Browser, busy: Path, scheme: str) -> None:
    """In the day, at night and on paper, also the small grey ones and those in plots."""
    with browser.new_page(color_scheme="light" if scheme == "light" else "dark") as shown:
        if scheme == "print":
            shown.emulate_media(media="print")
        found = Opened(shown, busy).run(CONTRAST)
    assert len(found["texts"]) > 500
    assert [each for each in found["texts"] if each["ratio"] < LEAST_CONTRAST] == []
    assert min(found["bars"]) >= LEAST_CONTRAST_OF_BARS


def test_night_is_dark_and_paper_is_white(browser: Browser, busy: Path) -> None:
    """Who reads at night prints all the same."""
    with browser.new_page(color_scheme="dark") as shown:
        opened = Opened(shown, busy)
        paper = "getComputedStyle(document.body).backgroundColor"
        assert opened.run(paper) == "rgb(20, 24, 28)"
        shown.emulate_media(media="print")
        assert opened.run(paper) == "rgb(255, 255, 255)"


def test_bars_that_stand_together_differ_without_colour(browser: Browser, busy: Path) -> None:
    """One reader in twelve sees other colours, and the printer in the corner sees none."""
    script = """() => [...document.querySelectorAll("svg.plot")].slice(1, 3).map((plot) => {
      const fills = new Set([...plot.querySelectorAll("path")].map((path) => getComputedStyle(path).fill));
      return [...fills].filter((fill) => fill.startsWith("rgb"))
        .map((fill) => fill.match(/[0-9]+/g).map(Number)).map(([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b);
    })"""
    for scheme in ("light", "dark"):
        with browser.new_page(color_scheme="dark" if scheme == "dark" else "light") as shown:
            for greys in Opened(shown, busy).run(script):
                bars = sorted(grey for grey in greys if grey > 0)
                assert len(bars) == 2, (scheme, greys)
                assert bars[1] - bars[0] > 60, (scheme, greys)


def test_the_links_lead_to_their_sections(browser: Browser, busy: Path) -> None:
    """A reviewer goes from what is worth a look to where it stands."""
    with browser.new_page(viewport={"width": 1280, "height": 900}) as shown:
        opened = Opened(shown, busy)
        links = opened.run("""() => [...document.querySelectorAll("a")].map((link) => link.getAttribute("href"))""")
        assert len(links) > 15
        assert opened.run("""(() => [...document.querySelectorAll("a")]
          .every((link) => document.querySelector(link.getAttribute("href"))))()""")
        shown.click("text=/still unresolved/")
        top = opened.run("""document.querySelector("#trouble").getBoundingClientRect().top""")
        assert 0 <= top < 400


def test_the_report_prints(browser: Browser, busy: Path, quiet: Path, tmp_path: Path) -> None:
    """On A4, a busy month on a dozen of pages or so, an empty one on one."""
    pages = []
    for path in (quiet, busy):
        with browser.new_page() as shown:
            Opened(shown, path)
            pdf = shown.pdf(prefer_css_page_size=True, print_background=True)
        assert pdf.startswith(b"%PDF-")
        boxes = re.findall(rb"/MediaBox \[0 0 ([0-9.]+) ([0-9.]+)\]", pdf)
        assert {(round(float(width)), round(float(height))) for width, height in boxes} == {(595, 842)}
        pages.append(len(boxes))
    assert pages[0] == 1
    assert 5 <= pages[1] <= 15
