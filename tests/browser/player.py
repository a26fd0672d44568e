"""Somebody at the playground."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

WATCH_POLICY = """
addEventListener('securitypolicyviolation', (event) =>
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`));
addEventListener('unhandledrejection', (event) => console.error(`unhandled: ${event.reason}`));
"""


class Player:
    """The page, by what a person sees and does.

    Args:
        page: of Playwright, not yet at the playground.
        url: of the server.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        page.add_init_script(WATCH_POLICY)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def check_console(self, expected: Sequence[str]) -> None:
        wrong = [text for text in self.complaints if not any(re.search(one, text) for one in expected)]
        assert not wrong, wrong

    @property
    def phase(self) -> str:
        phase: str = self.page.evaluate("document.body.dataset.phase")
        return phase

    def wait_for(self, phase: str) -> None:
        self.page.wait_for_selector(f"body[data-phase={phase}]")

    def play(self) -> None:
        """One click."""
        self.wait_for("empty")
        self.page.click("#overlay-primary")
        self.wait_for("playing")
        self.wait_for_frame(0)

    @property
    def frame(self) -> int:
        """Index of the frame that is shown; -1 for none."""
        text = self.text("#frame-index")
        return int(text) if text.isdecimal() else -1

    def wait_for_frame(self, index: int) -> None:
        """Until this frame, or a later one, is shown."""
        self.page.wait_for_function(
            "index => parseInt(document.querySelector('#frame-index').textContent) >= index", arg=index
        )

    def wait_for_text(self, selector: str, pattern: str) -> None:
        self.page.wait_for_function(
            "([selector, pattern]) => new RegExp(pattern).test(document.querySelector(selector).textContent)",
            arg=[selector, pattern],
        )

    def text(self, selector: str) -> str:
        text: str = self.page.inner_text(selector)
        return text

    def picture(self, canvas: str) -> str:
        """What is drawn on a canvas."""
        url: str = self.page.evaluate("id => document.getElementById(id).toDataURL()", canvas)
        return url

    def number(self, selector: str) -> float:
        """The first number in an element's text."""
        found = re.search(r"[\d.]+", self.text(selector))
        assert found, self.text(selector)
        return float(found.group())
