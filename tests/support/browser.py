"""A real browser: Debian's Chromium, driven by Playwright."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync"]


@contextmanager
def browser_page(user: str, password: str, width: int = 1280, javascript: bool = True) -> Iterator[Page]:
    """A page of a browser that is logged in by HTTP basic authentication."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_FLAGS)
        try:
            context = browser.new_context(
                http_credentials={"username": user, "password": password},
                viewport={"width": width, "height": 900},
                java_script_enabled=javascript,
            )
            yield context.new_page()
        finally:
            browser.close()
