"""The page of the API, in a browser that can reach nothing but the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.app.conftest import serving


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    with serving(api_keys="open-sesame") as client:
        yield client


def test_the_description_is_shown_and_tried_out(guarded: httpx.Client, browser: Any) -> None:
    own = str(guarded.base_url).rstrip("/")
    page = browser.new_page()
    page.set_default_timeout(20_000)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(f"{own}/docs")
        page.locator(".opblock").first.wait_for()
        assert page.locator(".opblock").count() > 30
        assert page.locator(".errors-wrapper").count() == 0
        page.get_by_role("button", name="Authorize").first.click()
        page.locator(".auth-container input").fill("open-sesame")
        page.locator(".auth-container button[type=submit]").click()
        page.locator(".btn-done").click()
        models = page.locator("#operations-models-list_models_v1_models_get")
        models.locator(".opblock-summary-control").click()
        models.get_by_role("button", name="Try it out").click()
        models.get_by_role("button", name="Execute").click()
        answer = models.locator(".live-responses-table")
        answer.wait_for()
        assert "200" in answer.inner_text() and "a model for tests" in answer.inner_text()
        assert not complaints
        assert all(url.startswith((own, "data:")) for url in asked), asked
    finally:
        page.close()
