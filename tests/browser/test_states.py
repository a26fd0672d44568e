"""What the page says and does when something is in its way, and what it offers besides playing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.conftest import serving
from tests.browser.conftest import PHONE, STEP_DELAY, Visit
from tests.browser.proxy import proxied
from tests.toy import ToyWorldModel
from worldcache.core import ActionSpace

pytestmark = pytest.mark.server

NETWORK = ("Failed to load resource: net::", "WebSocket connection to .* failed")
KEY = "open-sesame"


def newest_session(server: httpx.Client) -> dict[str, Any]:
    session: dict[str, Any] = server.get("/v1/sessions").raise_for_status().json()["data"][0]
    return session


def test_a_lost_connection_comes_back_by_itself(toy: httpx.Client, visit: Visit) -> None:
    assert toy.base_url.port
    with proxied(toy.base_url.port) as proxy, visit(proxy.url, expected=NETWORK) as player:
        player.play()
        before = newest_session(toy)
        assert proxy.cut() > 0
        player.wait_for("reconnecting")
        assert "Trying again" in player.text("#overlay-text")
        player.page.wait_for_timeout(500)  # what had arrived has been shown by then
        frozen = player.frame
        player.page.wait_for_timeout(500)
        assert player.phase == "reconnecting" and player.frame == frozen
        proxy.mend()
        player.wait_for("playing")
        player.wait_for_frame(frozen + 8)
        after = newest_session(toy)
        assert after["id"] == before["id"]


def test_two_lost_connections_come_back_level(toy: httpx.Client, visit: Visit) -> None:
    assert toy.base_url.port
    with proxied(toy.base_url.port) as proxy, visit(proxy.url, expected=NETWORK) as player:
        player.play()
        player.page.click("label:has(#compare)")
        player.wait_for_text("#psnr", "dB|identical")
        proxy.cut()
        player.wait_for("reconnecting")
        proxy.mend()
        player.wait_for("playing")
        player.wait_for_frame(player.frame + 8)


def test_a_session_that_is_over_can_be_begun_anew(toy: httpx.Client, visit: Visit) -> None:
    with visit(str(toy.base_url)) as player:
        player.play()
        session = newest_session(toy)
        toy.delete(f"/v1/sessions/{session['id']}")
        player.wait_for("expired")
        assert "over" in player.text("#overlay-title")
        player.page.click("#overlay-primary")
        player.wait_for("playing")
        player.wait_for_frame(4)


def test_a_busy_server_is_waited_for(visit: Visit) -> None:
    with serving(ToyWorldModel(delay=STEP_DELAY), max_sessions=1, session_ttl_seconds=4) as server:
        body = {"model": "toy", "observation": {"start": "centre"}}
        server.post("/v1/sessions", json=body).raise_for_status()  # is over in 4 s
        refused = ("the server responded with a status of 503",)
        with visit(str(server.base_url), expected=refused) as player:
            player.page.click("#overlay-primary")
            player.wait_for("busy")
            assert "busy" in player.text("#status-text").lower()
            player.wait_for_text("#overlay-text", "Trying again in [1-4] s")
            player.wait_for("playing")
            assert "not measured" in player.text("#notice")  # there is no room for a fork


def test_a_step_that_is_refused_is_waited_for(visit: Visit) -> None:
    with (
        serving(ToyWorldModel(delay=STEP_DELAY), max_active=1, max_queue=0) as server,
        visit(str(server.base_url)) as player,
    ):
        player.play()
        body = {
            "model": "toy",
            "observation": {"start": "centre"},
            "actions": ["NOOP"] * 200,
            "cache": "none",
        }
        deferred = {"Prefer": "respond-async"}
        while (answer := server.post("/v1/rollouts", json=body, headers=deferred)).status_code != 202:
            assert answer.status_code == 503
        player.wait_for("busy")
        player.wait_for_text("#overlay-text", "Trying again")
        server.delete(answer.headers["Location"])
        player.wait_for("playing")
        player.wait_for_frame(player.frame + 4)


def test_a_world_that_nobody_touches_pauses(visit: Visit) -> None:
    with (
        serving(ToyWorldModel(delay=STEP_DELAY), session_free_run_seconds=1) as server,
        visit(str(server.base_url)) as player,
    ):
        player.play()
        player.wait_for("paused")
        assert "nobody has pressed a key" in player.text("#status-text")
        player.page.keyboard.press("ArrowLeft")
        player.wait_for("playing")
        player.wait_for_frame(player.frame + 4)


def test_a_key_is_asked_for_and_kept_in_the_tab(visit: Visit) -> None:
    with serving(ToyWorldModel(delay=STEP_DELAY), api_keys=KEY) as server:
        refused = ("the server responded with a status of 401",)
        with visit(str(server.base_url), expected=refused) as player:
            player.wait_for("key")
            player.page.fill("#key", "wrong")
            player.page.press("#key", "Enter")
            player.wait_for_text("#key-error", "does not know this key")
            player.page.fill("#key", KEY)
            player.page.press("#key", "Enter")
            player.play()
            player.wait_for_frame(8)
            assert player.page.evaluate("localStorage.length") == 0
            assert KEY not in player.page.url and KEY not in player.page.context.cookies()
            player.page.reload()
            player.wait_for("empty")
            player.page.click("#forget-key")
            player.wait_for("key")
            assert player.page.evaluate("sessionStorage.length") == 0


def test_step_by_step_rewind_and_reset(toy: httpx.Client, visit: Visit) -> None:
    with visit(str(toy.base_url)) as player:
        player.play()
        player.page.select_option("#speed", "step")
        player.wait_for("ready")
        player.page.click("#reset")
        player.wait_for_text("#frame-index", "^\\D$")
        for count in range(1, 11):
            player.page.keyboard.press("ArrowLeft")
            player.wait_for_text("#frame-index", f"^{4 * count - 1}$")
        session = newest_session(toy)
        assert session["frames"] == 40
        player.page.click("#rewind")
        player.wait_for_text("#frame-index", "^23$")
        player.page.keyboard.press("Space")
        player.wait_for_text("#frame-index", "^27$")
        with player.page.expect_download() as saved:
            player.page.click("#save-actions")
        actions = json.loads(Path(saved.value.path()).read_text())["actions"]
        assert actions == ["MOVE_LEFT"] * 24 + ["ATTACK"] * 4


def test_a_clip_is_recorded_and_its_actions_make_it_again(toy: httpx.Client, visit: Visit) -> None:
    downloads: list[Any] = []
    with visit(str(toy.base_url)) as player:
        player.page.on("download", lambda one: downloads.append(one))
        player.play()
        player.page.click("#record")
        player.wait_for_frame(player.frame + 24)
        player.page.click("#pause")
        player.wait_for("paused")
        with player.page.expect_download():
            player.page.click("#record")
        player.page.wait_for_function("document.querySelector('#record').textContent === 'Record'")
        while len(downloads) < 2:
            player.page.wait_for_timeout(50)
        files = {Path(one.suggested_filename).suffix: Path(one.path()).read_bytes() for one in downloads}
    video, actions = files[".webm"], files[".json"]
    assert video[:4] == b"\x1a\x45\xdf\xa3" and len(video) > 5000
    body = json.loads(actions)
    assert 24 <= len(body["actions"])
    again = toy.post("/v1/rollouts", json={**body, "actions": body["actions"][:8]})
    assert again.status_code == 200, again.text


def test_what_is_wrong_is_said_at_its_field(toy: httpx.Client, visit: Visit) -> None:
    with visit(str(toy.base_url)) as player:
        player.play()
        player.page.select_option("#policy-name", "worldcache")
        player.page.fill("#parameter-max_skip", "0")
        player.page.press("#parameter-max_skip", "Enter")
        player.wait_for_text("#parameter-max_skip-error", "1")
        player.page.fill("#parameter-max_skip", "3")
        player.page.press("#parameter-max_skip", "Enter")
        player.wait_for_text("#parameter-max_skip-error", "^$")
        player.page.fill("#parameter-chaotic_quantile", "0.1")
        player.page.press("#parameter-chaotic_quantile", "Enter")
        player.wait_for_text("#policy", "chaotic_quantile must be|at least stable_quantile")
        player.page.select_option("#policy-name", "magcache")
        player.wait_for_text("#policy", "calibrat\\w+ .*")
        assert player.phase == "playing"


def test_a_phone_plays_by_touch(toy: httpx.Client, visit: Visit) -> None:
    with visit(str(toy.base_url), **PHONE) as player:
        player.wait_for("empty")
        player.page.tap("#overlay-primary")
        player.wait_for("playing")
        assert player.page.evaluate("document.documentElement.scrollWidth") == 390
        for name in ("MOVE_LEFT", "ATTACK"):
            button = player.page.locator(f"[data-action={name}]")
            box = button.bounding_box()
            assert box and box["width"] >= 44 and box["height"] >= 44
            player.page.select_option("#speed", "step") if name == "MOVE_LEFT" else None
            player.wait_for("ready")
            before = player.frame
            button.tap()
            player.wait_for_frame(before + 1)
        player.page.tap("label:has(#compare)")
        player.page.wait_for_selector("#rgb-b", state="visible")
        assert player.page.evaluate("document.documentElement.scrollWidth") == 390


def test_keys_alone_reach_everything(toy: httpx.Client, visit: Visit) -> None:
    with visit(str(toy.base_url)) as player:
        player.wait_for("empty")
        player.page.keyboard.press("Enter")  # Play has the focus
        player.wait_for("playing")
        player.page.evaluate("document.activeElement.blur()")
        wanted = set(
            player.page.evaluate(
                """() => [...document.querySelectorAll('button, select, input, a[href]')]
                  .filter((e) => e.checkVisibility() && !e.disabled && (e.type !== 'radio' || e.checked))
                  .map((e) => e.id || e.dataset.action || e.value || e.getAttribute('href'))"""
            )
        )
        reached: set[str] = set()
        for _ in range(len(wanted) + 10):
            player.page.keyboard.press("Tab")
            reached.add(
                player.page.evaluate(
                    """() => { const e = document.activeElement;
                      return e.id || e.dataset.action || e.value || e.getAttribute('href') }"""
                )
            )
        assert wanted <= reached
        assert {"model", "new-session", "pause", "compare", "MOVE_LEFT", "policy-name"} <= wanted
        assert (
            player.page.evaluate(
                """() => [...document.querySelectorAll('button, select, input, canvas[role=img]')]
              .filter((e) => e.checkVisibility() && !(e.labels?.length || e.getAttribute('aria-label')
                || e.textContent.trim())).length"""
            )
            == 0
        )


@dataclass(frozen=True)
class Throttle(ActionSpace):
    """Two numbers between -1 and 1."""

    def describe(self) -> dict[str, Any]:
        return {
            "type": "box",
            "shape": [2],
            "low": -1.0,
            "high": [1.0, 1.0],
            "names": ["throttle", "steering"],
        }

    def parse(self, actions: Sequence[object], *, param: str = "actions") -> tuple[Any, ...]:
        return tuple(actions)


class BoxToy(ToyWorldModel):
    """The toy with two numbers for an action, of which the first counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.info = replace(self.info, action_space=Throttle())

    def condition(self, context: Any, actions: Any, generator: Any) -> tuple[float, ...]:
        return tuple(float(action[0]) for action in actions)


def test_numbers_are_chosen_with_sliders(visit: Visit) -> None:
    with serving(BoxToy(delay=STEP_DELAY)) as server, visit(str(server.base_url)) as player:
        player.play()
        slider = player.page.get_by_label("Throttle")
        slider.fill("0.5")
        player.wait_for_frame(player.frame + 8)
        with player.page.expect_download() as saved:
            player.page.click("#save-actions")
        actions = json.loads(Path(saved.value.path()).read_text())["actions"]
        assert actions[0] == [0, 0] and actions[-1] == [0.5, 0]
