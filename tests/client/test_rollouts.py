"""Rollouts, models and policies through both clients, against a running server."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import serving
from tests.client.conftest import FIELDS, LONG, Hourglass, Kind, statuses
from tests.toy import ToyWorldModel
from worldcache.client import (
    AsyncClient,
    BadRequest,
    Client,
    Conflict,
    DeadlineError,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidInput,
    NotFound,
    RolloutCancelled,
    RolloutFailed,
    ServerBusy,
    Unauthorized,
    WaitedTooLong,
)

RUNNING = {
    "id": "r",
    "status": "running",
    "model": "m",
    "created_at": 0,
    "seed": 0,
    "frames": 1,
    "frames_done": 0,
    "stats": {"policy": "none"},
}
"""A rollout as a scripted server describes it."""


def until(condition: Callable[[], bool]) -> bool:
    """True once the condition holds."""
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_rollout_is_waited_for(client: Any, server: httpx.Client) -> None:
    rollout = client.rollouts.create(**FIELDS, cache="fast", priority="interactive", metadata={"run": "7"})
    raw = server.get(f"/v1/rollouts/{rollout.id}").json()
    assert (rollout.status, rollout.live, rollout.seed, rollout.metadata) == (
        "succeeded",
        False,
        3,
        {"run": "7"},
    )
    assert (rollout.num_frames, rollout.frames_done, rollout.error) == (6, 6, None)
    assert rollout.stats.policy == "interval"
    assert rollout.stats.skip_ratio == raw["stats"]["skip_ratio"] > 0
    assert [chunk.decisions for chunk in rollout.stats.chunks] == ["F....F...."] * 2
    assert rollout.artifacts == raw["artifacts"]


def test_frames_are_fetched_when_they_are_asked_for(client: Any, server: httpx.Client) -> None:
    rollout = client.rollouts.create(**FIELDS)
    arrays = np.load(io.BytesIO(server.get(f"/v1/rollouts/{rollout.id}/frames.npz").content))
    frames = rollout.frames()
    assert (frames["rgb"].dtype, frames["rgb"].shape) == (np.uint8, (6, 48, 64, 3))
    assert (frames["depth"].dtype, frames["depth"].shape) == (np.float32, (6, 48, 64))
    assert set(frames) == set(arrays.files)
    for name in frames:
        assert np.array_equal(frames[name], arrays[name])
    rollout.delete()
    assert rollout.frames() is frames
    with pytest.raises(NotFound):
        client.rollouts.npz(rollout.id)


def test_files_are_saved_by_their_ending(client: Any, tmp_path: Path) -> None:
    rollout = client.rollouts.create(**FIELDS, output={"format": "none"})
    assert rollout.save(tmp_path / "a.mp4", modality="depth") == (tmp_path / "a.mp4",)
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
    rollout.save(str(tmp_path / "a.webp"))
    assert Image.open(tmp_path / "a.webp").n_frames >= 1  # type: ignore[attr-defined]
    rollout.save(tmp_path / "a.NPZ")
    rollout.save(tmp_path / "a.npz")
    assert np.array_equal(np.load(tmp_path / "a.npz")["rgb"], rollout.frames()["rgb"])
    pictures = rollout.save(tmp_path / "a.png")
    assert [path.name for path in pictures] == [f"a-00{i}.png" for i in range(6)]
    assert np.array_equal([np.asarray(Image.open(path)) for path in pictures], rollout.frames()["rgb"])
    assert Image.open(rollout.save(tmp_path / "a.jpg")[5]).format == "JPEG"
    single = client.rollouts.create(**{**FIELDS, "actions": [0]})
    assert single.save(tmp_path / "b.png") == (tmp_path / "b.png",)
    for name, modality in (("a.gif", None), ("a", None), ("a.npz", "rgb")):
        with pytest.raises(InvalidInput):
            rollout.save(tmp_path / name, modality=modality)


def test_observations_may_be_arrays(client: Any) -> None:
    fields = {**FIELDS, "start": None}
    frames = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), np.uint8)
    depth = np.ones((2, 48, 64))
    assert client.rollouts.create(**fields, frames=frames, depth=depth).status == "succeeded"
    assert client.rollouts.create(**fields, frames=frames[0]).status == "succeeded"
    with pytest.raises(BadRequest) as caught:
        client.rollouts.create(**fields, frames=frames, depth=depth[:1])
    assert caught.value.param == "observation"


def test_refusals_name_the_field(client: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        client.rollouts.create(**{**FIELDS, "actions": ["NOOP", "JUMP"]})
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        422,
        "unknown_action",
        "actions.1",
    )
    assert caught.value.request_id
    with pytest.raises(NotFound):
        client.rollouts.get("ro_no")
    with pytest.raises(TypeError):
        client.rollouts.create(**FIELDS, speed=3)


def test_a_key_stands_for_one_rollout(client: Any, kind: Kind) -> None:
    key = f"key-{kind.asynchronous}"
    first, again = (client.rollouts.create(**FIELDS, idempotency_key=key) for _ in range(2))
    assert first.id == again.id
    with pytest.raises(Conflict) as caught:
        client.rollouts.create(**{**FIELDS, "seed": 4}, idempotency_key=key)
    assert caught.value.code == "idempotency_key_reused"
    assert client.rollouts.create(**FIELDS).id != client.rollouts.create(**FIELDS).id


def test_lists_go_through_all_pages(kind: Kind) -> None:
    with serving() as server, kind.connect(str(server.base_url)) as client:
        made = [client.rollouts.create(**{**FIELDS, "actions": [0]}).id for _ in range(5)]
        assert [rollout.id for rollout in client.rollouts.list()] == made[::-1]
        assert [rollout.id for rollout in client.rollouts.list(limit=3)] == made[:1:-1]
        assert list(client.rollouts.list(limit=0)) == list(client.rollouts.list(status="failed")) == []
        assert len(list(client.rollouts.list(status="succeeded", limit=100))) == 5


def test_pages_are_requested_as_they_are_needed(kind: Kind) -> None:
    asked: list[dict[str, str]] = []

    def pages(request: httpx.Request) -> httpx.Response:
        params = dict(request.url.params)
        asked.append(params)
        begin = int(params.get("after", "0"))
        count = min(int(params["limit"]), 250 - begin)
        items = [{**RUNNING, "id": str(begin + i + 1)} for i in range(count)]
        return httpx.Response(200, json={"data": items, "has_more": begin + len(items) < 250})

    with kind.connect(transport=httpx.MockTransport(pages)) as client:
        listed = client.rollouts.list(status="queued")
        assert [next(listed).id for _ in range(100)][-1] == "100" and len(asked) == 1
        assert [rollout.id for rollout in listed] == [str(i) for i in range(101, 251)]
        assert [params.get("after") for params in asked] == [None, "100", "200"]
        assert {params["status"] for params in asked} == {"queued"}
        asked.clear()
        assert len(list(client.rollouts.list(limit=120))) == 120
        assert [params["limit"] for params in asked] == ["100", "20"]


def test_waiting_can_come_later(client: Any) -> None:
    begun = client.rollouts.create(**FIELDS, wait=False)
    assert begun.status in ("queued", "running") and begun.live
    done = begun.wait(timeout=30)
    assert (done.id, done.status) == (begun.id, "succeeded")
    assert begun.refresh().status == "succeeded"
    assert done.frames()["rgb"].shape == (6, 48, 64, 3)
    assert [event.id for event in begun.events(after=7)] == [8, 9, 10]


def test_cancelling_and_removing(kind: Kind) -> None:
    with serving(ToyWorldModel(delay=0.01)) as server, kind.connect(str(server.base_url)) as client:
        begun = client.rollouts.create(**LONG, wait=False)
        with pytest.raises(WaitedTooLong):
            begun.wait(timeout=0.2)
        cancelled = begun.cancel()
        assert (cancelled.id, cancelled.status) == (begun.id, "cancelled")
        assert client.rollouts.cancel(begun.id).status == "cancelled"  # and it is still there
        with pytest.raises(RolloutCancelled) as caught:
            begun.wait()
        assert caught.value.rollout is not None and caught.value.rollout.id == begun.id
        with pytest.raises(Conflict):
            begun.frames()
        done = client.rollouts.create(**FIELDS)
        assert done.cancel().status == "succeeded"
        live = client.rollouts.create(**LONG, wait=False)
        for rollout in (begun, done, live):
            rollout.delete()
            with pytest.raises(NotFound):
                rollout.refresh()
        assert statuses(server) == []


def test_one_that_ends_just_before_it_is_cancelled_is_gone(kind: Kind) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=RUNNING if request.method == "GET" else {"deleted": True})

    with kind.connect(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(NotFound, match="ended by itself"):
            client.rollouts.cancel("r")


def fail_late(rows: Sequence[Any]) -> None:
    if rows[0].condition[0] == 3:
        raise RuntimeError("broken")


def test_failures_come_with_the_rollout(kind: Kind) -> None:
    failing = {**FIELDS, "actions": ["NOOP"] * 4 + ["ATTACK"]}
    with (
        serving(ToyWorldModel(before_evaluate=fail_late)) as server,
        kind.connect(str(server.base_url)) as client,
    ):
        with pytest.raises(RolloutFailed) as waited:
            client.rollouts.create(**failing)
        assert waited.value.code == "rollout_failed"
        with pytest.raises(RolloutFailed) as later:
            client.rollouts.create(**failing, wait=False).wait()
        with pytest.raises(RolloutFailed) as streamed:
            list(client.rollouts.stream(**failing))
        for caught in (later, streamed):
            assert caught.value.rollout is not None
            assert (caught.value.rollout.status, caught.value.rollout.frames_done) == ("failed", 4)
        assert statuses(server) == ["failed"] * 3


def test_one_cancelled_by_somebody_else(kind: Kind) -> None:
    with (
        serving(ToyWorldModel(delay=0.01)) as server,
        kind.connect(str(server.base_url)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(lambda: client.rollouts.create(**LONG))
        assert until(lambda: statuses(server) == ["running"])
        server.delete(f"/v1/rollouts/{server.get('/v1/rollouts').json()['data'][0]['id']}")
        error = waiting.exception(30)
        assert isinstance(error, RolloutCancelled) and error.code == "rollout_cancelled"


def test_deadlines(kind: Kind) -> None:
    with (
        serving(ToyWorldModel(delay=0.01)) as server,
        kind.connect(str(server.base_url)) as client,
    ):
        rollout = client.rollouts.create(**FIELDS, deadline_ms=60_000)
        assert rollout.stats.deadline is not None
        assert (rollout.stats.deadline.ms, rollout.stats.deadline.met) == (60_000, True)
        with pytest.raises(DeadlineUnreachable) as refused:
            client.rollouts.create(**FIELDS, deadline_ms=1)
        assert isinstance(refused.value, DeadlineError) and refused.value.code == "deadline_unreachable"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_missed_deadline(kind: Kind, streamed: bool) -> None:
    with serving(ToyWorldModel(delay=0.02)) as server, kind.connect(str(server.base_url)) as client:
        fields = {**LONG, "cache": None, "deadline_ms": 500}  # nothing was measured, so it is tried
        with pytest.raises(DeadlineExceeded) as caught:
            list(client.rollouts.stream(**fields)) if streamed else client.rollouts.create(**fields)
        assert isinstance(caught.value, DeadlineError) and isinstance(caught.value, RolloutCancelled)
        if streamed:
            assert caught.value.rollout is not None and caught.value.rollout.status == "cancelled"


def test_a_full_line_is_waited_for_and_then_refused(kind: Kind) -> None:
    with serving(ToyWorldModel(delay=0.01), max_active=1, max_queue=1) as server:
        hourglass = Hourglass()
        with kind.connect(str(server.base_url), hourglass=hourglass) as client:
            begun = [client.rollouts.create(**LONG, wait=False)]
            assert until(lambda: statuses(server) == ["running"])
            begun.append(client.rollouts.create(**LONG, wait=False))
            with pytest.raises(ServerBusy) as caught:
                client.rollouts.create(**FIELDS)
            assert caught.value.code == "queue_full" and caught.value.retry_after
            assert all(pause > 1 for pause in hourglass.pauses)
            for rollout in begun:
                rollout.cancel()
            assert client.rollouts.create(**FIELDS).status == "succeeded"


def test_api_keys(kind: Kind) -> None:
    with serving(api_keys="alpha") as server:
        with kind.connect(str(server.base_url), api_key="alpha") as client:
            assert client.rollouts.create(**FIELDS).status == "succeeded"
        with kind.connect(str(server.base_url)) as client, pytest.raises(Unauthorized):
            client.rollouts.create(**FIELDS)
        with kind.connect(str(server.base_url), api_key="beta") as client, pytest.raises(Unauthorized):
            list(client.rollouts.stream(**FIELDS))


def test_models_and_policies_are_described(client: Any) -> None:
    (model,) = client.models.list()
    assert client.models.get("toy") == model
    assert (model.id, model.status, model.fps, model.starts) == ("toy", "warm", 17.5, ("centre",))
    assert model.action_space.names == ("NOOP", "MOVE_LEFT", "MOVE_RIGHT", "ATTACK")
    assert (model.resolution.height, model.resolution.width) == (48, 64)
    assert [modality.name for modality in model.modalities] == ["rgb", "depth"]
    assert model.presets["fast"] == {"policy": "interval", "interval": 5}
    policies = {policy.name: policy for policy in client.policies.list()}
    assert policies["worldcache"].plans_ahead
    assert policies["worldcache"].parameters["properties"]["max_skip"]["default"] == 6
    with pytest.raises(NotFound) as caught:
        client.models.get("no")
    assert caught.value.code == "unknown_model"


def test_models_are_loaded_and_unloaded(kind: Kind) -> None:
    with serving() as server, kind.connect(str(server.base_url)) as client:
        assert client.models.unload("toy").status == "cold"
        assert client.models.load("toy").status in ("loading", "warm")
        assert until(lambda: client.models.get("toy").status == "warm")


def test_an_interrupted_wait_cancels_the_rollout() -> None:
    with serving(ToyWorldModel(delay=0.01)) as server:

        async def give_up() -> None:
            async with AsyncClient(str(server.base_url)) as client:
                await asyncio.wait_for(client.rollouts.create(**LONG), 0.5)

        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        assert until(lambda: statuses(server) == ["cancelled"])


def test_many_threads_share_a_client(server: httpx.Client) -> None:
    with Client(str(server.base_url)) as client, ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda seed: client.rollouts.create(**{**FIELDS, "seed": seed}), range(8)))
        assert [rollout.seed for rollout in made] == list(range(8))
        for frames in pool.map(lambda rollout: rollout.frames(), made):
            assert frames["rgb"].shape == (6, 48, 64, 3)
