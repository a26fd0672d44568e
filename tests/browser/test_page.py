"""The page's files as they are served: no browser needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.routes.playground import STATIC
from tests.app.conftest import serving

FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    """A server that asks for keys, though not for its page."""
    with serving(api_keys="open-sesame") as client:
        yield client


def test_the_page_forbids_what_it_does_not_need(guarded: httpx.Client) -> None:
    response = guarded.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy)
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} <= set(policy)
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_served_and_asked_for_again_by_its_tag(guarded: httpx.Client, path: Path) -> None:
    url = f"/static/{path.relative_to(STATIC)}"
    response = guarded.get(url)
    assert response.content == path.read_bytes()
    assert response.headers["cache-control"] == "no-cache"
    again = guarded.get(url, headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert again.headers["content-security-policy"] == response.headers["content-security-policy"]
    assert guarded.head(url).headers["content-length"] == str(len(response.content))


@pytest.mark.parametrize("path", ["none.js", "../main.py", "%2e%2e/main.py", "%2e%2e%2fmain.py", "js", ""])
def test_nothing_else_is_served(guarded: httpx.Client, path: str) -> None:
    response = guarded.get(f"/static/{path}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere_or_is_written_inline(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg"}
    if path.suffix == ".html":
        assert not re.search(r"<style|<script(?![^>]*\ssrc=)|\s(style|on[a-z]+)=", text)
    if path.suffix == ".js":
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", text)


def test_every_id_that_a_script_asks_for_is_on_the_page() -> None:
    page = (STATIC / "index.html").read_text()
    there = re.findall(r'\sid="([^"]+)"', page)
    assert len(there) == len(set(there))
    for path in STATIC.rglob("*.js"):
        assert set(re.findall(r"byId\('([^']+)'\)", path.read_text())) <= set(there), path.name
