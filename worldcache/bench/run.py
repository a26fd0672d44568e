"""The benchmark: every entry on the same work, results written as they come.

Knows nothing of tables, plots or the command line.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from worldcache.bench.calibrated import PolicyMaker
from worldcache.bench.entries import UNCACHED, Entry
from worldcache.bench.external import generate_hooked, residual_ratios
from worldcache.bench.measures import Pictures, closeness, faithfulness
from worldcache.bench.settings import Setting
from worldcache.bench.solvers import EULER, flow_shift, make_sampler
from worldcache.bench.store import Key, Record, Store
from worldcache.bench.tuning import tune, tune_blind
from worldcache.bench.work import Material, Work, stack
from worldcache.bench.wrapper import BenchWorldModel
from worldcache.errors import WorldCacheError
from worldcache.models.base import WorldModel
from worldcache.policies.registry import AnyPolicy
from worldcache.policies.replay import replay
from worldcache.training.evaluate import control_accuracy, generate

CHUNKS, ROLLOUTS, REFERENCE = "chunks", "rollouts", "reference"


@dataclass(frozen=True)
class Outcome:
    """What an entry generated.

    Attributes:
        pictures: by modality ``[S, F, H, W, C]``, 0 to 1.
        steps_total, steps_full: per chunk, means.
        seconds: of the whole batched run.
        decisions: of the first chunk, a letter a step; empty for hooks.
    """

    pictures: Pictures
    steps_total: float
    steps_full: float
    seconds: float
    decisions: str = ""


@dataclass
class Bench:
    """One model at one setting.

    Args:
        model: the model, as ``load_model`` returns it.
        digest: tells weights apart; results of others are not reused.
        setting: the circumstances.
        material: what is generated.
        store: where results are kept.
        num_steps: denoise steps per chunk.
        max_batch: rows of a backbone call.
    """

    model: WorldModel
    digest: str
    setting: Setting
    material: Material
    store: Store
    num_steps: int = 50
    max_batch: int = 16
    _counts: dict[str, float] = field(default_factory=dict, init=False)
    _ratios: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._tuning = self.material.tuning()
        self._policies = PolicyMaker(
            BenchWorldModel(self.model, self._sampler_of(UNCACHED)),
            self._tuning,
            self.setting,
            num_steps=self.num_steps,
            seed=self._seed + 1_000,
        )

    def run(
        self,
        entries: Sequence[Entry],
        *,
        only: str = "",
        progress: Callable[[str, int, int], None] = lambda label, done, total: None,
    ) -> None:
        """Measure what is not measured yet.

        Args:
            entries: what to compare.
            only: a regular expression that labels must match; the uncached run is always there.
            progress: told of a label, the entries done and the entries in all.
        """
        chosen = [e for e in entries if re.search(only, e.label)]
        base = self.setting.name == "base"
        jobs = [(CHUNKS, e) for e in chosen if base or e.everywhere]
        if base and self.material.sizes.reference_chunks:
            jobs += [(REFERENCE, e) for e in chosen if e.reference]
        if base and self.material.sizes.rollouts:
            jobs += [(ROLLOUTS, e) for e in chosen if e.rollouts]
        for index, (part, entry) in enumerate(jobs):
            progress(f"{part}: {entry.label}", index, len(jobs))
            self.measure(part, entry)
        progress("", len(jobs), len(jobs))

    def measure(self, part: str, entry: Entry) -> Record:
        """The record of an entry, made now if there is none. A failure is recorded, and tried again."""
        key = Key(self.model.info.id, self.setting.name, part, entry.label)
        terms = {"run": self._terms(part), "spec": entry.spec()}
        found = self.store.find(key, terms)
        if found is not None:
            return found
        about = {"family": entry.family, "policy": entry.policy}
        try:
            parameters = self.settle(entry)
            outcome, values = self._measure(part, entry, parameters)
        except Exception as error:
            if not (isinstance(error, WorldCacheError) or entry.hook):
                raise
            return self.store.add(key, terms, {**about, "failure": f"{type(error).__name__}: {error}"})
        facts = {
            "parameters": parameters,
            "steps_total": outcome.steps_total,
            "steps_full": outcome.steps_full,
            "seconds": outcome.seconds,
            "decisions": outcome.decisions,
        }
        return self.store.add(key, terms, {**about, **facts, **values})

    def settle(self, entry: Entry) -> dict[str, Any]:
        """The entry's parameters, the tuned one among them."""
        parameters = dict(entry.parameters)
        if entry.tune is None:
            return parameters
        search = entry.tune
        if search.blind and search.integer:
            value: float = tune_blind(
                search, lambda v: self._schedule(entry, {**parameters, search.parameter: v})
            )
        else:
            value = tune(search, lambda v: self._count_full(entry, {**parameters, search.parameter: v}))
        return {**parameters, search.parameter: value}

    def _schedule(self, entry: Entry, parameters: dict[str, Any]) -> list[bool]:
        """Which steps are FULL, of a policy for which random outputs are as good as any."""
        outputs = torch.randn((self.num_steps, 8, 2), generator=torch.Generator().manual_seed(0))
        complete = {**self._policies.calibration(entry.policy), **parameters}
        full: list[bool] = replay(outputs, entry.policy, **complete).is_full.tolist()
        return full

    def _count_full(self, entry: Entry, parameters: dict[str, Any]) -> float:
        """FULL steps per chunk, of a policy that looks on the chunks for tuning."""
        assert entry.tune is not None
        memo = repr((entry.policy, entry.hook, sorted(parameters.items(), key=str)))
        if memo not in self._counts:
            self._counts[memo] = (
                sum(self._schedule(entry, parameters))
                if entry.tune.blind
                else self.generate(entry, parameters, self._tuning, seed=1_000).steps_full
            )
        return self._counts[memo]

    def policy(self, entry: Entry, parameters: dict[str, Any]) -> AnyPolicy:
        """The entry's policy, with its calibrated parameters filled in."""
        return self._policies.make(entry.policy, parameters)

    def generate(
        self,
        entry: Entry,
        parameters: dict[str, Any],
        work: Work,
        *,
        seed: int = 0,
        num_steps: int | None = None,
    ) -> Outcome:
        """Generate the work as the entry says."""
        steps = entry.steps or num_steps or self.num_steps
        began = time.perf_counter()
        if entry.hook:
            latents, full = generate_hooked(
                self.model,
                work.samples,
                entry.hook,
                {**self._hook_calibration(entry.hook, steps), **parameters},
                self.setting,
                num_steps=steps,
                batch=self.max_batch,
                seed=self._seed + seed,
            )
            frames = [BenchWorldModel(self.model).decode(latent) for latent in latents]
            return Outcome(self._stacked(frames), steps, full, time.perf_counter() - began)
        results = generate(
            BenchWorldModel(self.model, self._sampler_of(entry)),
            work.samples,
            self.policy(entry, parameters),
            num_inference_steps=steps,
            guidance_scale=self.setting.guidance_scale,
            seed=self._seed + seed,
            max_batch=self.max_batch,
            observe=self.setting.observe,
        )
        seconds = time.perf_counter() - began
        chunks = [chunk for _, end in results for chunk in end.stats.chunks]
        return Outcome(
            self._stacked([frames for frames, _ in results]),
            sum(len(chunk.decisions) for chunk in chunks) / len(chunks),
            sum(chunk.steps_full for chunk in chunks) / len(chunks),
            seconds,
            chunks[0].decisions,
        )

    def _hook_calibration(self, hook: str, num_steps: int) -> dict[str, Any]:
        """What a hook must know of the model; measured once, on the chunks for tuning."""
        if hook != "magcache":
            return {}
        if not self._ratios:
            self._ratios = residual_ratios(
                self.model, self._tuning.samples, self.setting, num_steps, self._seed + 1_000
            )
        return {"mag_ratios": list(self._ratios)}

    def _measure(self, part: str, entry: Entry, parameters: dict[str, Any]) -> tuple[Outcome, dict[str, Any]]:
        frames = self.model.info.chunk_frames
        if part == REFERENCE:
            work = self._work(CHUNKS).first(self.material.sizes.reference_chunks)
            outcome = self.generate(entry, parameters, work)
            return outcome, {"to_reference": closeness(outcome.pictures, self._kept(part), frames)}
        work = self._work(part)
        outcome = self.generate(entry, parameters, work)
        uncached = self._keep(part, outcome.pictures) if entry.label == UNCACHED.label else self._kept(part)
        units = {modality.name: modality.high for modality in self.model.info.modalities}
        values: dict[str, Any] = {
            "to_uncached": closeness(outcome.pictures, uncached, frames),
            "to_truth": faithfulness(outcome.pictures, work.truth, frames, units, work.moving),
        }
        if part == ROLLOUTS and self.material.sizes.judge_steps:
            values["control"] = self._control(work, outcome.pictures)
        return outcome, values

    def _control(self, work: Work, pictures: Pictures) -> dict[str, Any]:
        rgb = (pictures["rgb"] * 255).round().to(torch.uint8).numpy()
        names = self.model.info.action_space.describe()["names"]
        classifier = self.material.classifier()
        return control_accuracy(classifier, work.samples, [{"rgb": frames} for frames in rgb], names)

    def _sampler_of(self, entry: Entry) -> Callable[[int], Any]:
        shift = self.setting.shift
        if entry.solver is None and shift is None:
            return self.model.sampler
        own = flow_shift(self.model) if shift is None else shift
        return lambda num_steps: make_sampler(entry.solver or EULER, num_steps, own)

    def _work(self, part: str) -> Work:
        return self.material.rollouts() if part == ROLLOUTS else self.material.chunks()

    def _kept(self, part: str) -> Pictures:
        """The pictures that others are compared with, generated now if they are not in the folder."""
        path = self._path(part)
        if path.exists():
            kept = torch.load(path, weights_only=True)
            if kept["terms"] == repr(self._terms(part)):
                pictures: Pictures = kept["pictures"]
                return pictures
        if part == REFERENCE:
            sizes = self.material.sizes
            work = self._work(CHUNKS).first(sizes.reference_chunks)
            outcome = self.generate(UNCACHED, {}, work, num_steps=sizes.reference_steps)
        else:
            outcome = self.generate(UNCACHED, {}, self._work(part))
        return self._keep(part, outcome.pictures)

    def _keep(self, part: str, pictures: Pictures) -> Pictures:
        path = self._path(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"terms": repr(self._terms(part)), "pictures": dict(pictures)}, path)
        return pictures

    def _path(self, part: str) -> Path:
        return self.material.folder / f"{self.model.info.id}-{self.setting.name}-{part}.pt"

    def _terms(self, part: str) -> dict[str, Any]:
        """What results depend on besides the entry."""
        sizes = asdict(self.material.sizes)
        needed = {
            CHUNKS: ("chunks",),
            ROLLOUTS: ("rollouts", "rollout_frames"),
            REFERENCE: ("reference_chunks", "reference_steps", "chunks"),
        }[part]
        return {
            "weights": self.digest,
            "setting": asdict(self.setting),
            "steps": self.num_steps,
            "seed": self._seed,
            **{name: sizes[name] for name in needed},
        }

    @property
    def _seed(self) -> int:
        return self.material.sizes.seed

    def _stacked(self, frames: Sequence[Any]) -> Pictures:
        return {m.name: stack(frames, m.name) for m in self.model.info.modalities}
