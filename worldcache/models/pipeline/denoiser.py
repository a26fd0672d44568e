"""One chunk, denoised by a call of the pipeline whose transformer is evaluated by the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldcache.core import ChunkStats, ModalityStats
from worldcache.errors import InvalidInput, RolloutFailed
from worldcache.models.base import Row
from worldcache.models.pipeline.copies import Ask, TransformerCall, copy_for_call
from worldcache.models.pipeline.turns import TurnThread
from worldcache.pipelines.enable import enable
from worldcache.pipelines.summary import Observer, TransformerStep
from worldcache.policies.registry import AnyPolicy

MODALITY = "rgb"


class PipelineDenoiser:
    """Denoises one chunk.

    The pipeline's own call runs in a thread of its own, with the cache on a copy of the pipeline. It stands
    still whenever a transformer must be computed: that call is the row that the chunk waits for. What the
    engine gets as the row's output is whether it is finite; the output itself goes back to the pipeline as
    it is. Text, image and video models and CACHED steps run in the pipeline's thread, while the engine's
    waits.

    Args:
        pipe: the pipeline; it stays as it is.
        policy: decides which steps are computed, and predicts the others.
        arguments: of the pipeline's call, which gives frames as numpy arrays.
        frames: that come out.
        device: of the pipeline.

    Raises:
        Exception: whatever the pipeline raises before it needs its transformer for the first time.
        InvalidInput: the policy cannot work on the pipeline; ``param`` is ``cache.policy``.
    """

    def __init__(
        self,
        pipe: Any,
        policy: AnyPolicy,
        arguments: Mapping[str, Any],
        frames: int,
        device: torch.device,
    ) -> None:
        self.frames = frames
        self._tally = Tally()
        function = partial(_run, pipe, policy, arguments, frames, device, self._tally.observe)
        self._thread: TurnThread[TransformerCall, Any, Tensor] = TurnThread(function, "pipeline")
        with _naming_the_policy():
            self._call = self._thread.start()
        if self._call is None:
            raise RolloutFailed("the pipeline made a video without its transformer; it cannot be served")

    @property
    def latent(self) -> Tensor:
        """The pipeline's frames, float32 ``[F, H, W, 3]`` from 0 to 1, on the host; only once all is done."""
        return self._thread.result

    @property
    def done(self) -> bool:
        return self._call is None

    def rows(self) -> list[Row]:
        """The call that the pipeline waits for, as one row; it knows its own latent and timestep."""
        return [Row(torch.empty(0), 0.0, self._call)]

    def take(self, tokens: Tensor) -> Tensor:
        """Whether the output is finite, ``[1, 1]``, as evidence."""
        return tokens[0]

    def advance(self, evidence: Sequence[float]) -> None:
        """Let the pipeline go on with the output until it needs another one, or to its end.

        Raises:
            RolloutFailed: the output was not finite, or the pipeline's frames cannot be used.
            Exception: whatever the pipeline raises.
        """
        assert self._call is not None
        if not evidence[0]:
            raise RolloutFailed("the model's transformer returned a value that is not finite")
        output, self._call = self._call.output, None
        with _naming_the_policy():
            self._call = self._thread.answer(output)

    def stats(self, index: int) -> ChunkStats:
        return self._tally.stats(index)

    def close(self) -> None:
        """End the pipeline's thread, wherever the pipeline is."""
        self._thread.close()
        self._call = None


class Tally:
    """How the steps of one call of a pipeline went.

    A step is FULL if any of its calls was: guidance in two calls has a policy state for each.

    Attributes:
        steps: how many were finished or begun.
    """

    def __init__(self) -> None:
        self._place: tuple[object, int] | None = None
        self._decisions: list[str] = []
        self._drift: list[float | None] = []
        self._tokens = self._skipped = self._fallbacks = 0

    @property
    def steps(self) -> int:
        return len(self._decisions)

    def observe(self, step: TransformerStep) -> None:
        """Take a call of a transformer into account."""
        place = self._place
        if place is None or place[0] is not step.course or place[1] != step.index:
            self._place = (step.course, step.index)
            self._decisions.append(".")
            self._drift.append(step.drift)
        elif step.drift is not None:
            self._drift[-1] = max(step.drift, self._drift[-1] or 0.0)
        if step.full:
            self._decisions[-1] = "F"
        else:
            self._skipped += step.tokens
        if self.steps == 1:
            self._tokens += step.tokens
        self._fallbacks += step.fell_back

    def stats(self, index: int) -> ChunkStats:
        """The statistics of the chunk ``index``; the policies' token classes are not among them."""
        return ChunkStats(
            index,
            "".join(self._decisions),
            tuple(self._drift),
            token_classes=None,
            fallbacks=self._fallbacks,
            modalities={MODALITY: ModalityStats(self._tokens, self._skipped, error=None)},
        )


def _run(
    pipe: Any,
    policy: AnyPolicy,
    arguments: Mapping[str, Any],
    frames: int,
    device: torch.device,
    observer: Observer,
    ask: Ask,
) -> Tensor:
    """Call a copy of the pipeline, in the thread that is the chunk's own."""
    copied = copy_for_call(pipe, ask)
    enable(copied, policy, observer=observer)
    with torch.no_grad(), _current(device):
        video = copied(**arguments)[0]
    return read_frames(video, frames)


def read_frames(video: Any, frames: int) -> Tensor:
    """The only video of a pipeline's answer, ``[1, F, H, W, 3]``.

    Raises:
        RolloutFailed: it has another shape, or a value that is not finite.
    """
    pictures = torch.from_numpy(np.asarray(video[0], np.float32))
    if pictures.ndim != 4 or len(pictures) != frames or pictures.shape[-1] != 3:
        raise RolloutFailed(
            f"the pipeline was asked for {frames} frames in colour and gave {list(pictures.shape)}"
        )
    if not pictures.isfinite().all():
        raise RolloutFailed("the pipeline returned frames with a value that is not finite")
    return pictures


@contextmanager
def _naming_the_policy() -> Iterator[None]:
    """What a policy refuses is told of the field that names it in a request."""
    try:
        yield
    except InvalidInput as error:
        if error.param in ("policy", "sigmas"):
            error.at("cache.policy")
        raise


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes ``device`` the thread's, where that means something."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
