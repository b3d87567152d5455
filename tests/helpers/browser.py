"""A real browser, for pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start an installed Chromium, or skip the test."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is absent: pip install playwright")
    path = next((path for path in BROWSERS if Path(path).exists()), None)
    if path is None:
        pytest.skip(f"no Chromium at {', '.join(BROWSERS)}")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
