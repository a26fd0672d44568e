"""A real browser on the playground. Without Chromium these tests skip; in CI they fail instead."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import httpx
import pytest

from tests.app.conftest import serving
from tests.browser.player import Player
from tests.browser.process import server_process
from tests.toy import ToyWorldModel

DESK = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
STEP_DELAY = 0.002
"""Seconds a backbone call of the toy takes, so that its world does not rush."""

Visit = Callable[..., Any]


def lacking(what: str) -> NoReturn:
    """Skip; fail in CI, where nothing may be lacking."""
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    if importlib.util.find_spec("playwright") is None:
        lacking("playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        lacking("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Visit:
    """Open the playground; what its console complains about fails the test, unless it is ``expected``."""

    @contextmanager
    def opened(url: str, *, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Player]:
        context = browser.new_context(accept_downloads=True, **(DESK | options))
        context.set_default_timeout(20_000)
        player = Player(context.new_page(), url)
        try:
            player.page.goto(url)
            yield player
            player.check_console(expected)
        finally:
            context.close()

    return opened


@pytest.fixture(scope="package")
def world() -> Iterator[str]:
    """The model that ships, in a process of its own."""
    with server_process() as url:
        yield url


@pytest.fixture(scope="package")
def toy() -> Iterator[httpx.Client]:
    """A fast model, for what does not depend on one."""
    with serving(ToyWorldModel(delay=STEP_DELAY)) as client:
        yield client
