"""A drive from the first step to the last, against a server that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from app.drive.player import Player, playing
from app.drive.results import Background, Drive, Findings, summarise_track
from app.loadtest.client import connected, describe
from app.loadtest.measures import spread
from app.loadtest.open import summarise_memory
from app.loadtest.run import Progress, Target
from app.loadtest.server import watching_memory
from app.loadtest.work import PolicyChoice, Work
from worldcache.errors import InvalidInput, WorldCacheError

WARM_STEPS = 2
"""Steps that are not measured."""

PAUSE_STEPS = 1.5
"""Mean time between two actions in free mode, in steps."""

BACKGROUND_FRAMES = 16


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        preset: the cache of the sessions.
        presets: those whose frame rates are measured.
        seconds: of lockstep and free together.
        rate_seconds: of each preset's frame rate.
        together_seconds: of two sessions and the background.
        compute_steps: measured over HTTP before, between and after lockstep and free.
        steps: denoise steps per chunk; ``None`` for the model's own.
        memory_every: seconds between two looks at the server's memory.
    """

    preset: str
    presets: tuple[str, ...]
    seconds: float
    rate_seconds: float
    together_seconds: float
    compute_steps: int
    steps: int | None = None
    memory_every: float = 1.0


async def run(
    plan: Plan, target: Target, model: str, about: Mapping[str, Any], progress: Progress
) -> Findings:
    """Everything in the plan.

    Args:
        model: name of the model to ask for.
        about: for the head of the report.

    Raises:
        InvalidInput: the server cannot do what the plan asks for.
        WorldCacheError: the server stopped answering.
    """
    async with connected(target.url, target.key) as http:
        described = await describe(http, model)
        work = Work.of(described, BACKGROUND_FRAMES, plan.steps)
        try:
            return await _Run(plan, target, http, work, described, progress).findings(about)
        except httpx.HTTPError as error:
            raise WorldCacheError(f"{target.url} stopped answering: {error!r}") from error


class _Run:
    def __init__(
        self,
        plan: Plan,
        target: Target,
        http: httpx.AsyncClient,
        work: Work,
        described: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self._plan, self._target, self._http, self._work = plan, target, http, work
        self._described, self._progress = described, progress
        self._per_step = int(described["chunk_frames"])
        self._computes: list[float] = []

    async def findings(self, about: Mapping[str, Any]) -> Findings:
        plan = self._plan
        for preset in (plan.preset, *plan.presets):
            await self._try_out(preset)
        half = plan.seconds / 2
        await self._compute()
        async with watching_memory(self._target.pid, plan.memory_every) as samples:
            lockstep = await self._drive("lockstep", plan.preset, half)
            await self._compute()
            free = await self._drive("free", plan.preset, half)
        watched = list(samples)
        await self._compute()
        rates = {preset: await self._rate(preset) for preset in plan.presets}
        together, background = await self._together()
        lasted = watched[-1][0] if watched else 0.0
        return Findings(
            about={
                **about,
                "model": self._work.model,
                "steps": self._work.steps,
                "preset": plan.preset,
                "frames_per_step": self._per_step,
            },
            compute=spread(self._computes),
            lockstep=lockstep,
            free=free,
            rates=rates,
            fps=self._described["fps"],
            memory=summarise_memory(watched, lasted),
            first_quarter=_mean([level for at, level in watched if at <= lasted / 4]),
            last_quarter=_mean([level for at, level in watched if at >= lasted * 3 / 4]),
            together=together,
            background=background,
        )

    def _cache(self, name: str) -> str | dict[str, Any]:
        """A preset by its name, or else the policy of that name as it is by default."""
        return name if name in self._described["presets"] else {"policy": name}

    def _body(self, preset: str, seed: int) -> dict[str, Any]:
        """The request of a session."""
        return {
            "model": self._work.model,
            "observation": {"start": self._work.starts[seed % len(self._work.starts)]},
            "num_inference_steps": self._work.steps,
            "seed": seed,
            "cache": self._cache(preset),
        }

    async def _try_out(self, preset: str) -> None:
        """A session that is closed again.

        Raises:
            InvalidInput: the server does not open it; the message is the server's.
        """
        response = await self._http.post("/v1/sessions", json=self._body(preset, 0))
        if response.status_code != 201:
            raise InvalidInput(f"{preset}: {response.status_code}, {response.text[:300]}", param="presets")
        await self._http.delete(response.headers["Location"])

    async def _compute(self) -> None:
        """What steps take over HTTP with nothing else going on."""
        body = self._body(self._plan.preset, 0)
        response = await self._http.post("/v1/sessions", json=body)
        path = response.raise_for_status().headers["Location"]
        total = WARM_STEPS + self._plan.compute_steps
        for number in range(total):
            action = self._work.actions[number % len(self._work.actions)]
            answer = await self._http.post(f"{path}/step", json={"actions": [action]})
            if answer.status_code != 200:
                raise WorldCacheError(f"a step over HTTP failed: {answer.status_code}, {answer.text[:300]}")
            stats = answer.json()["stats"]
            if number >= WARM_STEPS:
                self._computes.append((stats["denoise_ms"] + stats["decode_ms"]) / 1000)
            self._progress("steps over HTTP", "", number + 1, total)
        await self._http.delete(path)

    async def _drive(self, mode: str, preset: str, seconds: float, seed: int = 1) -> Drive:
        """One session in one mode."""
        self._progress(mode, preset, 0, 1)
        async with playing(self._http, self._body(preset, seed), mode, seed) as player:
            await self._play(player, mode, seconds)
        self._progress(mode, preset, 1, 1)
        return summarise_track(player.track, mode, seconds, self._per_step)

    async def _play(self, player: Player, mode: str, seconds: float) -> None:
        if mode == "lockstep":
            await player.lockstep(seconds)
        else:
            await player.free(seconds, PAUSE_STEPS * spread(self._computes).p50)

    async def _rate(self, preset: str) -> Drive:
        """As many frames as come while one action is held."""
        seconds = self._plan.rate_seconds
        self._progress("frame rates", preset, 0, 1)
        async with playing(self._http, self._body(preset, 1), "free", 1) as player:
            await player.watch(seconds)
        self._progress("frame rates", preset, 1, 1)
        return summarise_track(player.track, "free", seconds, self._per_step)

    async def _together(self) -> tuple[list[Drive], Background]:
        """Two sessions at once, and rollouts that give way to them."""
        over = asyncio.Event()
        background = asyncio.create_task(self._rollouts(over))
        seconds = self._plan.together_seconds
        try:
            drives = await asyncio.gather(
                self._drive("lockstep", self._plan.preset, seconds, seed=2),
                self._drive("free", self._plan.preset, seconds, seed=3),
            )
        finally:
            over.set()
        return list(drives), await background

    async def _rollouts(self, over: asyncio.Event) -> Background:
        """One rollout after another in the background, until it is over."""
        succeeded = failed = 0
        choice = PolicyChoice(self._plan.preset, {})
        while not over.is_set():
            body = self._work.body(choice, succeeded + failed)
            body |= {"cache": self._cache(self._plan.preset), "priority": "background"}
            response = await self._http.post("/v1/rollouts", json=body)
            if response.status_code == 200 and response.json()["status"] == "succeeded":
                succeeded += 1
                await self._http.delete(f"/v1/rollouts/{response.json()['id']}")
            else:
                failed += 1
        return Background(succeeded, failed)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
