"""The web page in headless Chromium; skipped where there is none."""

from __future__ import annotations

import shutil
import time

import page_fakes
import pytest

from qartsr_lib.show.page import write_page

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
]
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)


@pytest.fixture
def open_page(home, tmp_path):
    """Function of a window's width that opens the page and returns the browser."""
    page_fakes.write_results(home)
    path = write_page()
    browsers = []

    def start(width: int):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for word in (*OPTIONS, f"--user-data-dir={tmp_path / f'browser{width}'}"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        browsers.append(browser)
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(path.as_uri())
        return browser

    yield start
    for browser in browsers:
        browser.quit()


def until(browser, condition: str):
    """The value of a script once it is truthy."""
    for _ in range(100):
        if found := browser.execute_script(f"return {condition}"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"never true: {condition}")


def choose(browser, name: str, value: str) -> None:
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        *(name, value),
    )


def test_sliders_and_no_error(open_page):
    browser = open_page(1280)
    until(browser, "document.getElementById('over').naturalWidth")
    clip = "return parseFloat(getComputedStyle(document.getElementById('over')).clipPath.split(' ')[3])"
    middle = browser.execute_script(clip)
    browser.find_element("id", "position").send_keys("\ue014" * 20)  # arrow right
    assert browser.execute_script(clip) > middle > 0

    before = browser.execute_script("return document.getElementById('over').src")
    choose(browser, "right", "0")
    assert browser.execute_script("return document.getElementById('over').src") != before
    assert "original" in browser.find_element("id", "right-text").text
    width = "return document.getElementById('sheet').clientWidth"
    wide = browser.execute_script(width)
    choose(browser, "zoom", "4")
    script = "const f = document.querySelector('.frame'); return (f.scrollLeft + f.clientWidth / 2) / f.scrollWidth"
    assert browser.execute_script(script) == pytest.approx(0.5, abs=0.02)  # the middle stays
    assert browser.execute_script(width) == pytest.approx(4 * wide, abs=80)  # a scroll bar may come

    assert browser.get_log("browser") == []
    requests = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert requests and not any('"url":"http' in message for message in requests)


def test_phone_has_no_horizontal_scroll(open_page):
    browser = open_page(390)
    until(browser, "document.getElementById('over').naturalWidth")
    browser.execute_script("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.execute_script("return innerWidth") == 390
    assert browser.get_log("browser") == []
