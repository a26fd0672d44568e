"""A session as a document that can be taken elsewhere, and back. What comes back may come from anybody."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.errors import ApiError
from app.schemas import SnapshotBody
from app.session_store import Session
from worldcache.core import RolloutState
from worldcache.errors import InvalidInput
from worldcache.models.base import WorldModel


def export_state(model: WorldModel, state: RolloutState) -> str:
    """A state's context as text; reads the device.

    Raises:
        InvalidInput: the model keeps its contexts to itself.
    """
    return base64.b64encode(pack_state(model, state)).decode()


def pack_state(model: WorldModel, state: RolloutState) -> bytes:
    """A state's context as safetensors; reads the device.

    Raises:
        InvalidInput: the model keeps its contexts to itself.
    """
    arrays = {name: np.ascontiguousarray(a) for name, a in model.export_context(state.context).items()}
    return save(arrays)


def read_arrays(text: str, param: str) -> Mapping[str, NDArray[Any]]:
    """The arrays of an exported state. Takes milliseconds: not for the event loop.

    Raises:
        InvalidInput: there are none; ``param`` is what the text is called.
    """
    try:
        arrays: Mapping[str, NDArray[Any]] = load(base64.b64decode(text, validate=True))
    except (binascii.Error, SafetensorError, KeyError, ValueError, TypeError):
        message = f"{param}: this is no base64 of a safetensors file; send the snapshot as it was answered"
        raise InvalidInput(message, param=param) from None
    return arrays


def unpack_arrays(data: bytes) -> Mapping[str, NDArray[Any]]:
    """The arrays that :func:`pack_state` wrote."""
    arrays: Mapping[str, NDArray[Any]] = load(data)
    return arrays


def import_state(
    model: WorldModel, arrays: Mapping[str, NDArray[Any]], frames: int, param: str
) -> RolloutState:
    """The state that :func:`export_state` wrote; writes to the device.

    Args:
        model: that it is for.
        arrays: of the state.
        frames: that led to it.
        param: what the text was called that had them.

    Raises:
        InvalidInput: it is no state of the model; ``param`` names what is wrong.
    """
    try:
        return RolloutState(model.import_context(arrays), frames)
    except InvalidInput as error:
        if error.code == "not_supported":
            raise
        raise error.at(f"{param}.{error.param}" if error.param else param) from error


def snapshot_of(
    session: Session, actions: list[JsonValue], frames: int, start: str, context: str
) -> SnapshotBody:
    """The document.

    Args:
        session: whose it is.
        actions: that led to the context.
        frames: that led to it.
        start: the context at frame 0, exported.
        context: that of now, exported.
    """
    return SnapshotBody(
        object="session.snapshot",
        version=1,
        model=session.model,
        seed=session.terms.seed,
        num_inference_steps=session.terms.num_inference_steps,
        guidance_scale=session.terms.guidance_scale,
        cache=session.cache,
        metadata=session.metadata,
        frames_per_step=session.frames_per_step,
        output=session.output,
        frames=frames,
        actions=actions,
        start=start,
        context=context,
    )


@contextmanager
def naming_the_snapshot() -> Iterator[None]:
    """Errors raised inside that name a field name it within ``snapshot``."""
    try:
        yield
    except ApiError as error:
        param = error.param and f"snapshot.{error.param}"
        raise ApiError(error.status, error.code, error.message, param=param, headers=error.headers) from error
    except InvalidInput as error:
        if error.param:
            error.at(f"snapshot.{error.param}")
        raise
