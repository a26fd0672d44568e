"""What is asked for: policies and the requests made of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worldcache.errors import InvalidInput

HOLD = 4
"""Frames for which an action is held."""


@dataclass(frozen=True)
class PolicyChoice:
    """A policy with its parameters, as a request names it."""

    label: str
    cache: dict[str, Any]


def parse_policies(text: str) -> list[PolicyChoice]:
    """``"none,forecast:full_steps=7"`` as choices; several parameters are divided by colons.

    Raises:
        InvalidInput: there is no policy, one comes twice, or a parameter is not ``key=value``.
    """
    choices: list[PolicyChoice] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, *pairs = entry.split(":")
        cache: dict[str, Any] = {"policy": name}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not key or not equals:
                raise InvalidInput(
                    f"{pair!r} in {entry!r} is not key=value, as in forecast:full_steps=7", param="policies"
                )
            try:
                cache[key] = json.loads(value)
            except json.JSONDecodeError:
                cache[key] = value
        label = " ".join([name, *pairs])
        if label in [choice.label for choice in choices]:
            raise InvalidInput(f"{entry!r} is given twice", param="policies")
        choices.append(PolicyChoice(label, cache))
    if not choices:
        raise InvalidInput("name at least one policy", param="policies")
    return choices


def deal(choices: Sequence[PolicyChoice], generator: random.Random) -> Iterator[PolicyChoice]:
    """Choices without end, in random order and equally often: shuffled packs, one after another."""
    while True:
        yield from generator.sample(choices, len(choices))


@dataclass(frozen=True)
class Work:
    """Equal rollouts: one differs from another in its seed, start and actions only.

    Attributes:
        actions: names or numbers to choose from.
        frames, steps: of every rollout; steps per chunk.
    """

    model: str
    starts: Sequence[str]
    actions: Sequence[str]
    frames: int
    steps: int

    @classmethod
    def of(cls, model: dict[str, Any], frames: int, steps: int | None) -> Work:
        """For a model as ``GET /v1/models/{id}`` describes it.

        Raises:
            InvalidInput: the model has no named actions.
        """
        names = model["action_space"].get("names")
        if model["action_space"]["type"] != "discrete":
            raise InvalidInput(
                f"model {model['id']!r} is not driven by named actions; test another", param="model"
            )
        return cls(model["id"], model["starts"], names, frames, steps or model["num_inference_steps"])

    def body(self, choice: PolicyChoice, seed: int, frames: int | None = None) -> dict[str, Any]:
        """The request of a rollout."""
        return {
            "model": self.model,
            "observation": {"start": self.starts[seed % len(self.starts)]},
            "actions": [
                self.actions[(seed + frame // HOLD) % len(self.actions)]
                for frame in range(frames or self.frames)
            ],
            "num_inference_steps": self.steps,
            "seed": seed,
            "cache": choice.cache,
            "output": {"format": "none"},
        }
