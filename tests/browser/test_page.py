"""The report in a browser: desktop and phone, light and dark, mouse and keyboard, with script and without."""

import json

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

DESKTOP, PHONE = 1280, 390
everywhere = pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (DESKTOP, PHONE) for s in ("light", "dark")])
# the contrast of every text that is shown with the background behind it, by WCAG 2.2's definition
CONTRAST = """
const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parts(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
    if (colour[3] > 0) throw new Error("a background is half transparent: " + e.outerHTML.slice(0, 80));
  }
  throw new Error("nothing is behind " + element.outerHTML.slice(0, 80));
};
const found = [];
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.textContent.trim());
  if (!own || ["SCRIPT", "STYLE"].includes(element.tagName) || !element.checkVisibility()) continue;
  const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
  const what = element.tagName + ": " + element.textContent.trim().slice(0, 40);
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), what]);
}
return found;
"""


def scores_of(browser):
    """The first grid's table of scores, and where its headings are."""
    table = browser.find_element(By.XPATH, "//table[caption[@id='first:scores']]")
    headings = [heading.text.strip() for heading in table.find_elements(By.CSS_SELECTOR, "thead th")]
    return table, headings


def column(table, number):
    """The numbers of one column as they stand on the page, empty cells as null."""
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    cells = [row.find_elements(By.CSS_SELECTOR, "th, td")[number] for row in rows]
    values = [cell.get_attribute("data-value") for cell in cells]
    return [None if value is None else float(value) for value in values]


@everywhere
def test_it_opens_without_an_error_and_asks_nobody_for_anything(opened, report, width, scheme):
    browser = opened(width, scheme)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    loaded = browser.execute_script("return [...document.images].map((i) => i.complete && i.naturalWidth)")
    assert len(loaded) > 3 and all(width > 300 for width in loaded)


@everywhere
def test_the_page_itself_never_scrolls_sideways(opened, width, scheme):
    browser = opened(width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = "return [...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert browser.execute_script(wide) > 0  # tables do, in boxes of their own
    reached = "return [...document.querySelectorAll('.scroll')].every((one) => one.tabIndex === 0)"
    assert browser.execute_script(reached)


@everywhere
def test_every_text_stands_out_from_its_background(opened, width, scheme):
    browser = opened(width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = browser.execute_script(CONTRAST)
    assert len(found) > 300
    assert [(round(ratio, 2), what) for ratio, what in found if ratio < 4.5] == []


def test_light_and_dark_are_different_papers(opened):
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened(DESKTOP, "light").execute_script(paper)
    assert light != opened(DESKTOP, "dark").execute_script(paper)


@pytest.mark.parametrize("by", ["click", "keyboard"])
def test_a_heading_sorts_its_table_up_and_down_with_empty_cells_last(opened, by):
    browser = opened(DESKTOP)
    table, headings = scores_of(browser)
    number = next(n for n, text in enumerate(headings) if text.startswith("gain over SFT"))
    heading = table.find_elements(By.CSS_SELECTOR, "thead th")[number]
    button = heading.find_element(By.TAG_NAME, "button")
    before = column(table, number)
    known = sorted(value for value in before if value is not None)
    empty = [None] * (len(before) - len(known))
    assert len(known) > 10 and empty and before != known + empty
    for order, expected in (("ascending", known), ("descending", known[::-1])):
        if by == "click":
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
        else:
            button.send_keys(Keys.ENTER)
        assert heading.get_attribute("aria-sort") == order
        assert column(table, number) == expected + empty
    assert len(table.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1


def test_a_table_is_filtered_by_words_and_says_how_many_rows_are_left(opened):
    browser = opened(PHONE)
    table, _ = scores_of(browser)
    box = table.find_element(By.XPATH, "../preceding-sibling::*[1]")
    field = box.find_element(By.TAG_NAME, "input")
    assert field.accessible_name == "Show rows with"
    field.send_keys("logit_kd STRONG")
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    shown = [row.text for row in rows if row.is_displayed()]
    assert shown and all("logit_kd" in text and "strong" in text for text in shown)
    assert box.find_element(By.CSS_SELECTOR, "[role=status]").text == f"{len(shown)} of {len(rows)} rows"
    field.send_keys(*[Keys.BACKSPACE] * len("logit_kd STRONG"))
    assert all(row.is_displayed() for row in rows)


def test_the_first_key_leads_past_the_contents(opened):
    browser = opened(DESKTOP)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the content" and skip.location["x"] >= 0
    skip.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "page:content"


def test_everything_a_screen_reader_meets_has_a_name(opened):
    browser = opened(DESKTOP)
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("image", "button", "link", "table", "region", "searchbox", "navigation", "columnheader"):
        assert named[role] and all(named[role]), role
    assert len(named["image"]) > 3 and len(named["main"]) == len(named["banner"]) == 1


def test_without_script_it_reads_the_same(opened):
    with_script = opened(DESKTOP)
    words = with_script.execute_script("return document.querySelector('main').textContent.replace(/\\s+/g, ' ')")
    with_script.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser = opened(DESKTOP)
        assert not browser.find_elements(By.TAG_NAME, "button") and not browser.find_elements(By.TAG_NAME, "input")
        plain = browser.find_element(By.TAG_NAME, "main").get_attribute("textContent")
        assert words.replace("Show rows with ", "").split() == plain.split()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
