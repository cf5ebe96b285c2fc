"""The page in a real browser, offline: it draws everything, asks for nothing and complains of nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import amortize as am
from tests.report import examples

REQUIRED = os.environ.get("AMORTIZE_REQUIRE_BROWSER") == "1"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
TREES = {
    "digits": lambda: examples.digits_tree(60, failed=(3, 17)),
    "vectors": examples.vectors_tree,
    "auto": lambda: examples.auto_tree(40),
    "no guide": examples.guideless_tree,
    "whole ledger": examples.full_tree,
    "all failed": lambda: examples.digits_tree(6, failed=tuple(range(6))),
}


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "playwright isn't installed"
    else:
        reason = "" if Path(CHROMIUM).exists() else f"there is no chromium at {CHROMIUM}"
    if reason and REQUIRED:
        pytest.fail(f"AMORTIZE_REQUIRE_BROWSER=1, but {reason}")
    if reason:
        pytest.skip(f"{reason}; AMORTIZE_REQUIRE_BROWSER=1 makes this a failure")
    with sync_playwright() as play:
        launched = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.mark.parametrize("name", TREES)
def test_the_page_works_offline(name, browser, tmp_path):
    path = am.report(TREES[name](), tmp_path / "report.html")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.goto(path.as_uri())
    wanted = page.locator("script[data-figure]").count()
    page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {wanted}")

    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
    assert page.locator("#verdict .sentence").is_visible()
    assert page.locator(f"#row-{'approximation' if name == 'no guide' else 'inference'}_gap").is_visible()
    for figure in page.locator(".figure").all():
        box = figure.bounding_box()
        assert box["width"] > (300 if figure.get_attribute("id").startswith("figure-path") else 800)
        assert box["height"] > 200
        assert figure.locator(".trace, .bars, .scatter").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280  # nothing hangs over the edge
    context.close()


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("width", [400, 320])
def test_a_narrow_page_scrolls_its_tables_and_not_itself(name, width, browser, tmp_path):
    path = am.report(TREES[name](), tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(path.as_uri())
    wanted = page.locator("script[data-figure]").count()
    page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {wanted}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_bars_and_pictures_are_drawn(browser, tmp_path):
    path = am.report(examples.digits_tree(60, failed=(3, 17)), tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("#figure-gaps .bars")
    assert page.locator("#figure-gaps .bars .point").count() == 2 * 58
    assert page.locator("#figure-khat .scatter .point").count() == 60
    assert page.locator("#worst .card").count() == 12
    sizes = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth, image.width])")
    assert all(complete and natural == 8 and shown > 30 for complete, natural, shown in sizes)
    page.close()
