"""Debian's Chromium without a window, for the tests beside this file, and a report for it to open."""

import shutil
from pathlib import Path

import pytest

import harness.api as harness
from harness.results.outcome import Outcome
from tests.invented_records import DATA_SCALING, changed, grid

COMMANDS = ("chromium", "chromedriver")
QUIET = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync"
).split()
CLAIMS = {
    "sha256": "ab" * 32,
    "declared": "2026-01-01T00:00:00+00:00",
    "cells": 2,
    "cells_finished": 0,
    "claims": [
        {"name": "scarce", "gain": {"method": "kd", "teacher": "weak", "data_frac": 0.03}},
        {"name": "hurts", "gain": {"method": "kd", "teacher": "weak", "data_frac": 0.03}, "above": 0.5},
    ],
}


def pytest_collection_modifyitems(config, items):
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    reason = f"no {', '.join(missing)} here: apt-get install chromium chromium-driver"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if missing or config.option.markexpr != "browser":
                item.add_marker(pytest.mark.skip(reason=reason if missing else "by `make test-browser`"))


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The page of two grids, with claims, lost cells, warnings and long tables."""
    root = tmp_path_factory.mktemp("report")
    for name, seeds in (("first", 3), ("a_second_grid_with_a_rather_long_name", 1)):
        records, load_items = grid(DATA_SCALING, seeds=seeds, worlds=(0, 1))
        lost = {"status": "failed", "reason": "out of memory", "failure_class": "oom", "scores": [], "items": {}}
        records[1] = changed(records[1], **lost)
        records[4] = changed(records[4], warnings=["answers were cut off"])
        records = [changed(record, grid=name, artifact=None) for record in records]
        Outcome(name, records, CLAIMS, load_items).export(root / name)
    paths = harness.report(str(root / "first"), str(root / "a_second_grid_with_a_rather_long_name"), out=root / "out")
    return paths[0]


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser that notes every request and every word on its console."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (*QUIET, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, report):
    """Opens the report at a width in pixels, light or dark; returns the browser."""

    def open_at(width, scheme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what was before is not this page's
        browser.get(report.as_uri())
        return browser

    return open_at
