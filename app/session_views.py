"""Sessions, their steps and plans as clients see them."""

from __future__ import annotations

from typing import Any

from anyio import to_thread

from app.branches import Keep
from app.errors import ApiError
from app.session_store import CommittedStep, Outcome, Session
from app.views import chunk_json, figures_json, pictures_json, seconds_to_ms
from worldcache.core import ModelInfo
from worldcache.errors import InvalidInput


def session_json(session: Session, info: ModelInfo) -> dict[str, Any]:
    """The session object."""
    return {
        "id": session.id,
        "object": "session",
        "model": session.model,
        "created_at": round(session.created_at, 3),
        "expires_at": round(session.expires_at, 3),
        "seed": session.terms.seed,
        "num_inference_steps": session.terms.num_inference_steps,
        "guidance_scale": session.terms.guidance_scale,
        "cache": session.cache,
        "policy": session.terms.policy.name,
        "output": session.output.model_dump(),
        "action_space": info.action_space.describe(),
        "frames_per_step": session.frames_per_step,
        "frames": session.frames,
        "committed_step_id": session.committed_step_id,
        "rewind_from_frame": session.rewind_from_frame,
        "parent": session.parent,
        "websocket": f"/v1/sessions/{session.id}/ws",
        "stats": {
            "steps_total": session.steps_total,
            "steps_full": session.steps_full,
            "steps_cached": session.steps_total - session.steps_full,
            "skip_ratio": round(1 - session.steps_full / session.steps_total, 6)
            if session.steps_total
            else 0.0,
        },
        "metadata": session.metadata,
    }


async def step_json(
    session: Session, step: CommittedStep, info: ModelInfo, keep: Keep = "all"
) -> dict[str, Any]:
    """A step's answer, with all of its frames, the last one or none."""
    return {
        "session_id": session.id,
        "step_id": step.step_id,
        "committed_step_id": session.committed_step_id,
        "frames": await _frames_json(session, step.outcome, info, keep),
        "stats": step_stats(step),
    }


def step_stats(step: CommittedStep) -> dict[str, Any]:
    """A step's ``stats``."""
    return {
        "action_to_frame_ms": seconds_to_ms(step.action_to_frame_seconds),
        **_stats_json(step.outcome),
    }


def modalities_of(session: Session, info: ModelInfo) -> tuple[str, ...]:
    """The modalities that a session answers with."""
    return tuple(session.output.modalities or (modality.name for modality in info.modalities))


async def plan_json(
    session: Session, outcomes: list[Outcome | ApiError | InvalidInput], info: ModelInfo
) -> dict[str, Any]:
    """A plan's answer: its branches in order, each with its frames or its error."""
    branches: list[dict[str, Any]] = []
    for index, outcome in enumerate(outcomes):
        branch: dict[str, Any] = {"index": index, "frames": [], "stats": None, "error": None}
        if isinstance(outcome, Outcome):
            branch["frames"] = await _frames_json(session, outcome, info)
            branch["stats"] = _stats_json(outcome)
        else:
            branch["error"] = {"code": outcome.code, "message": str(outcome)}
        branches.append(branch)
    return {"session_id": session.id, "object": "plan", "branches": branches}


def _stats_json(outcome: Outcome) -> dict[str, Any]:
    """As a rollout's ``stats``."""
    figures = figures_json(
        outcome.stats,
        outcome.frame_count,
        replaced_preset=outcome.replaced_preset,
        expected_seconds=outcome.expected_seconds,
    )
    return {**figures, "chunks": [chunk_json(chunk) for chunk in outcome.stats.chunks]}


async def _frames_json(
    session: Session, outcome: Outcome, info: ModelInfo, keep: Keep = "all"
) -> list[dict[str, Any]]:
    """The frames that were kept, as pictures."""
    names = modalities_of(session, info)

    def encode() -> list[dict[str, Any]]:
        count = len(next(iter(outcome.frames.values()), ()))
        first = {"all": 0, "last": max(0, count - 1), "none": count}[keep]
        return [
            {
                "index": outcome.first_frame + i,
                **pictures_json(
                    {name: outcome.frames[name][i] for name in names}, info, session.output.format
                ),
            }
            for i in range(first, count)
        ]

    return await to_thread.run_sync(encode)
