"""Screenshots for a person to look at, and what a program can see of a page's layout."""

import os
from pathlib import Path


def picture(page, name):
    """Keep a screenshot where SCREENSHOTS says."""
    if directory := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(directory) / f"{name}-{page.viewport_size['width']}.png", full_page=True)


def assert_nothing_sticks_out(page):
    """No element of the page's own part is wider than the window."""
    wider = page.evaluate(
        """() => [...document.querySelectorAll('main *')]
            .filter(element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
            .map(element => element.outerHTML.slice(0, 100))"""
    )
    assert wider == [], wider
