"""The page in a real browser: it asks for nothing, no script fails, plots are drawn, hostile answers stay text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import night
from test_html import EVIL, asked, evil_prompt, failing, hostile, judged

from kvcheck.core.record import Run
from kvcheck.judging.history import series
from kvcheck.report import rows
from kvcheck.report.examples import Prompts
from kvcheck.report.html import history
from kvcheck.report.html.page import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
"""What keeps a Chromium from asking for anything of its own, and lets root start it."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="no driver of a browser: pip install playwright")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=[f"--{word}" for word in QUIET])
        yield opened
        opened.close()


class Opened:
    """A page as a browser has it: addresses that it asked for, what scripts complained of."""

    def __init__(
        self,
        browser: Any,
        path: Path,
        run: Run | None = None,
        prompts: Prompts | None = None,
        text: str = "",
        **how: Any,
    ) -> None:
        text = page([(run, rows.references(run))], prompts=prompts) if run is not None else text
        path.write_text(text, encoding="utf-8")
        self.page = browser.new_context(**how).new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())
        self.uri = path.as_uri()

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())


def test_a_page_asks_for_nothing_and_no_script_fails(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "page.html", judged(failing(), failing("h2o")), asked)
    assert opened.asked == [opened.uri]
    assert opened.complaints == []


def test_plots_have_their_marks_and_heads_sort(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "page.html", judged(failing(), failing("h2o")), asked)
    assert opened.count("#plot-accuracy circle") == 3
    boxes = opened.page.locator("#plot-accuracy circle").evaluate_all("all => all.map(one => one.getBBox().width)")
    assert all(wide > 0 for wide in boxes)
    opened.page.locator("#verdicts thead button").first.click()
    first = opened.page.locator("#verdicts tbody th").first.inner_text()
    assert first == "fp16"
    assert opened.page.locator("#verdicts thead th").first.get_attribute("aria-sort") == "ascending"


def test_hostile_answers_stay_text(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "page.html", hostile(), evil_prompt)
    assert opened.asked == [opened.uri]
    assert opened.complaints == []
    assert opened.count("img") == 0
    told = " ".join(opened.page.locator("#methods .answer pre").all_text_contents())
    assert EVIL.partition("\u202e")[0] in told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone(browser: Any, tmp_path: Path, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme}
    opened = Opened(browser, tmp_path / "page.html", judged(failing(), failing("h2o")), asked, **phone)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Any, tmp_path: Path, scheme: str) -> None:
    opened = Opened(browser, tmp_path / "page.html", judged(failing(), failing("h2o")), asked, color_scheme=scheme)
    worst = opened.page.evaluate(CONTRAST)
    assert worst[0] >= 4.5, worst


CONTRAST = """() => {
  const read = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const found = read(getComputedStyle(one).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || ["SCRIPT", "TITLE", "DESC", "title", "desc"].includes(one.tagName)) continue;
    const drawn = one.namespaceURI.endsWith("svg");
    const [a, b] = [light(read(getComputedStyle(one)[drawn ? "fill" : "color"])), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, one.outerHTML.slice(0, 120)];
  }
  return worst;
}"""
"""The least contrast of any text on the page, as WCAG counts it, and where."""


def test_the_page_of_a_history_asks_for_nothing_and_draws_its_marks(browser: Any, tmp_path: Path) -> None:
    found = series([night(1, 2), night(2, 2), night(3, 8)])
    opened = Opened(browser, tmp_path / "history.html", text=history.page(found, {}))
    assert opened.asked == [opened.uri]
    assert opened.complaints == []
    assert opened.count("svg circle.mark") == 9 + 3  # a ring for the run that changed, in every plot
    assert opened.count("svg circle.mark.changed") == 3
