"""The report in a real browser: samples are searched, sorted, filtered, opened and linked, by mouse and by keyboard, at
two widths; nothing that a model or a file wrote is executed; axe finds no fault where it is installed.

Skipped where Chromium and its driver are not installed. `EARWISE_AXE` may name the file `axe.min.js`.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

import browser
from browser import Browser, open_browser
from earwise.engine.base import Prompt
from earwise.evaluation.results import Row
from earwise.evaluation.run import EvalOptions, evaluate_with_controls
from earwise.evaluation.task_table import load_task
from earwise.report import write_report
from scripted_engine import ScriptedEngine, answer_by_pitch, answer_first_option, tone_task

pytestmark = pytest.mark.skipif(not browser.IS_INSTALLED, reason="needs chromium and chromedriver")
HOSTILE = "</script><script>window.executed=1</script><img src=x onerror='window.executed=2'>\"'&\u2028]]>"
HOSTILE_ID = "a/b?c=d&e <img src=x onerror=window.executed=3> #ü%41"
AXE = Path(os.environ.get("EARWISE_AXE", "axe.min.js"))


def answer_with_markup(prompt: Prompt) -> str:
    """Reasons in markup, and answers as asked."""
    return f"<think>😀 {HOSTILE}</think>{answer_by_pitch(prompt)}"


def add_votes(rows: Sequence[Row]) -> list[Row]:
    """Fields that the report has no place for."""
    return [{**row, "votes": [{"voter": HOSTILE, "points": 4}, {"voter": "b", "points": None}]} for row in rows]


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs: the first is right by chance, the second hears; one item is full of markup."""
    folder = tmp_path_factory.mktemp("runs")
    task = tone_task(folder, 40)
    task[5] = replace(task[5], id=HOSTILE_ID, category=HOSTILE)
    options = EvalOptions(style="think", permutations=2)
    judged = replace(load_task("manifest"), add_scores=add_votes)
    evaluate_with_controls(ScriptedEngine(answer_first_option, HOSTILE), task, folder / "before", options)
    evaluate_with_controls(ScriptedEngine(answer_with_markup), task, folder / "after", options, task=judged)
    return write_report(folder / "report.html", [folder / "before", folder / "after"], title=HOSTILE)


def fresh(window: Browser, page: Path, fragment: str = "", width: int = 1280) -> None:
    """Open the page anew: an address that differs in its fragment alone would not load it again."""
    window.resize(width, 900)
    window.command("Page.navigate", {"url": "about:blank"})
    window.open(page, fragment)
    window.wait("return document.querySelectorAll('.spacer .row').length")


def listed(window: Browser) -> list[str]:
    """Texts of the rows that are elements at the moment."""
    return list(window.run("return [...document.querySelectorAll('.spacer .row')].map((row) => row.innerText)"))


def test_search_filter_and_sort(window: Browser, page: Path) -> None:
    fresh(window, page)
    assert window.text("#sample-count") == "40 samples"
    window.press("/", *"item-01")
    assert window.text("#sample-count") == "10 of 40 samples" and len(listed(window)) == 10
    assert "q=item-01" in window.run("return location.hash")
    window.run("const menu = document.getElementById('facet-task'); menu.value = 'pitch';"
               "menu.dispatchEvent(new Event('change'))")  # fmt: skip
    assert window.text("#sample-count") == "5 of 40 samples"
    window.run("const menu = document.getElementById('sample-order'); menu.value = 'gold';"
               "menu.dispatchEvent(new Event('change'))")  # fmt: skip
    assert [row.split("\n")[-2] for row in listed(window)] == ["high tone"] * 3 + ["low tone"] * 2
    state = window.run("return location.hash")
    fresh(window, page, state)
    assert window.text("#sample-count") == "5 of 40 samples", "the address holds search, filter and order"
    window.run("[...document.querySelectorAll('#sample-tools button')].find((b) => b.innerText === 'Reset').click()")
    assert window.text("#sample-count") == "40 samples"
    assert window.run("return document.getElementById('sample-count').getAttribute('aria-live')") == "polite"


def test_a_link_opens_its_sample_and_markup_stays_text(window: Browser, page: Path) -> None:
    fresh(window, page, "#sample-" + quote(HOSTILE_ID, safe=""))
    assert window.text("#sample-title") == HOSTILE_ID
    detail = window.text("#sample-detail")
    assert "😀" in window.text("blockquote.reasoning") and HOSTILE.replace("\u2028", "") in detail.replace("\u2028", "")
    window.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    window.wait("return document.querySelectorAll('canvas').length === 1")
    assert "votes (2)" in window.text("#sample-detail")
    assert window.run("return window.executed") is None and window.run("return document.images.length") == 0
    assert window.run("return document.querySelectorAll('main script, main iframe, main object').length") == 0
    assert window.run("return document.title") == HOSTILE
    assert not [message for message in window.messages() if "favicon" not in message]


def test_keyboard_alone(window: Browser, page: Path) -> None:
    fresh(window, page)
    window.press("/", "ArrowDown")
    first = window.text("#sample-title")
    window.press("ArrowDown")
    second = window.text("#sample-title")
    assert (first, second) == ("item-000", "item-001")
    window.press("End")
    assert window.text("#sample-title") == "item-039"
    assert window.run("return document.activeElement.getAttribute('aria-rowindex')") == "41"
    window.press("Escape")
    assert window.run("return document.getElementById('sample-detail').hidden")
    assert window.run("return document.activeElement.getAttribute('role')") == "row"


def test_on_a_phone_the_sample_covers_the_page(window: Browser, page: Path) -> None:
    fresh(window, page, width=390)
    assert window.run("return document.documentElement.scrollWidth") <= 390
    window.click(".spacer .row")
    panel = "document.getElementById('sample-detail')"
    assert window.run(f"return {panel}.getAttribute('aria-modal')") == "true"
    assert window.run(f"return {panel}.contains(document.activeElement) || {panel} === document.activeElement")
    assert window.run("return document.querySelector('header.top').inert")
    assert window.run(f"return {panel}.scrollWidth") <= 390
    window.press("Escape")
    assert not window.run("return document.querySelector('header.top').inert")
    assert window.run("return document.activeElement.getAttribute('role')") == "row"


def test_the_spectrogram_shows_the_tone(window: Browser, page: Path) -> None:
    fresh(window, page, "#sample-item-002")  # a high tone: 2,500 Hz of 8,000
    window.wait("return document.querySelector('canvas')")
    brightest = window.run(
        "const canvas = document.querySelector('canvas'), context = canvas.getContext('2d');"
        "const column = context.getImageData(Math.floor(canvas.width / 2), 0, 1, canvas.height).data;"
        "let best = 0; for (let line = 0; line < canvas.height; line++)"
        " if (column[4 * line] + column[4 * line + 1] > column[4 * best] + column[4 * best + 1]) best = line;"
        "return 8000 * (canvas.height - best - 0.5) / canvas.height"
    )
    assert brightest == pytest.approx(2500, abs=70)


def test_tables_are_saved(window: Browser, page: Path) -> None:
    fresh(window, page)
    text = window.run_async(
        "const done = arguments[0], create = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { blob.text().then(done); return create(blob); };"
        "document.querySelector('.save button').click();"
    )
    lines = text.split("\n")
    assert lines[0].startswith("Run,n,Official,Official: detail") and lines[1].startswith("before,40,")
    assert window.run(
        "return document.querySelectorAll('.save').length === document.querySelectorAll('main table').length"
    )


@pytest.mark.skipif(not AXE.is_file(), reason="EARWISE_AXE names no file axe.min.js")
@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "phone"])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("fragment", ["", "#sample-item-003"], ids=["list", "sample"])
def test_axe_finds_no_fault(window: Browser, page: Path, width: int, is_dark: bool, fragment: str) -> None:
    window.dark(is_dark)
    fresh(window, page, fragment, width)
    window.run(AXE.read_text(encoding="utf-8"))
    result = window.run_async("axe.run().then(arguments[0])")
    window.dark(False)
    faults = [
        (fault["id"], node["html"][:200], node["failureSummary"])
        for fault in result["violations"]
        for node in fault["nodes"]
    ]
    assert not faults and len(result["passes"]) > 20
