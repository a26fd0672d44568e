"""Playing the model that ships, as a person would, on a server process of its own."""

from __future__ import annotations

import math

import httpx
import pytest

from tests.browser.conftest import Visit

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_one_click_plays_and_ten_actions_show(world: str, visit: Visit) -> None:
    with visit(world) as player:
        player.play()
        assert player.page.is_hidden("#overlay")
        seen = {player.picture("rgb-a")}
        depths = {player.picture("depth")}
        for key in ("ArrowLeft", "ArrowRight", "d", "a", "Space", "1", "2", "3", "4", "ArrowLeft"):
            before = player.frame
            player.page.keyboard.down(key)
            player.wait_for_frame(before + 2)
            player.page.keyboard.up(key)
            seen.add(player.picture("rgb-a"))
            depths.add(player.picture("depth"))
        assert len(seen) == 11 and len(depths) > 5
        player.wait_for_text("#ratio", "\\d")
        ratio, cached, uncached = player.page.evaluate(
            "['ratio', 'fps', 'fps-uncached'].map((id) => parseFloat(document.getElementById(id).innerText))"
        )
        assert ratio == pytest.approx(cached / uncached, rel=0.1, abs=0.06) and uncached > 0
        assert player.number("#skip") == 86
        assert player.number("#game-fps") == 17.5
        assert player.number("#latency") > 0
        label = player.page.get_attribute("#strip-a", "aria-label")
        assert "7 of 50 steps computed: F..............F...........F" in label


def test_the_policy_changes_while_playing(world: str, visit: Visit) -> None:
    with visit(world) as player:
        player.play()
        assert "this policy has none" in player.text("#classes-note")
        player.page.select_option("#policy-name", "worldcache")
        player.page.check("#classes")
        player.wait_for_text("#classes-note", "over the frame")
        assert player.phase == "playing"
        player.page.wait_for_function(
            """() => {
              const { width, height } = document.getElementById('classes-a');
              return width > 1 && height > 1;
            }"""
        )
        colours = player.page.evaluate(
            """() => {
              const canvas = document.getElementById('classes-a');
              const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
              const pixels = Array.from({ length: data.length / 4 }, (_, i) =>
                data.slice(4 * i, 4 * i + 4).join());
              return [...new Set(pixels)];
            }"""
        )
        assert set(colours) <= {"46,204,113,255", "255,193,69,255", "255,77,90,255"} and colours
        (session,) = _sessions(world)
        assert session["policy"] == "worldcache"


def test_two_policies_are_compared_in_lock_step(world: str, visit: Visit) -> None:
    with visit(world) as player:
        player.play()
        player.page.keyboard.down("ArrowLeft")
        player.page.locator("label", has=player.page.locator("#compare")).click()
        player.page.wait_for_selector("#rgb-b", state="visible")
        player.wait_for_text("#psnr", "dB")
        start = player.frame
        player.wait_for_frame(start + 4)
        assert player.text("#caption-b") == "Uncached"
        assert player.page.is_visible("#rgb-a") and player.page.is_hidden("#depth")
        decibels = _measured(player)
        assert math.isfinite(decibels) and 30 < decibels < 90
        first, second = _sessions(world)
        assert first["parent"] == second["id"] and first["seed"] == second["seed"]
        player.wait_for_text("#figure-b", "50 of 50 steps computed")
        player.page.click("label:has(#compare)")
        player.page.wait_for_selector("#depth", state="visible")
        player.wait_for_frame(player.frame + 8)
    assert not _sessions(world)  # who leaves closes what was opened


def _sessions(url: str) -> list[dict]:
    sessions: list[dict] = httpx.get(f"{url}/v1/sessions").json()["data"]
    return sessions


def _measured(player) -> float:  # type: ignore[no-untyped-def]
    """PSNR of the two pictures on the page, worked out from their pixels here."""
    shown, error = player.page.evaluate(
        """() => {
          const [a, b] = ['rgb-a', 'rgb-b'].map((id) => {
            const canvas = document.getElementById(id);
            return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          });
          const colours = [...a.keys()].filter((i) => i % 4 < 3);
          const sum = colours.reduce((sum, i) => sum + (a[i] - b[i]) ** 2, 0);
          return [parseFloat(document.getElementById('psnr').dataset.db), sum / colours.length];
        }"""
    )
    decibels: float = 10 * math.log10(255**2 / error)
    assert shown == pytest.approx(decibels, abs=0.01)
    return decibels
