"""What is generated: stretches of held-out play, and the classifier that judges obedience."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from worldcache.bench.measures import Pictures
from worldcache.core import ModelInfo
from worldcache.errors import InvalidInput, UnknownName
from worldcache.training.collect import SCENARIOS, Episode, collect, load_episodes, save_episodes
from worldcache.training.evaluate import Sample, draw_samples, view_moves
from worldcache.training.inverse_dynamics import InverseDynamics, train_classifier

HELDOUT_SEED = 10_002
"""As in training: the episodes that a model trained with seed 0 is evaluated on."""

JUDGE_SEED = 20_002
"""Of the episodes that the classifier learns from."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told of a stage's name, its steps done and its steps in all."""


@dataclass(frozen=True)
class Sizes:
    """How much is generated.

    Attributes:
        chunks: held-out single chunks.
        rollouts, rollout_frames: longer ones; 0 rollouts for none.
        reference_chunks, reference_steps: chunks that are compared with many more denoise steps.
        tuning_chunks: chunks on which a threshold is sought that hits a number of FULL steps.
        heldout_frames, judge_frames: frames to play where no recording is given.
        judge_steps: of the classifier's training.
        seed: of the choice of stretches, and of all noise.
    """

    chunks: int = 64
    rollouts: int = 16
    rollout_frames: int = 32
    reference_chunks: int = 16
    reference_steps: int = 400
    tuning_chunks: int = 4
    heldout_frames: int = 6_000
    judge_frames: int = 12_000
    judge_steps: int = 1_200
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: under which ``load_model`` knows the architecture.
        path: folder of its weights, ``None`` for those that ship with the package.
        scenario: of its world; to play where no recording is given.
        heldout: recording of episodes that the model was not trained on.
        judge: recording of other episodes, for the classifier.
    """

    name: str
    path: Path | None = None
    scenario: str | None = None
    heldout: Path | None = None
    judge: Path | None = None


@dataclass(frozen=True)
class Work:
    """Stretches of held-out play with what really happened.

    Attributes:
        samples: context, actions and true frames.
        truth: the true pictures, 0 to 1.
        moving: whether the view of each sample moves.
    """

    samples: Sequence[Sample]
    truth: Pictures
    moving: tuple[bool, ...]

    def first(self, count: int) -> Work:
        """The first ``count`` samples."""
        return Work(self.samples[:count], {n: t[:count] for n, t in self.truth.items()}, self.moving[:count])


@dataclass
class Material:
    """The work for one model; recordings are read when they are first needed.

    Args:
        subject: whose world is played.
        info: of the model.
        folder: for recordings and the classifier.
        sizes: how much.
    """

    subject: Subject
    info: ModelInfo
    folder: Path
    sizes: Sizes
    progress: Progress = lambda stage, done, total: None
    _heldout: list[Episode] | None = field(default=None, init=False)

    def chunks(self) -> Work:
        return self._draw(self.sizes.chunks, self.info.chunk_frames, self.sizes.seed)

    def rollouts(self) -> Work:
        return self._draw(self.sizes.rollouts, self.sizes.rollout_frames, self.sizes.seed + 1)

    def tuning(self) -> Work:
        """Chunks that no result is measured on."""
        return self._draw(self.sizes.tuning_chunks, self.info.chunk_frames, self.sizes.seed + 2)

    def classifier(self) -> InverseDynamics:
        """Trained once, then read from the folder."""
        path = self.folder / f"{self.info.id}-classifier.pt"
        names = self.info.action_space.describe()["names"]
        if path.exists():
            model = InverseDynamics(len(names))
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        episodes = self._recording("judge", self.subject.judge, self.sizes.judge_frames, JUDGE_SEED)
        model = train_classifier(
            episodes,
            len(names),
            steps=self.sizes.judge_steps,
            progress=lambda step, loss: self.progress("inverse dynamics", step, self.sizes.judge_steps),
        )
        torch.save(model.state_dict(), path)
        return model

    def _draw(self, count: int, horizon: int, seed: int) -> Work:
        if self._heldout is None:
            self._heldout = self._recording(
                "heldout", self.subject.heldout, self.sizes.heldout_frames, HELDOUT_SEED
            )
        samples = draw_samples(self._heldout, count, self.info.context_frames, horizon, seed)
        return Work(samples, true_pictures(samples, self.info), tuple(view_moves(s) for s in samples))

    def _recording(self, name: str, given: Path | None, frames: int, seed: int) -> list[Episode]:
        """Read a recording, playing it first if there is none."""
        path = given or self.folder / f"{self.info.id}-{name}.npz"
        if not path.exists():
            if given is not None:
                raise InvalidInput(f"{given} does not exist", param=name)
            if self.subject.scenario not in SCENARIOS:
                raise UnknownName("scenario", str(self.subject.scenario), SCENARIOS, param=name)
            done = 0

            def tell(collected: int) -> None:
                nonlocal done
                done += collected
                self.progress(f"play {name}", done, frames)

            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".part.npz")
            save_episodes(temporary, collect(SCENARIOS[self.subject.scenario], frames, seed, tell))
            temporary.rename(path)
        return load_episodes(path)


def true_pictures(samples: Sequence[Sample], info: ModelInfo) -> Pictures:
    """What really happened, in the form of a model's pictures: ``[S, F, H, W, C]`` from 0 to 1."""
    return {
        modality.name: stack([sample.truth for sample in samples], modality.name).float() / modality.high
        for modality in info.modalities
    }


def stack(frames: Sequence[Any], name: str) -> torch.Tensor:
    """One modality of many samples, ``[S, F, H, W, C]``."""
    stacked = torch.stack([torch.from_numpy(f[name]) for f in frames])
    return stacked[..., None] if stacked.ndim == 4 else stacked
