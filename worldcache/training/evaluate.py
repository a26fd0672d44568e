"""How good is the model? Held-out episodes, the true frames, and whether actions are obeyed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from worldcache.core import ChunkFinished, Frames, Observation, RolloutEnded, RolloutEvent
from worldcache.engine.engine import Engine, Limits
from worldcache.engine.rollout import Rollout, RolloutRequest
from worldcache.models.base import WorldModel
from worldcache.policies.registry import AnyPolicy
from worldcache.training.collect import Episode
from worldcache.training.inverse_dynamics import AFTER, BEFORE, InverseDynamics, recognised


@dataclass(frozen=True)
class Sample:
    """A stretch of a held-out episode: context to start from, then what really happened.

    Attributes:
        frames: uint8 ``[context + horizon, H, W, 4]``.
        actions: uint8 ``[context + horizon]``.
        context: frames of context.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.uint8]
    context: int

    @property
    def observation(self) -> Observation:
        known = self.frames[: self.context]
        return Observation(frames=known[..., :3], depth=known[..., 3].astype(np.float32))

    @property
    def truth(self) -> Frames:
        future = self.frames[self.context :]
        return {"rgb": future[..., :3], "depth": future[..., 3].astype(np.float32)}

    @property
    def commanded(self) -> tuple[int, ...]:
        return tuple(int(a) for a in self.actions[self.context :])


def draw_samples(
    episodes: Sequence[Episode], count: int, context: int, horizon: int, seed: int
) -> list[Sample]:
    """``count`` stretches of ``context + horizon`` frames, drawn from episodes that are long enough."""
    rng = np.random.default_rng(seed)
    long = [e for e in episodes if len(e.frames) >= context + horizon]
    samples = []
    for _ in range(count):
        episode = long[int(rng.integers(len(long)))]
        first = int(rng.integers(len(episode.frames) - context - horizon + 1))
        rows = slice(first, first + context + horizon)
        samples.append(Sample(episode.frames[rows], episode.actions[rows], context))
    return samples


def generate(
    model: WorldModel,
    samples: Sequence[Sample],
    policy: AnyPolicy,
    *,
    num_inference_steps: int,
    guidance_scale: float = 1.0,
    seed: int = 0,
    max_batch: int = 8,
    observe: Callable[[Observation], Observation] = lambda observation: observation,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[Frames, RolloutEnded]]:
    """Roll the model out from every sample with the sample's own actions, batched by the engine.

    Args:
        observe: what of a sample's observation the model is given.
        progress: told how many rollouts have ended since it was last told.
    """
    engine = Engine(Limits(max_batch=max_batch))
    events: list[list[RolloutEvent]] = [[] for _ in samples]
    for index, sample in enumerate(samples):
        request = RolloutRequest(
            observe(sample.observation),
            sample.commanded,
            policy,
            seed + index,
            num_inference_steps,
            guidance_scale,
        )
        engine.submit(Rollout(model, request, events[index].append))
    done = 0
    while not engine.idle:
        engine.tick()
        ended = sum(isinstance(e[-1], RolloutEnded) for e in events if e)
        if progress and ended > done:
            progress(ended - done)
            done = ended
    results: list[tuple[Frames, RolloutEnded]] = []
    for collected in events:
        end = collected[-1]
        assert isinstance(end, RolloutEnded)
        if end.error:
            raise end.error
        chunks = [event.frames for event in collected if isinstance(event, ChunkFinished)]
        results.append(({name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}, end))
    return results


def frame_errors(frames: Frames, truth: Frames) -> dict[str, float]:
    """PSNR (dB) and SSIM of RGB, mean absolute error of depth, over frames of equal number."""
    rgb, true = frames["rgb"].astype(np.float64), truth["rgb"].astype(np.float64)
    mse = np.square(rgb - true).mean()
    ssim = [
        structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in zip(rgb, true, strict=True)
    ]
    return {
        "psnr": float(10 * np.log10(255**2 / max(mse, 1e-10))),
        "ssim": float(np.mean(ssim)),
        "depth_error": float(np.abs(frames["depth"] - truth["depth"]).mean()),
    }


def repeat_last(sample: Sample) -> Frames:
    """The baseline that any world model must beat: nothing changes."""
    last = sample.frames[sample.context - 1]
    repeated = np.broadcast_to(last, (len(sample.commanded), *last.shape))
    return {"rgb": repeated[..., :3], "depth": repeated[..., 3].astype(np.float32)}


def view_moves(sample: Sample) -> bool:
    """Whether the view changed by more than flicker while the sample was recorded."""
    truth = sample.truth["rgb"].astype(np.float32)
    return bool(np.abs(truth[-1] - sample.frames[sample.context - 1, ..., :3]).mean() > 8.0)


def mean_errors(errors: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each error."""
    return {key: float(np.mean([e[key] for e in errors])) for key in errors[0]}


def first_chunk_report(samples: Sequence[Sample], generated: Sequence[Frames]) -> dict[str, Any]:
    """Errors of the model and of repeating the last frame, over all samples and where the view moves."""
    moving = [view_moves(sample) for sample in samples]
    model = [frame_errors(frames, s.truth) for s, frames in zip(samples, generated, strict=True)]
    still = [frame_errors(repeat_last(s), s.truth) for s in samples]
    report: dict[str, Any] = {"samples": len(samples), "moving_samples": sum(moving)}
    for name, errors in (("model", model), ("repeat_last_frame", still)):
        report[name] = mean_errors(errors)
        if any(moving):
            report[f"{name}_where_the_view_moves"] = mean_errors(
                [e for e, moves in zip(errors, moving, strict=True) if moves]
            )
    return report


def control_accuracy(
    classifier: InverseDynamics, samples: Sequence[Sample], generated: Sequence[Frames], names: Sequence[str]
) -> dict[str, Any]:
    """Share of commanded actions that the classifier recognises, in generated and in real frames.

    The last ``AFTER - 1`` frames of a rollout only complete the windows before them.
    """
    hits: dict[str, list[NDArray[np.bool_]]] = {"generated": [], "real": []}
    commanded = []
    for sample, frames in zip(samples, generated, strict=True):
        scored = len(sample.commanded) - (AFTER - 1)
        indices = torch.arange(sample.context, sample.context + scored)
        assert sample.context >= BEFORE
        truth = np.array(sample.commanded[:scored])
        commanded.append(truth)
        whole = np.concatenate([sample.frames[: sample.context, ..., :3], frames["rgb"]])
        hits["generated"].append(recognised(classifier, whole, indices) == truth)
        hits["real"].append(recognised(classifier, sample.frames[..., :3], indices) == truth)
    actions = np.concatenate(commanded)
    report: dict[str, Any] = {"rollouts": len(samples), "frames": len(commanded[0])}
    for name, parts in hits.items():
        hit = np.concatenate(parts)
        report[name] = {
            "accuracy": float(hit.mean()),
            "by_action": {
                n: float(hit[actions == i].mean()) for i, n in enumerate(names) if (actions == i).any()
            },
            "last_quarter": float(np.stack(parts)[:, -len(commanded[0]) // 4 :].mean()),
        }
    return report
