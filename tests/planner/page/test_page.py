"""Reports in a real browser without a network: drawn without errors, with the plan's numbers, answering the reader."""

import json
import shutil
import sys
import time

import pytest

from cost_models import Cluster, Model, Workload
from cost_models.bands import memory_band, step_band
from cost_models.units import show_bytes, show_seconds
from planner import command, plan, simulate
from planner.page import pictures
from planner.page.page import Page, Section, Table
from planner.page.report_page import MOST_SPANS, merged, plan_page, thinned
from planner.plan_file import Plan
from planner.screens import plan_lines
from planner.screens.price_lines import band_words, fit_words

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver")


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    asked = webdriver.ChromeOptions()
    asked.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,2400"):
        asked.add_argument(word)
    asked.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(DRIVER), options=asked)
    yield driver
    driver.quit()


def opened(browser, path):
    """The page, drawn; a page that logs anything or asks the network for anything fails."""
    browser.get(path.as_uri())
    until = time.monotonic() + 60
    while browser.execute_script("return document.body.dataset.drawn") != "yes":
        assert time.monotonic() < until, browser.get_log("browser")
        time.sleep(0.05)
    assert browser.get_log("browser") == []
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert [name for name in asked if not name.startswith("data:")] == []


def hovered(browser, selector):
    """The text of the tooltip over the first mark that `selector` finds."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    mark = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    until = time.monotonic() + 20
    while True:
        tip = browser.find_elements(By.CSS_SELECTOR, "#vg-tooltip-element.visible")
        if tip and tip[0].text:
            return tip[0].text
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def plan_report(tmp_path_factory):
    """`plan … --report` -> (page, plan)."""
    folder = tmp_path_factory.mktemp("report")
    words = ["--gpus", "16", "--ctx", "64K", "-o", str(folder / "plan.json"), "--report", str(folder / "plan.html")]
    typed(words)
    return folder / "plan.html", Plan.load(folder / "plan.json")


def typed(words):
    before, sys.argv = sys.argv, ["plan", *words]
    try:
        command.main()
    except SystemExit as stop:
        assert not stop.code
    finally:
        sys.argv = before


@needs_browser
def test_a_plan_s_page_shows_its_numbers_and_answers_to_hovering(browser, plan_report):
    from selenium.webdriver.common.by import By

    path, made = plan_report
    opened(browser, path)
    text = browser.find_element(By.TAG_NAME, "body").text
    for number in (
        show_seconds(made.cost.step_s),
        show_seconds(made.simulated.step_s),
        show_bytes(made.cost.memory_bytes),
        band_words(step_band(made.cost), show_seconds),
        band_words(memory_band(made.cost), show_bytes),
        fit_words(made.cost, made.room),
        *plan_lines.choice_words(made),
        plan_lines.bound_words(made),
        made.strategy.describe(),
        *(other.reason for other in made.alternatives),
    ):
        assert number in text, number
    tip = hovered(browser, "#topology .mark-rect path")
    assert "rank" in tip and "ulysses group" in tip
    assert "GiB" in hovered(browser, "#memory .mark-rect path")
    assert "of the step" in hovered(browser, "#topology .mark-symbol path")


@needs_browser
def test_the_reader_picks_what_colours_mean(browser, plan_report):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    opened(browser, plan_report[0])

    def colours():
        marks = browser.find_elements(By.CSS_SELECTOR, "#topology .mark-rect path")
        return [mark.get_attribute("fill") for mark in marks]

    assert len(colours()) == 16
    by_group = colours()
    Select(browser.find_element(By.CSS_SELECTOR, "#topology select")).select_by_visible_text("leaf")
    assert len(set(colours())) == 1 < len(set(by_group))


@needs_browser
def test_a_what_if_page_switches_between_scenarios(browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    path = tmp_path / "what-if.html"
    changes = ["--vary", "inter_node_gb_per_s=5,20,80", "--slow", "node:0.1,0.5", "--jobs", "1"]
    typed(["what-if", "--gpus", "16", "--ctx", "64K", *changes, "--report", str(path)])
    opened(browser, path)

    def points():
        marks = browser.find_elements(By.CSS_SELECTOR, "#curve0 .mark-symbol[aria-roledescription] path")
        return [mark.get_attribute("aria-label") for mark in marks]

    before = points()
    assert len(before) == 6  # three rates, planned again and kept
    Select(browser.find_element(By.CSS_SELECTOR, "#curve0 select")).select_by_visible_text("slow node 0.5")
    after = points()
    assert len(after) == 6 and after != before


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark_and_fits_a_phone(browser, plan_report, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        opened(browser, plan_report[0])
        ink, back, wide = browser.execute_script(
            "const body = getComputedStyle(document.body);"
            "return [body.color, body.backgroundColor, document.documentElement.scrollWidth]"
        )
        brightness = [sum(int(part) for part in colour[4:-1].split(",")) / 3 for colour in (ink, back)]
        assert (brightness[0] < 80 < 200 < brightness[1]) == (scheme == "light")
        assert abs(brightness[0] - brightness[1]) > 150
        assert wide <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_report_of_256_gpus_is_small(tmp_path):
    made = plan(Cluster.load("dgx-h100", nodes=32), Workload(Model.load("longvila-8b"), context_tokens=2**21))
    assert len(plan_page(made, None).html().encode()) < 3e6


def test_text_from_outside_is_escaped():
    evil = "</script><script>alert(1)</script><b>"
    page = Page(
        title=evil,
        lines=[evil],
        numbers=[(evil, evil)],
        sections=[
            Section(heading=evil, words=evil, pictures={"a": {"title": evil}}, table=Table(head=[evil], rows=[[evil]]))
        ],
    ).html()
    assert "<b>alert" not in page and "<script>alert" not in page
    start = page.index('type="application/json">') + len('type="application/json">')
    assert json.loads(page[start : page.index("</script>", start)]) == {"a": {"title": evil}}


def test_a_card_s_load_is_that_of_its_class_in_every_node():
    made = plan(Cluster.load("dgx-h100", nodes=2), Workload(Model.load("longvila-8b"), context_tokens=2**17))
    found = simulate(made.cluster, made.workload, made.strategy, made.placement, trace=True)
    loads = found.trace.card_loads
    assert sorted(loads) == sorted(
        f"slot {s} nic {c} {way}" for s in range(2) for c in range(8) for way in ("in", "out")
    )
    busiest = {link.name: link.utilisation for link in found.busiest_links if " nic " in link.name}
    assert busiest
    for name, share in busiest.items():
        assert loads[name] == share
    assert len(set(loads.values())) <= 2  # all cards do the same, one way and the other


def test_a_thinned_curve_keeps_its_peak():
    curve = [(float(i), float(i % 977)) for i in range(10 * MOST_SPANS)]
    few = thinned(curve)
    assert len(few) <= MOST_SPANS and max(held for _, held in few) == 976
    assert thinned(curve[:5]) == curve[:5]


def test_bars_are_joined_until_there_are_few_enough():
    spans = [("main", "a" if i % 2 else "b", i / 10, (i + 1) / 10) for i in range(10 * MOST_SPANS)]
    bars = merged(spans)
    assert 0 < len(bars) <= MOST_SPANS
    assert max(bar[3] for bar in bars) <= MOST_SPANS
    few = [("main", "a", 0.0, 1.0), ("main", "a", 1.0, 2.0), ("main", "b", 2.0, 3.0), ("other", "a", 0.0, 1.0)]
    assert merged(few) == [("main", "a", 0.0, 2.0), ("main", "b", 2.0, 3.0), ("other", "a", 0.0, 1.0)]


def test_no_two_names_of_a_legend_share_a_colour():
    """Vega's usual ten colours start again at the eleventh name; a step has more parts than that."""
    colours = {"tableau10": 10, "tableau20": 20}
    spans = [{"stream": "main", "what": f"part {i}", "start": i, "stop": i + 1, "text": ""} for i in range(13)]
    parts = [{"part": f"part {i}", "gib": 1.0, "text": ""} for i in range(13)]
    color = pictures.timeline(spans)["encoding"]["color"]
    assert colours[color["scale"]["scheme"]] >= 13
    color = pictures.memory(parts, 80.0)["layer"][0]["encoding"]["color"]
    assert colours[color["scale"]["scheme"]] >= 13
