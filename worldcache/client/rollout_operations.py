"""What can be done with rollouts, as operations of an :class:`Exchange`."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from worldcache.client.body import RolloutFields, encode_rollout
from worldcache.client.errors import (
    ApiError,
    ClientError,
    InvalidInput,
    NotFound,
    WaitedTooLong,
)
from worldcache.client.events import RolloutT, ended_badly, is_ending
from worldcache.client.exchange import Exchange, Operation, Pause, Request, check_header
from worldcache.client.operations import Listing
from worldcache.client.reader import EVENT_STREAM, SILENCE_SECONDS
from worldcache.client.retries import Retries
from worldcache.client.types import RolloutData

logger = logging.getLogger(__name__)

Wrap: TypeAlias = Callable[[Any], RolloutT]

POLL_SECONDS = (0.05, 1.0)
"""First and longest time between two looks at a rollout."""
POLL_GROWTH = 1.5
LEAVING_SECONDS = 10.0
"""Silence after which somebody who leaves a stream waits no longer for its cancellation."""

VIDEOS = {".mp4": "mp4", ".webp": "webp"}
PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


def rollout_path(rollout_id: str, *rest: str) -> str:
    return "/".join(("/v1/rollouts", quote(rollout_id, safe=""), *rest))


def creation(
    fields: RolloutFields, idempotency_key: str | None, *, wait: bool, stream: bool = False
) -> Request:
    """The request for a rollout, with a key that makes it safe to repeat.

    Args:
        wait: the answer comes at the end, and the rollout ends with the connection.
        stream: the answer is the rollout's events.
    """
    check_header("idempotency_key", idempotency_key)
    headers = {
        "Content-Type": "application/json",
        "Accept": EVENT_STREAM if stream else "application/json",
        "Idempotency-Key": idempotency_key or uuid.uuid4().hex,
    }
    if not wait:
        headers["Prefer"] = "respond-async"
    deadline = fields.get("deadline_ms")
    return Request(
        "POST",
        "/v1/rollouts",
        headers=headers,
        content=encode_rollout(fields),
        repeatable=True,
        ends_with_connection=wait,
        within=None if deadline is None else deadline / 1000,
        silence=SILENCE_SECONDS if stream else None,
    )


def create(exchange: Exchange, request: Request, wrap: Wrap[RolloutT]) -> Operation[RolloutT]:
    """A new rollout.

    Raises:
        RolloutFailed, RolloutCancelled: it was waited for, and ended so.
    """
    try:
        reply = yield from exchange.ask(request)
    except ApiError as error:
        if error.location is None and not is_ending(error.code):
            raise
        rollout = yield from _rollout_at(exchange, error.location, wrap)
        raise ended_badly(error.code, error.message, rollout) from error
    return wrap(reply.json())


def get(exchange: Exchange, rollout_id: str, wrap: Wrap[RolloutT]) -> Operation[RolloutT]:
    """A rollout as it is now."""
    reply = yield from exchange.ask(Request("GET", rollout_path(rollout_id), repeatable=True))
    return wrap(reply.json())


def wait(
    exchange: Exchange, rollout_id: str, timeout: float | None, wrap: Wrap[RolloutT]
) -> Operation[RolloutT]:
    """A rollout once it has succeeded.

    Raises:
        RolloutFailed, RolloutCancelled: it ended so.
        WaitedTooLong: it had not ended after ``timeout`` seconds.
    """
    began, (pause, longest) = exchange.clock(), POLL_SECONDS
    while True:
        rollout = yield from get(exchange, rollout_id, wrap)
        if not rollout.live:
            return check_success(rollout)
        left = pause if timeout is None else timeout - (exchange.clock() - began)
        if left <= 0:
            raise WaitedTooLong(f"rollout {rollout_id} has not ended within {timeout:g} s; it goes on")
        yield Pause(min(pause, left))
        pause = min(longest, POLL_GROWTH * pause)


def check_success(rollout: RolloutT) -> RolloutT:
    """The rollout, if it succeeded.

    Raises:
        RolloutFailed, RolloutCancelled: it did not.
    """
    if rollout.status == "succeeded":
        return rollout
    code, message = f"rollout_{rollout.status}", f"rollout {rollout.id} is {rollout.status}"
    if rollout.error is not None:
        code, message = rollout.error.code, rollout.error.message
    raise ended_badly(code, message, rollout)


def listing(
    exchange: Exchange, wrap: Wrap[RolloutT], limit: int | None, status: str | None
) -> Listing[RolloutT]:
    """Rollouts, newest first, at most ``limit`` of them, those with a ``status`` if one is given."""
    return Listing(exchange, "/v1/rollouts", wrap, limit, {"status": status})


def cancel(exchange: Exchange, rollout_id: str, wrap: Wrap[RolloutT]) -> Operation[RolloutT]:
    """A rollout after it was cancelled; one that had ended already stays as it is.

    DELETE would remove that, so it is looked at first.
    """
    rollout = yield from get(exchange, rollout_id, wrap)
    if not rollout.live:
        return rollout
    reply = yield from exchange.ask(Request("DELETE", rollout_path(rollout_id)))
    answer = reply.json()
    if isinstance(answer, dict) and answer.get("deleted"):
        message = f"rollout {rollout_id} ended by itself just before it was cancelled, and was removed"
        raise NotFound(404, "unknown_rollout", message)
    return wrap(answer)


def leave(exchange: Exchange, rollout_id: str, wrap: Wrap[RolloutT]) -> Operation[None]:
    """Cancel a rollout that nobody wants any more, without patience."""
    hasty = replace(exchange, retries=Retries(count=0), timeout=min(exchange.timeout, LEAVING_SECONDS))
    try:
        yield from cancel(hasty, rollout_id, wrap)
    except NotFound:
        return  # it has ended anyway
    except ClientError as error:
        logger.warning("rollout %s may not have been cancelled: %s", rollout_id, error)


def delete(exchange: Exchange, rollout_id: str) -> Operation[None]:
    """Remove a rollout, cancelling it first if it is live."""
    request = Request("DELETE", rollout_path(rollout_id))
    reply = yield from exchange.ask(request)
    answer = reply.json()
    if isinstance(answer, dict) and not answer.get("deleted"):
        yield from exchange.ask(request)


def npz(exchange: Exchange, rollout_id: str) -> Operation[bytes]:
    """A finished rollout's ``frames.npz``."""
    return (yield from _file(exchange, rollout_path(rollout_id, "frames.npz")))


def files(
    exchange: Exchange, rollout: RolloutData, path: Path, modality: str | None
) -> Operation[dict[Path, bytes]]:
    """What is to be written to save a rollout at ``path``, whose ending says as what.

    Pictures get a number each if there are several.

    Raises:
        InvalidInput: the ending says nothing.
    """
    ending = path.suffix.lower()
    params = {} if modality is None else {"modality": modality}
    if ending == ".npz":
        if modality is not None:
            raise InvalidInput("an npz holds all modalities; leave modality out")
        return {path: (yield from npz(exchange, rollout.id))}
    if ending in VIDEOS:
        video = rollout_path(rollout.id, "video")
        return {path: (yield from _file(exchange, video, **params, format=VIDEOS[ending]))}
    if ending not in PICTURES:
        known = ", ".join((*VIDEOS, ".npz", *PICTURES))
        raise InvalidInput(f"{path.name!r}: the ending says as what to save, one of {known}")
    saved: dict[Path, bytes] = {}
    digits = max(3, len(str(rollout.num_frames - 1)))
    for index in range(rollout.num_frames):
        name = path if rollout.num_frames == 1 else path.with_stem(f"{path.stem}-{index:0{digits}}")
        frame = rollout_path(rollout.id, "frames", str(index))
        saved[name] = yield from _file(exchange, frame, **params, format=PICTURES[ending])
    return saved


def write_files(contents: dict[Path, bytes]) -> tuple[Path, ...]:
    """Write files; what was written."""
    for path, data in contents.items():
        path.write_bytes(data)
    return tuple(contents)


def _file(exchange: Exchange, path: str, **params: str) -> Operation[bytes]:
    reply = yield from exchange.ask(Request("GET", path, params=params, repeatable=True))
    return reply.content


def _rollout_at(exchange: Exchange, location: str | None, wrap: Wrap[RolloutT]) -> Operation[RolloutT | None]:
    """The rollout that an error is about, if it can be found."""
    if location is None:
        return None
    try:
        return (yield from get(exchange, location.rpartition("/")[2], wrap))
    except NotFound:
        return None
