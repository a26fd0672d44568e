"""Several models in one process: loaded, waited for, placed, unloaded, evicted."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

import worldcache
from app.catalogue import ModelSource, read_catalogue
from app.dispatcher import InProcessDispatcher
from app.errors import ApiError
from app.metrics import Metrics
from app.models import ModelHost
from app.settings import Settings
from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel
from worldcache.engine.engine import Limits
from worldcache.errors import InvalidInput

PRETRAINED = Path(worldcache.__file__).parent / "models" / "doom" / "pretrained"


@dataclass
class SizedToy(ToyWorldModel):
    """A toy whose weights take ``size`` bytes."""

    size: int = 0

    @property
    def memory_bytes(self) -> int:
        return self.size


@dataclass
class Shelf:
    """Makes toys, and tells what became of them.

    Attributes:
        open: loading waits for it.
        errors: raised by the next loads instead.
        loads: how many loads began.
        made: weak references to the toys.
    """

    size: int = 0
    delay: float = 0.0
    open: threading.Event = field(default_factory=threading.Event)
    errors: list[Exception] = field(default_factory=list)
    loads: int = 0
    made: list[weakref.ref[ToyWorldModel]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()

    @property
    def source(self) -> ModelSource:
        return ModelSource(self._load, self.size)

    def _load(self, device: str) -> ToyWorldModel:
        self.loads += 1
        assert self.open.wait(30)
        if self.errors:
            raise self.errors.pop()
        toy = SizedToy(size=self.size, delay=self.delay)
        self.made.append(weakref.ref(toy))
        return toy


def shelves(**sizes: int) -> dict[str, Shelf]:
    return {name: Shelf(size) for name, size in sizes.items()}


def hosted(parts: dict[str, Shelf], **settings: Any) -> Any:
    sources = {name: shelf.source for name, shelf in parts.items()}
    return serving(models_by_name=sources, **settings)


def status(client: httpx.Client, model: str) -> str:
    return str(client.get(f"/v1/models/{model}").json()["status"])


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def roll(client: httpx.Client, model: str, **changes: Any) -> httpx.Response:
    return client.post("/v1/rollouts", json=rollout_body(model=model, **changes))


def error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_each_model_answers_under_its_own_name() -> None:
    with hosted(shelves(a=0, b=0)) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["a", "b"]
        for name in ("a", "b"):
            assert roll(client, name).json()["model"] == name
            assert f'worldcache_backbone_seconds_count{{model="{name}"}}' in client.get("/metrics").text
        assert error(roll(client, "c")) == (422, "unknown_model")
        checks = client.get("/readyz").json()["checks"]
        assert (checks["model:a"], checks["model:b"]) == ("warm", "warm")


def test_a_cold_model_is_loaded_once_for_all_who_wait() -> None:
    parts = shelves(a=0, b=0)
    parts["b"].open.clear()
    with hosted(parts, preload="a") as client, ThreadPoolExecutor(4) as pool:
        assert client.get("/readyz").status_code == 200
        assert (status(client, "b"), parts["b"].loads) == ("cold", 0)
        waiting = [pool.submit(roll, client, "b") for _ in range(4)]
        until(lambda: parts["b"].loads == 1)
        assert status(client, "b") == "loading"
        parts["b"].open.set()
        assert [future.result(30).status_code for future in waiting] == [200] * 4
        assert parts["b"].loads == 1
        assert 'worldcache_model_load_seconds_count{model="b"} 1.0' in client.get("/metrics").text


def test_a_request_waits_no_longer_than_the_setting() -> None:
    parts = shelves(a=0)
    parts["a"].open.clear()
    with hosted(parts, model_wait_seconds=0.1, wait_until_ready=False) as client:
        response = roll(client, "a")
        assert error(response) == (503, "model_loading")
        assert int(response.headers["Retry-After"]) >= 1
        assert client.get("/readyz").json()["checks"]["model:a"] == "loading"
        assert error(client.post("/v1/models/a/unload")) == (409, "model_loading")
        parts["a"].open.set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert roll(client, "a").status_code == 200


def test_a_client_that_leaves_does_not_stop_the_loading() -> None:
    parts = shelves(a=0)
    parts["a"].open.clear()
    with hosted(parts, preload="none") as client:
        with httpx.Client(base_url=client.base_url, timeout=0.25) as impatient:
            with pytest.raises(httpx.ReadTimeout):
                roll(impatient, "a")
        parts["a"].open.set()
        until(lambda: status(client, "a") == "warm")
        assert parts["a"].loads == 1


def test_a_model_that_failed_is_tried_again_by_the_operator() -> None:
    parts = shelves(a=0)
    parts["a"].errors.append(OSError("/secret/path is missing"))
    with hosted(parts, wait_until_ready=False) as client:
        until(lambda: status(client, "a") == "failed")
        model = client.get("/v1/models/a").json()
        assert model["reason"] == "OSError"
        assert client.get("/readyz").status_code == 503
        response = roll(client, "a")
        assert error(response) == (503, "model_failed")
        assert int(response.headers["Retry-After"]) > 0
        assert 'worldcache_model_load_failures_total{model="a"} 1.0' in client.get("/metrics").text
        assert client.post("/v1/models/a/load").status_code == 202
        until(lambda: client.get("/readyz").status_code == 200)
        assert "reason" not in client.get("/v1/models/a").json()
        assert roll(client, "a").status_code == 200


def test_operators_load_and_unload() -> None:
    parts = shelves(a=10)
    with hosted(parts, preload="none") as client:
        assert error(client.post("/v1/models/b/load")) == (404, "unknown_model")
        assert error(client.post("/v1/models/b/unload")) == (404, "unknown_model")
        cold = client.post("/v1/models/a/unload")
        assert (cold.status_code, cold.json()["status"]) == (200, "cold")
        parts["a"].open.clear()
        for _ in range(2):
            response = client.post("/v1/models/a/load")
            assert (response.status_code, response.json()["status"]) == (202, "loading")
        parts["a"].open.set()
        until(lambda: status(client, "a") == "warm")
        response = client.post("/v1/models/a/load")
        assert (response.status_code, response.json()["status"], parts["a"].loads) == (200, "warm", 1)
        assert 'worldcache_model_memory_bytes{model="a"} 10.0' in client.get("/metrics").text
        response = client.post("/v1/models/a/unload")
        assert (response.status_code, response.json()["status"]) == (200, "cold")
        text = client.get("/metrics").text
        assert 'worldcache_model_memory_bytes{model="a"} 0.0' in text
        assert 'worldcache_model_ready{model="a"} 0.0' in text
        assert client.get("/readyz").status_code == 200
        gc.collect()
        assert parts["a"].made[0]() is None


def test_a_model_in_use_is_not_unloaded() -> None:
    parts = {"a": Shelf(delay=0.02)}
    with hosted(parts) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(roll, client, "a", cache="none", actions=["NOOP"] * 16)
        until(lambda: client.get("/v1/models/a").json()["rollouts"] == 1)
        assert error(client.post("/v1/models/a/unload")) == (409, "model_in_use")
        assert slow.result(30).status_code == 200
        until(lambda: client.get("/v1/models/a").json()["rollouts"] == 0)
        assert client.post("/v1/models/a/unload").status_code == 200


def test_what_was_made_outlives_the_model() -> None:
    with hosted(shelves(a=0)) as client:
        warm = client.get("/v1/models/a").json()
        made = roll(client, "a").json()
        client.post("/v1/models/a/unload")
        assert client.get("/v1/models/a").json() == {**warm, "status": "cold"}
        assert client.get(f"/v1/rollouts/{made['id']}").json() == made
        assert client.get("/v1/rollouts").json()["data"] == [made]
        for part in ("video", "frames/0?modality=depth", "frames.npz"):
            assert client.get(f"/v1/rollouts/{made['id']}/{part}").status_code == 200
        assert roll(client, "a").status_code == 200


def test_the_model_idle_for_longest_makes_room() -> None:
    parts = shelves(a=40, b=40, c=40)
    with hosted(parts, preload="a,b", model_memory_bytes=100) as client:
        assert roll(client, "a").status_code == 200
        assert roll(client, "c").status_code == 200
        assert [status(client, name) for name in parts] == ["warm", "cold", "warm"]
        text = client.get("/metrics").text
        assert 'worldcache_model_evictions_total{model="b"} 1.0' in text
        assert 'worldcache_model_memory_bytes{model="b"} 0.0' in text
        assert client.get("/readyz").status_code == 200
        gc.collect()
        assert [shelf.made[0]() is None for shelf in parts.values()] == [False, True, False]
        assert roll(client, "b").status_code == 200
        assert [status(client, name) for name in parts] == ["cold", "warm", "warm"]
        until(lambda: gc.collect() >= 0 and parts["a"].made[0]() is None)


def test_a_model_waits_for_room_or_is_refused() -> None:
    parts = {"a": Shelf(60, delay=0.02), "b": Shelf(60)}
    work = {"cache": "none", "actions": ["NOOP"] * 16}
    with hosted(parts, preload="a", model_memory_bytes=100) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(roll, client, "a", **work)
        until(lambda: client.get("/v1/models/a").json()["rollouts"] == 1)
        assert roll(client, "b").status_code == 200
        assert slow.result(30).status_code == 200
        assert [status(client, name) for name in parts] == ["cold", "warm"]
    settings = {"preload": "a", "model_memory_bytes": 100, "model_wait_seconds": 0.05}
    with hosted(parts, **settings) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(roll, client, "a", **work)
        until(lambda: client.get("/v1/models/a").json()["rollouts"] == 1)
        response = roll(client, "b")
        assert error(response) == (503, "model_memory_full")
        assert int(response.headers["Retry-After"]) >= 1
        assert slow.result(30).status_code == 200
        until(lambda: status(client, "b") == "cold")
        assert status(client, "a") == "warm"


def test_a_model_larger_than_the_memory_fails_with_the_reason() -> None:
    parts = shelves(a=10, b=200)
    with hosted(parts, model_memory_bytes=100, wait_until_ready=False) as client:
        until(lambda: status(client, "b") == "failed" and status(client, "a") == "warm")
        assert client.get("/v1/models/b").json()["reason"] == "needs 200 bytes; model_memory_bytes allows 100"
        assert parts["b"].loads == 0
        assert client.get("/readyz").status_code == 503
        assert error(roll(client, "b")) == (503, "model_failed")
        assert roll(client, "a").status_code == 200


def test_what_does_not_fit_at_the_start_stays_cold() -> None:
    parts = shelves(a=60, b=60, c=40)
    with hosted(parts, model_memory_bytes=100) as client:
        assert [status(client, name) for name in parts] == ["warm", "cold", "warm"]
        assert parts["b"].loads == 0
        assert roll(client, "b").status_code == 200


def test_two_devices_have_their_own_engines_and_memory() -> None:
    parts = shelves(a=60, b=60)
    settings = {"devices": "cpu,cpu:0", "placement": "b=cpu:0", "model_memory_bytes": 100}
    with hosted(parts, **settings) as client:
        assert [client.get(f"/v1/models/{name}").json()["device"] for name in parts] == ["cpu", "cpu:0"]
        assert [status(client, name) for name in parts] == ["warm", "warm"]


def with_host(parts: dict[str, Shelf], act: Callable[[ModelHost], Awaitable[None]], **settings: Any) -> None:
    """Call ``act`` with a host of its own."""

    async def run() -> None:
        metrics = Metrics(CollectorRegistry())
        dispatcher = InProcessDispatcher(
            ("cpu",),
            limits=Limits(max_batch=2, max_active=1),
            max_queue=1,
            max_per_client=2,
            retry_after=1,
            observer=metrics.ticked,
        )
        dispatcher.start()
        chosen = Settings(**settings)
        host = ModelHost(
            read_catalogue(chosen, {name: shelf.source for name, shelf in parts.items()}),
            dispatcher=dispatcher,
            metrics=metrics,
            memory_limit=chosen.model_memory_bytes,
            wait_seconds=chosen.model_wait_seconds,
            most_waiters=100,
        )
        try:
            await act(host)
        finally:
            dispatcher.close(30)

    asyncio.run(run())


def test_a_deadline_that_loading_does_not_meet_is_refused() -> None:
    parts = shelves(a=0)

    async def act(host: ModelHost) -> None:
        parts["a"].open.clear()
        with pytest.raises(ApiError) as caught:
            await host.lease("a", timeout=0.05)
        assert (caught.value.status, caught.value.code) == (504, "deadline_unreachable")
        await asyncio.sleep(0.2)
        parts["a"].open.set()
        (await host.lease("a")).release()
        took = host.find("a").load_seconds
        assert took is not None and took > 0.2
        await host.unload("a")
        parts["a"].open.clear()
        with pytest.raises(ApiError, match=rf"took {took:.1f} s last time") as caught:
            await host.lease("a", timeout=took / 2)
        assert caught.value.code == "deadline_unreachable"
        parts["a"].open.set()
        lease = await host.lease("a", timeout=30)
        assert (await host.lease("a", timeout=0)).model is lease.model

    with_host(parts, act)


def test_a_cancelled_waiter_leaves_the_loading_alone() -> None:
    parts = shelves(a=0)

    async def act(host: ModelHost) -> None:
        parts["a"].open.clear()
        waiter = asyncio.create_task(host.lease("a"))
        while not parts["a"].loads:
            await asyncio.sleep(0.01)
        waiter.cancel()
        await asyncio.wait({waiter})
        parts["a"].open.set()
        lease = await host.lease("a")
        assert parts["a"].loads == 1
        assert host.find("a").leases == 1
        for _ in range(2):
            lease.release()
        assert host.find("a").leases == 0

    with_host(parts, act)


def test_a_model_that_is_waited_for_is_not_evicted() -> None:
    parts = shelves(a=60, b=60)

    async def act(host: ModelHost) -> None:
        (await host.lease("a")).release()
        host.find("a").waiters += 1
        with pytest.raises(ApiError) as caught:
            await host.lease("b", timeout=0.05)
        assert caught.value.code == "model_memory_full"
        host.find("a").waiters -= 1
        (await host.lease("b")).release()
        assert (host.find("a").status, host.find("b").status) == ("cold", "warm")

    with_host(parts, act, model_memory_bytes=100)


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"models": "quake"}, "models", "use one of: .*doom"),
        ({"models": "mine=quake:/tmp"}, "models", "'quake'"),
        ({"models": "mine="}, "models", "NAME=FAMILY:WEIGHTS"),
        ({"models": "mine=:/tmp"}, "models", "NAME=FAMILY:WEIGHTS"),
        ({"models": "=doom:/tmp"}, "models", "NAME=FAMILY:WEIGHTS"),
        ({"models": "doom:"}, "models", "NAME=FAMILY:WEIGHTS"),
        ({"models": "my model=doom:/tmp"}, "models", "letters"),
        ({"models": "all=doom:/tmp"}, "models", "'all'"),
        ({"models": "mine=doom:/no/such/folder"}, "models", "does not exist"),
        ({"models": "doom,doom=doom:/tmp"}, "models", "twice"),
        ({"preload": "quake"}, "preload", "'quake'"),
        ({"preload": ""}, "preload", "empty"),
        ({"preload": "none,doom"}, "preload", "stands alone"),
        ({"devices": "abacus"}, "devices", "abacus"),
        ({"placement": "doom"}, "placement", "NAME=VALUE"),
        ({"placement": "quake=cpu"}, "placement", "'quake'"),
        ({"placement": "doom=cuda:7"}, "placement", "none of the devices: cpu"),
        ({"placement": "doom=cpu,doom=cpu"}, "placement", "twice"),
        ({"dtypes": "doom=int8"}, "dtypes", "bfloat16"),
        ({"compile": "quake"}, "compile", "'quake'"),
        ({"cuda_graphs": "quake"}, "cuda_graphs", "'quake'"),
        ({"cuda_graphs": "doom"}, "cuda_graphs", "CUDA device"),
        ({"cuda_graphs": "doom", "devices": "cpu,cuda:0", "placement": "doom=cpu"}, "cuda_graphs", "CUDA"),
    ],
)
def test_settings_that_cannot_be_used_are_told(settings: dict[str, str], param: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^setting {param}: .*{words}") as caught:
        read_catalogue(Settings(**settings))
    assert caught.value.param == param


def test_models_go_where_the_fewest_bytes_are() -> None:
    sources = {name: shelf.source for name, shelf in shelves(a=50, b=30, c=10, d=30, e=0).items()}
    settings = Settings(devices="cpu,cpu:0,cuda:0", placement="d=cuda:0", cuda_graphs="e")
    places = {entry.id: entry.device for entry in read_catalogue(settings, sources)}
    assert places == {"a": "cpu", "b": "cpu:0", "c": "cpu:0", "d": "cuda:0", "e": "cuda:0"}


def test_a_folder_is_served_under_its_name() -> None:
    settings = Settings(
        models=f"doom, mine=doom:{PRETRAINED}", dtypes="mine=bfloat16", preload="mine", dtype="float32"
    )
    doom, mine = read_catalogue(settings)
    assert (doom.preload, mine.preload) == (False, True)
    assert doom.weight_bytes == 2 * mine.weight_bytes
    model = mine.load()
    assert (model.info.id, model.memory_bytes) == ("mine", mine.weight_bytes)


def test_a_model_that_failed_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = shelves(a=0)
    parts["a"].errors.append(RuntimeError("the disk was away"))
    with hosted(parts, preload="none") as client:
        assert error(roll(client, "a")) == (503, "model_failed")
        refused = roll(client, "a")
        assert error(refused) == (503, "model_failed") and 1 <= int(refused.headers["retry-after"]) <= 60
        assert parts["a"].loads == 1
        monkeypatch.setattr("app.models.FAILED_RETRY_SECONDS", 0)
        assert roll(client, "a").status_code == 200


def test_those_who_wait_for_a_model_are_bounded() -> None:
    parts = shelves(a=0)
    parts["a"].open.clear()
    with hosted(parts, preload="none", max_active=1, max_queue=1) as client, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(roll, client, "a") for _ in range(4)]
        until(lambda: sum(one.done() for one in answers) == 2)
        refused = [one.result() for one in answers if one.done()]
        assert [error(one) for one in refused] == [(503, "queue_full")] * 2
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        parts["a"].open.set()
        assert sorted(one.result().status_code for one in answers) == [200, 200, 503, 503]


def test_no_more_is_unloaded_than_is_needed() -> None:
    with hosted(shelves(a=10, b=90, c=90), preload="none", model_memory_bytes=100) as client:
        for name in ("a", "b", "c"):
            assert roll(client, name).status_code == 200
        assert [status(client, name) for name in ("a", "b", "c")] == ["warm", "cold", "warm"]
