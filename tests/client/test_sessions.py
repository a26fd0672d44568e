"""Sessions through both clients, against a running server around a small network."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from tests.app.conftest import serving
from tests.app.test_sessions import Gate
from tests.client.conftest import Hourglass, Kind
from tests.tiny import load_tiny_model
from tests.toy import ToyWorldModel
from worldcache.client import (
    AsyncClient,
    BadRequest,
    Client,
    Conflict,
    ConnectionFailed,
    InvalidInput,
    NotFound,
    Plan,
    Problem,
    ServerBusy,
    ServerError,
    Step,
    StepsFailed,
    UnexpectedAnswer,
)

FIELDS: dict[str, Any] = {
    "model": "toy",
    "start": "centre",
    "num_inference_steps": 4,
    "seed": 3,
    "cache": "none",
}
LEFT, RIGHT, STAY = ["MOVE_LEFT"], ["MOVE_RIGHT"], ["NOOP"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server around a network, whose frames depend on those before."""
    model = load_tiny_model(tmp_path_factory.mktemp("tiny"))
    with serving(models_by_name={"toy": model}) as running:
        yield running


class Lossy(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Sends requests, and loses the answers to those that it is told to.

    Args:
        kind: of the client.
        lose: told every request and its number; true if its answer is to be lost.
    """

    def __init__(self, kind: Kind, lose: Callable[[int, httpx.Request], bool]) -> None:
        self._inner: Any = httpx.AsyncHTTPTransport() if kind.asynchronous else httpx.HTTPTransport()
        self._lose = lose
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response: httpx.Response = self._inner.handle_request(request)
        if self._lose(len(self.requests) - 1, request):
            response.read()
            raise httpx.ReadError("cut")
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response: httpx.Response = await self._inner.handle_async_request(request)
        if self._lose(len(self.requests) - 1, request):
            await response.aread()
            raise httpx.ReadError("cut")
        return response

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


def first_step(number: int, request: httpx.Request) -> bool:
    return number == 1


def asked(transport: Lossy) -> list[str]:
    """What was requested, after the session was opened."""
    return [request.url.path.rpartition("/")[2] for request in transport.requests[1:]]


def same(one: Any, other: Any) -> bool:
    """Whether frames of the same batches are the same."""
    return one.indices == other.indices and all(
        np.array_equal(one.frames[name], other.frames[name]) for name in ("rgb", "depth")
    )


def test_a_session_goes_on_step_by_step(client: Any, server: httpx.Client) -> None:
    with client.sessions.create(**FIELDS, metadata={"run": "7"}) as session:
        assert (session.model, session.seed, session.cache, session.metadata) == (
            "toy",
            3,
            "none",
            {"run": "7"},
        )
        assert session.action_space.names[1] == "MOVE_LEFT"
        assert (session.num_frames, session.next_step_id, session.data.committed_step_id) == (0, 0, None)
        size = session.frames_per_step
        steps = [session.step(LEFT), session.step(np.array([2] * size)), session.step((np.int64(0),))]
        assert [step.step_id for step in steps] == [step.committed_step_id for step in steps] == [0, 1, 2]
        assert [index for step in steps for index in step.indices] == list(range(3 * size))
        assert (session.num_frames, session.next_step_id) == (3 * size, 3)
        described = server.get(f"/v1/sessions/{session.id}").json()
        assert (session.num_frames, session.data.committed_step_id) == (
            described["frames"],
            described["committed_step_id"],
        )
        session.refresh()
        assert session.data.stats.steps_total == described["stats"]["steps_total"] > 0
        height, width = described_size(server)
        step = steps[0]
        assert isinstance(step, Step) and step.session_id == session.id
        assert step.frames["rgb"].shape == (size, height, width, 3)
        assert step.frames["depth"].shape == (size, height, width)
        assert (step.frames["rgb"].dtype, step.frames["depth"].dtype) == (np.uint8, np.float32)
        assert step.stats.action_to_frame_ms > 0 and step.stats.chunks[0].decisions == "FFFF"
    with pytest.raises(NotFound) as caught:
        session.step(LEFT)
    assert (caught.value.status, caught.value.code) == (410, "session_gone")
    session.close()


def described_size(server: httpx.Client) -> tuple[int, int]:
    resolution = server.get("/v1/models/toy").json()["resolution"]
    return resolution["height"], resolution["width"]


def test_steps_show_what_a_rollout_shows(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session:
        size = session.frames_per_step
        steps = [session.step(LEFT), session.step(RIGHT)]
    frames = client.rollouts.create(**FIELDS, actions=LEFT * size + RIGHT * size).frames()
    shown = {name: np.concatenate([step.frames[name] for step in steps]) for name in frames}
    assert np.array_equal(shown["rgb"], frames["rgb"])
    scale = steps[0].pictures[0]["depth"].scale
    assert np.abs(shown["depth"] - frames["depth"]).max() <= scale


def test_sessions_are_found_again(client: Any) -> None:
    opened = [client.sessions.create(**FIELDS) for _ in range(3)]
    ids = [session.id for session in opened][::-1]
    assert [session.id for session in client.sessions.list()] == ids
    assert [session.id for session in client.sessions.list(limit=2)] == ids[:2]
    opened[0].step(LEFT)
    again = client.sessions.get(opened[0].id)
    assert again.next_step_id == 1
    again.step(LEFT)
    again.step(LEFT)
    with pytest.raises(Conflict) as caught:
        opened[0].step(RIGHT)  # it does not know
    assert caught.value.code == "step_conflict"
    opened[0].refresh()
    assert opened[0].step(RIGHT).step_id == 3
    for session in opened:
        session.close()
    assert list(client.sessions.list()) == []
    with pytest.raises(NotFound):
        client.sessions.get("se_no")


def test_a_fork_has_the_same_past(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session:
        session.step(LEFT)
        with session.fork() as other:
            assert (other.data.parent, other.num_frames) == (session.id, session.num_frames)
            assert same(session.step(RIGHT), other.step(RIGHT))
            assert not same(session.step(LEFT), other.step(RIGHT))


def test_going_back_and_again(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session:
        steps = [session.step(actions) for actions in (LEFT, RIGHT, LEFT)]
        session.rewind(session.frames_per_step)
        assert session.next_step_id == 1
        again = [session.step(actions) for actions in (RIGHT, LEFT)]
        assert all(same(*pair) for pair in zip(steps[1:], again, strict=True))
        session.reset()
        assert (session.num_frames, session.next_step_id) == (0, 0)
        assert same(session.step(LEFT), steps[0])
        with pytest.raises(BadRequest) as caught:
            session.rewind(session.frames_per_step + 1)
        assert caught.value.param == "to_frame"


def test_a_plan_shows_what_steps_would(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session:
        session.step(LEFT)
        plan = session.plan([RIGHT, LEFT], frames="all")
        assert isinstance(plan, Plan) and plan.session_id == session.id
        assert [(branch.index, branch.error) for branch in plan.branches] == [(0, None), (1, None)]
        assert session.num_frames == session.frames_per_step
        step = session.step(RIGHT)
        difference = np.abs(plan.branches[0].frames["rgb"].astype(int) - step.frames["rgb"])
        assert plan.branches[0].indices == step.indices and difference.max() <= 1
        assert plan.branches[1].stats.steps_full == 4
        last = session.plan(np.array([[0], [1]]), frames="last")
        assert [branch.indices for branch in last.branches] == [(3 * session.frames_per_step - 1,)] * 2
        assert session.plan([STAY], frames="none").branches[0].frames == {}


def test_one_branch_of_a_plan_may_fail(kind: Kind) -> None:
    def fail(rows: Sequence[Any]) -> None:
        if any(row.condition[0] == 3 for row in rows):
            raise ValueError("broken")

    with serving(ToyWorldModel(before_evaluate=fail)) as server:
        with kind.connect(str(server.base_url)) as client, client.sessions.create(**FIELDS) as session:
            good, bad = session.plan([LEFT, ["ATTACK"]]).branches
            assert good.error is None and len(good.frames["rgb"]) == 4
            assert (bad.frames, bad.stats, bad.indices) == ({}, None, ())
            assert isinstance(bad.error, Problem) and bad.error.message


def test_another_cache_from_the_next_step_on(client: Any) -> None:
    with client.sessions.create(**{**FIELDS, "num_inference_steps": 10}) as session:
        assert session.step(LEFT).stats.skip_ratio == 0
        session.change_cache({"policy": "interval", "interval": 5})
        assert session.cache == {"policy": "interval", "interval": 5}
        assert session.step(LEFT).stats.chunks[0].decisions == "F....F...."
        with pytest.raises(BadRequest):
            session.change_cache("no")
        session.change_cache(None)
        assert session.cache is None


def test_a_snapshot_goes_on_elsewhere(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session:
        session.step(LEFT)
        snapshot = json.loads(json.dumps(session.snapshot()))
        with client.sessions.restore(snapshot) as other:
            assert (other.num_frames, other.next_step_id) == (session.num_frames, 1)
            assert same(other.step(RIGHT), session.step(RIGHT))
        with pytest.raises(BadRequest) as caught:
            client.sessions.restore({**snapshot, "context": "no"})
        assert caught.value.param == "snapshot.context"


def test_pictures_as_they_were_asked_for(client: Any) -> None:
    output = {"format": "jpeg", "modalities": ["rgb"]}
    with client.sessions.create(**FIELDS, output=output, frames_per_step=8) as session:
        assert (session.data.output.format, session.data.output.modalities) == ("jpeg", ("rgb",))
        step = session.step(LEFT)
    assert set(step.frames) == {"rgb"} and step.frames["rgb"].shape[0] == len(step.indices) == 8
    assert step.pictures[0]["rgb"].media_type == "image/jpeg"


def test_refusals_name_the_field_of_a_session(client: Any) -> None:
    with pytest.raises(TypeError, match="a session has no actions"):
        client.sessions.create(**FIELDS, actions=LEFT)
    with pytest.raises(BadRequest) as caught:
        client.sessions.create(**{**FIELDS, "start": "nowhere"})
    assert caught.value.param == "observation.start"
    with client.sessions.create(**FIELDS) as session:
        with pytest.raises(BadRequest) as caught:
            session.step(["JUMP"])
        assert caught.value.param == "actions.0"
        with pytest.raises(InvalidInput):
            session.step([object()])
        assert session.step(LEFT).step_id == 0


def test_a_lost_answer_is_asked_for_again(kind: Kind) -> None:
    model = ToyWorldModel()
    with serving(model) as server:
        transport, hourglass = Lossy(kind, first_step), Hourglass()
        with kind.connect(str(server.base_url), transport=transport, hourglass=hourglass) as client:
            session = client.sessions.create(**FIELDS)
            step = session.step(LEFT)
            assert (step.step_id, session.next_step_id) == (0, 1)
            assert asked(transport) == ["step", "step"] and len(model.batches) == 4
            assert session.step(RIGHT).step_id == 1


def test_a_step_that_is_still_being_taken_is_waited_for(kind: Kind) -> None:
    gate = Gate()
    model = ToyWorldModel(before_evaluate=gate)
    with serving(model, retry_after_seconds=1) as server:
        gate.close()
        transport = httpx.AsyncHTTPTransport() if kind.asynchronous else httpx.HTTPTransport()
        hourglass = Opener(gate)
        options = {"transport": transport, "timeout": 2.0, "hourglass": hourglass}
        with kind.connect(str(server.base_url), **options) as client:
            session = client.sessions.create(**FIELDS)
            assert session.step(LEFT).step_id == 0
        assert len(hourglass.pauses) > 1 and len(model.batches) == 4


class Opener(Hourglass):
    """Opens a gate during the second pause: the first request was lost, the second one refused."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if len(self.pauses) >= 2:
            self._gate.open()
            time.sleep(0.2)  # so that the step can end before the client's patience does


def test_a_step_that_somebody_else_is_taking_is_not_waited_for(kind: Kind) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        error = {"code": "step_in_progress", "message": "wait", "param": None, "request_id": "r"}
        return httpx.Response(409, json={"error": error}) if request.content else httpx.Response(200)

    hourglass = Hourglass()
    with kind.connect(transport=scripted_session(answer), hourglass=hourglass) as client:
        session = client.sessions.create(**FIELDS)
        with pytest.raises(Conflict):
            session.step(LEFT)
    assert hourglass.pauses == []


@pytest.mark.parametrize("actions", [LEFT, RIGHT])
def test_a_step_that_was_given_up_is_repeated_or_undone(kind: Kind, actions: list[str]) -> None:
    model = ToyWorldModel()
    with serving(model) as server, Client(str(server.base_url)) as watching:
        transport = Lossy(kind, lambda number, request: number in (2, 3))
        options = {"transport": transport, "hourglass": Hourglass(), "retries": 1}
        with kind.connect(str(server.base_url), **options) as client:
            session = client.sessions.create(**FIELDS)
            session.step(STAY)
            with pytest.raises(ConnectionFailed):
                session.step(LEFT)
            assert (session.num_frames, session.next_step_id) == (4, 1)
            taken = session.step(actions)
            assert (taken.step_id, session.num_frames) == (1, 8)
            undone = actions == RIGHT
            assert asked(transport)[3:] == (["rewind", "step"] if undone else ["step"])
            assert len(model.batches) == (12 if undone else 8)
            again = watching.sessions.create(**FIELDS)
            again.step(STAY)
            assert same(again.step(actions), taken)


@pytest.mark.parametrize("call", ["fork", "plan", "snapshot", "change_cache", "reset"])
def test_a_step_that_was_given_up_is_no_part_of_the_session(kind: Kind, call: str) -> None:
    with serving() as server:
        transport = Lossy(kind, first_step)
        with kind.connect(str(server.base_url), transport=transport, retries=0) as client:
            session = client.sessions.create(**FIELDS)
            with pytest.raises(ConnectionFailed):
                session.step(LEFT)
            assert server.get(f"/v1/sessions/{session.id}").json()["frames"] == 4
            arguments: dict[str, list[Any]] = {"plan": [[LEFT]], "change_cache": ["fast"]}
            getattr(session, call)(*arguments.get(call, []))
            assert server.get(f"/v1/sessions/{session.id}").json()["frames"] == 0
            assert session.step(RIGHT).step_id == 0
            assert asked(transport)[1] == ("reset" if call == "reset" else "rewind")


@pytest.mark.parametrize("together", [False, True])
def test_an_interrupted_step_may_be_asked_for_again(together: bool) -> None:
    gate = Gate()
    model = ToyWorldModel(before_evaluate=gate)

    class Opening(Hourglass):
        async def asleep(self, seconds: float) -> None:
            self.sleep(seconds)
            gate.open()
            await asyncio.sleep(0.1)

    async def use(url: str, hourglass: Hourglass) -> None:
        async with AsyncClient(url, clock=hourglass.clock, sleep=hourglass.asleep) as client:
            async with await client.sessions.create(**FIELDS) as session:

                async def step() -> Step:
                    if together:
                        return (await client.sessions.step_all([(session, LEFT)]))[0]
                    return await session.step(LEFT)

                gate.close()
                task = asyncio.create_task(step())
                assert await asyncio.to_thread(gate.reached.wait, 20)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert (await step()).step_id == 0
                assert session.num_frames == 4

    hourglass = Opening()
    with serving(model, retry_after_seconds=1) as server:
        asyncio.run(use(str(server.base_url), hourglass))
    assert hourglass.pauses and len(model.batches) == 4


def test_refreshing_says_whether_a_step_was_taken(kind: Kind) -> None:
    with serving() as server:
        transport = Lossy(kind, first_step)
        with kind.connect(str(server.base_url), transport=transport, retries=0) as client:
            session = client.sessions.create(**FIELDS)
            with pytest.raises(ConnectionFailed):
                session.step(LEFT)
            session.refresh()
            assert session.num_frames == 4
            assert session.step(LEFT).step_id == 1


def test_a_failed_step_leaves_the_session_as_it_was(kind: Kind) -> None:
    def fail(rows: Sequence[Any]) -> None:
        if rows[0].condition[0] == 3:
            raise ValueError("broken")

    with serving(ToyWorldModel(before_evaluate=fail)) as server:
        with kind.connect(str(server.base_url)) as client, client.sessions.create(**FIELDS) as session:
            session.step(LEFT)
            with pytest.raises(ServerError):
                session.step(["ATTACK"])
            assert session.num_frames == 4
            assert session.step(LEFT).step_id == 1


def test_creations_are_repeated_only_if_they_were_refused(kind: Kind) -> None:
    with serving(max_sessions=1) as server:
        hourglass = Hourglass()
        with kind.connect(str(server.base_url), hourglass=hourglass, retries=2) as client:
            session = client.sessions.create(**FIELDS)
            for opening in (session.fork, lambda: client.sessions.create(**FIELDS)):
                with pytest.raises(ServerBusy) as caught:
                    opening()
                assert caught.value.code == "session_limit"
        assert hourglass.pauses == []  # there is room in ten minutes, later than anybody waits
    transport = Lossy(kind, lambda number, request: True)
    with serving() as server, kind.connect(str(server.base_url), transport=transport) as client:
        with pytest.raises(ConnectionFailed):
            client.sessions.create(**FIELDS)
        assert len(transport.requests) == 1


def test_a_session_is_asked_for_again_when_there_was_no_room(kind: Kind) -> None:
    answers = [(503, {"error": {"code": "session_limit", "message": "full"}}), (201, SESSION)]

    def answer(request: httpx.Request) -> httpx.Response:
        status, body = answers.pop(0)
        return httpx.Response(status, json=body, headers={"Retry-After": "2"})

    hourglass = Hourglass()
    with kind.connect(transport=httpx.MockTransport(answer), hourglass=hourglass) as client:
        assert client.sessions.create(**FIELDS).id == "se_1"
    assert hourglass.pauses == [2.5]


def test_an_error_in_a_block_is_not_hidden(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    hourglass = Hourglass()
    with kind.connect(transport=scripted_session(answer), hourglass=hourglass) as client:
        with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
            with client.sessions.create(**FIELDS):
                raise ZeroDivisionError
        assert "se_1 may not have been closed" in caplog.text and hourglass.pauses == []
        with pytest.raises(ConnectionFailed), client.sessions.create(**FIELDS):
            pass


SESSION = {
    "id": "se_1",
    "model": "toy",
    "created_at": 0,
    "expires_at": 1,
    "seed": 3,
    "num_inference_steps": 4,
    "guidance_scale": 1,
    "policy": "none",
    "output": {"format": "png", "modalities": None},
    "action_space": {"type": "discrete", "names": ["NOOP"]},
    "frames_per_step": 4,
    "frames": 0,
    "committed_step_id": None,
}
"""A session as a scripted server describes it."""


def scripted_session(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    """A server that opens sessions and otherwise answers as it is told to."""
    opened = iter(range(1, 100))

    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path.endswith("/v1/sessions"):
            return httpx.Response(201, json={**SESSION, "id": f"se_{next(opened)}"})
        return answer(request)

    return httpx.MockTransport(respond)


@pytest.mark.parametrize("text", ["[]", "{}", '{"frames": [{}]}', '{"frames": 3}', "null"])
def test_what_is_no_answer(kind: Kind, text: str) -> None:
    transport = scripted_session(lambda request: httpx.Response(200, text=text))
    with kind.connect(transport=transport) as client:
        session = client.sessions.create(**FIELDS)
        for call in (lambda: session.step(LEFT), lambda: session.plan([LEFT]), session.refresh):
            with pytest.raises(UnexpectedAnswer):
                call()
        with pytest.raises(UnexpectedAnswer):
            client.sessions.step_all([(session, LEFT)])


def step_answer(entry: dict[str, Any]) -> dict[str, Any]:
    number = entry["step_id"]
    stats = {"policy": "none", "action_to_frame_ms": 1.0}
    return {
        "session_id": entry["session_id"],
        "step_id": number,
        "committed_step_id": number,
        "frames": [],
        "stats": stats,
    }


def test_many_sessions_step_at_once(client: Any) -> None:
    sessions = [client.sessions.create(**FIELDS) for _ in range(3)]
    alone = client.sessions.create(**FIELDS)
    steps = client.sessions.step_all(zip(sessions, (LEFT, RIGHT, LEFT), strict=True))
    assert [step.session_id for step in steps] == [session.id for session in sessions]
    difference = np.abs(steps[0].frames["rgb"].astype(int) - alone.step(LEFT).frames["rgb"])
    assert difference.max() <= 1  # in other batches sums are rounded otherwise
    sessions[1].close()
    with pytest.raises(StepsFailed) as caught:
        client.sessions.step_all(((session, LEFT) for session in sessions), frames="last")
    first, problem, last = caught.value.steps
    assert isinstance(problem, Problem) and problem.code == "session_gone"
    assert len(first.indices) == len(last.indices) == 1
    assert [session.next_step_id for session in sessions] == [2, 1, 2]
    (step,) = client.sessions.step_all([(sessions[0], RIGHT)], frames="none")
    assert step.frames == {} and step.step_id == 2
    assert sessions[0].step(LEFT).step_id == 3
    for session in (sessions[0], sessions[2], alone):
        session.close()


@pytest.mark.parametrize("retries", [0, 1])
def test_a_lost_answer_of_many_is_computed_once(kind: Kind, retries: int) -> None:
    model = ToyWorldModel()
    with serving(model) as server:
        transport = Lossy(kind, lambda number, request: number == 2)
        options = {"transport": transport, "hourglass": Hourglass(), "retries": retries}
        with kind.connect(str(server.base_url), **options) as client:
            sessions = [client.sessions.create(**FIELDS) for _ in range(2)]
            entries = [(session, LEFT) for session in sessions]
            if retries == 0:
                with pytest.raises(ConnectionFailed):
                    client.sessions.step_all(entries)
            steps = client.sessions.step_all(entries)
            assert [step.step_id for step in steps] == [0, 0]
            assert asked(transport)[1:] == ["step", "step"] and sum(model.batches) == 8


def test_what_is_refused_of_many_is_raised_with_the_rest(kind: Kind) -> None:
    bodies: list[Any] = []
    refused = {"code": "queue_full", "message": "no room", "param": None}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/rewind"):
            bodies.append("rewind")
            return httpx.Response(200, json={**SESSION, "id": "se_2", "frames": 4, "committed_step_id": 0})
        body = json.loads(request.content)
        bodies.append(body)
        data: list[Any] = [step_answer(entry) for entry in body["steps"]]
        if len(bodies) == 2:
            data[1] = {"session_id": "se_2", "error": refused}
        return httpx.Response(200, json={"object": "list", "data": data})

    with kind.connect(transport=scripted_session(answer)) as client:
        one, two = client.sessions.create(**FIELDS), client.sessions.create(**FIELDS)
        steps = client.sessions.step_all([(one, LEFT), (two, np.array([2]))], frames="none")
        assert [(step.session_id, step.step_id) for step in steps] == [("se_1", 0), ("se_2", 0)]
        assert bodies[0]["frames"] == "none" and bodies[0]["steps"][1]["actions"] == [2]
        with pytest.raises(StepsFailed, match=r"1 of 2 .* number 1: no room \(queue_full\)") as caught:
            client.sessions.step_all([(one, LEFT), (two, LEFT)])
        taken, problem = caught.value.steps
        assert isinstance(taken, Step) and isinstance(problem, Problem)
        assert (taken.step_id, one.next_step_id, two.next_step_id) == (1, 2, 1)
        client.sessions.step_all([(one, LEFT), (two, RIGHT)])
        assert bodies[2] == "rewind"  # nothing is certain about the refused one
        assert [entry["step_id"] for entry in bodies[3]["steps"]] == [2, 1]
        with pytest.raises(InvalidInput, match="twice"):
            client.sessions.step_all([(one, LEFT), (one, LEFT)])


def test_steps_of_many_that_are_still_being_taken_are_waited_for(kind: Kind) -> None:
    busy = {"code": "step_in_progress", "message": "wait", "param": None}
    answers: list[Any] = [httpx.ReadError("cut"), busy, None]

    def answer(request: httpx.Request) -> httpx.Response:
        outcome = answers.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        data: list[Any] = [step_answer(entry) for entry in json.loads(request.content)["steps"]]
        if outcome is not None:
            data[0] = {"session_id": "se_1", "error": outcome}
        return httpx.Response(200, json={"object": "list", "data": data})

    hourglass = Hourglass()
    with kind.connect(transport=scripted_session(answer), hourglass=hourglass) as client:
        sessions = [client.sessions.create(**FIELDS) for _ in range(2)]
        steps = client.sessions.step_all([(session, LEFT) for session in sessions])
        assert [step.step_id for step in steps] == [0, 0] and len(hourglass.pauses) == 2
        answers[:] = [busy]
        with pytest.raises(StepsFailed):
            client.sessions.step_all([(session, LEFT) for session in sessions])
        answers[:] = [httpx.ReadError("cut"), *[busy] * 5]
        with pytest.raises(StepsFailed):
            client.sessions.step_all([(session, LEFT) for session in sessions])
