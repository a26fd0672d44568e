"""Train an agent in a dream: bring the monster to the middle of the view, and keep it there.

The worlds are Gymnasium environments, eight of them stepped by one request. The reward is read from the
frames: how much nearer to the middle the monster came. The policy is linear in where the monster is seen, 36
weights, and learns by REINFORCE. It is compared with one that acts at random, over seeds that it never saw.

    python examples/train_agent.py --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import worldcache.client.gym  # noqa: F401  (registers the environments)
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HORIZON = slice(20, 28)
"""Rows, of 48, that a monster at the far wall fills."""
FAINTEST = 5.0
"""Least sum of blue above green, in 8-bit counts, that is a monster and not noise."""
PLACES = 8
"""Parts of the view that the policy tells apart."""
REPORT_EVERY = 5
"""Batches."""
STARTS = ("right", "left", "far_right", "moving_left", "moving_right", "firing_right", "centre", "firing")
"""With a monster in view."""


def blue_by_column(frames: NDArray[np.uint8]) -> Floats:
    """How much bluer than green each column is at the horizon: the room is brown there, the monster is not.

    Args:
        frames: ``[..., H, W, 3]``.

    Returns:
        ``[..., W]`` in 8-bit counts; 0 everywhere if no monster is seen.
    """
    rows = frames[..., HORIZON, :, :].astype(np.float64)
    columns = np.clip(rows[..., 2] - rows[..., 1], 0, None).sum(axis=-2)
    return np.where(columns.sum(axis=-1, keepdims=True) < FAINTEST, 0.0, columns)


def closeness(frames: NDArray[np.uint8]) -> Floats:
    """1 with the monster in the middle of the view, 0 at its edge or out of sight.

    Args:
        frames: ``[..., H, W, 3]``.

    Returns:
        ``[...]``.
    """
    columns = blue_by_column(frames)
    total = columns.sum(axis=-1)
    half = columns.shape[-1] / 2
    place = columns @ (np.arange(2 * half) + 0.5) / np.maximum(total, FAINTEST)
    return np.where(total > 0, 1 - np.abs(place - half) / half, 0.0)


def progress(before: NDArray[np.uint8], action: Any, frames: NDArray[np.uint8]) -> float:
    """The reward of a step: how much closer to the middle the monster is."""
    return float(closeness(frames[-1]) - closeness(before))


def features(observations: NDArray[np.uint8]) -> Floats:
    """Share of the monster in each part of the view, and whether none is seen; ``[N, PLACES + 1]``."""
    columns = blue_by_column(observations)
    parts = columns.reshape(len(columns), PLACES, -1).sum(axis=-1)
    total = parts.sum(axis=-1, keepdims=True)
    return np.hstack([parts / np.maximum(total, FAINTEST), total == 0])


class LinearPolicy:
    """Actions drawn from a softmax of scores that are linear in the features."""

    def __init__(self, actions: int) -> None:
        self.weights = np.zeros((PLACES + 1, actions))

    def shares(self, seen: Floats) -> Floats:
        """Probability of each action, ``[N, A]``."""
        scores = seen @ self.weights
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def act(self, seen: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
        """An action for each row of features."""
        shares = self.shares(seen)
        return (shares.cumsum(axis=-1) > rng.random((len(shares), 1))).argmax(axis=-1)


@dataclass(frozen=True)
class Episodes:
    """What happened in ``N`` worlds over ``T`` steps.

    Attributes:
        seen: features before each step, ``[T, N, PLACES + 1]``.
        actions: ``[T, N]``.
        rewards: ``[T, N]``.
        final: closeness at the end, ``[N]``.
    """

    seen: Floats
    actions: NDArray[np.int64]
    rewards: Floats
    final: Floats


def collect(
    worlds: gymnasium.vector.VectorEnv[Any, Any, Any],
    policy: LinearPolicy,
    steps: int,
    seed: int,
    starts: Sequence[str],
) -> Episodes:
    """Play an episode in every world."""
    rng = np.random.default_rng(seed)
    observations, _ = worlds.reset(seed=seed, options={"start": list(starts)})
    seen, actions, rewards = [], [], []
    for _ in range(steps):
        seen.append(features(observations))
        actions.append(policy.act(seen[-1], rng))
        observations, reward, terminated, truncated, _ = worlds.step(actions[-1])
        rewards.append(reward)
        if np.any(terminated | truncated):
            raise SystemExit("an episode ended early: the server closed its session")
    return Episodes(np.array(seen), np.array(actions), np.array(rewards), closeness(observations))


class Reinforce:
    """Policy gradient, with an average of what comes at each step as its baseline.

    Args:
        policy: that learns.
        rate: how far one batch of episodes moves the weights.
        discount: how much of the next step's reward an action is credited with.
    """

    def __init__(self, policy: LinearPolicy, rate: float = 40.0, discount: float = 0.6) -> None:
        self._policy, self._rate, self._discount = policy, rate, discount

    def learn(self, episodes: Episodes) -> None:
        """Make what went better than the average likelier."""
        advantages = self._returns(episodes.rewards)
        advantages -= advantages.mean()
        chosen = np.eye(self._policy.weights.shape[1])[episodes.actions]
        surprise = chosen - self._policy.shares(episodes.seen)
        gradient = np.einsum("tnf,tna,tn->fa", episodes.seen, surprise, advantages)
        self._policy.weights += self._rate * gradient / advantages.size

    def _returns(self, rewards: Floats) -> Floats:
        returns = np.array(rewards)
        for step in range(len(returns) - 2, -1, -1):
            returns[step] += self._discount * returns[step + 1]
        return returns


@dataclass(frozen=True)
class Score:
    """Of a policy over some episodes: means, with the standard error of the closeness."""

    episodes: int
    total_reward: float
    closeness: float
    closeness_error: float


def evaluate(
    worlds: gymnasium.vector.VectorEnv[Any, Any, Any],
    policy: LinearPolicy,
    options: argparse.Namespace,
    starts: Sequence[str],
) -> Score:
    """Play episodes whose seeds training never uses; the same ones for every policy."""
    played = [
        collect(worlds, policy, options.steps, options.seed + 1_000_000 + 1_000 * index, starts)
        for index in range(options.evaluations)
    ]
    rewards = np.concatenate([episodes.rewards.sum(axis=0) for episodes in played])
    final = np.concatenate([episodes.final for episodes in played])
    error = final.std(ddof=1) / np.sqrt(len(final)) if len(final) > 1 else 0.0
    return Score(len(final), float(rewards.mean()), float(final.mean()), float(error))


def bar(value: float, width: int = 40) -> str:
    """A share of 1 as a bar of text."""
    return "#" * round(width * min(max(value, 0.0), 1.0))


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--api-key", help="if the server wants one")
    parser.add_argument("--model", default="doom", help="with discrete actions")
    parser.add_argument("--starts", nargs="+", default=STARTS, help="of the model's, in turn, one a world")
    parser.add_argument("--worlds", type=positive, default=8, help="stepped at once")
    parser.add_argument("--batches", type=positive, default=30, help="of an episode in every world")
    parser.add_argument("--steps", type=positive, default=8, help="of an episode")
    parser.add_argument("--full-steps", type=positive, default=3, help="denoise steps computed for a chunk")
    parser.add_argument("--evaluations", type=positive, default=4, help="batches that a policy is judged by")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--output", metavar="FILE", help="JSON to write the results to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    starts = [options.starts[index % len(options.starts)] for index in range(options.worlds)]
    worlds = gymnasium.make_vec(
        "WorldCache/World-v0",
        num_envs=options.worlds,
        vectorization_mode="vector_entry_point",
        model=options.model,
        base_url=options.url,
        api_key=options.api_key,
        cache={"policy": "forecast", "full_steps": options.full_steps},
        reward=progress,
    )
    try:
        if not isinstance(worlds.single_action_space, gymnasium.spaces.Discrete):
            raise SystemExit(f"--model: {options.model} has no discrete actions")
        policy = LinearPolicy(int(worlds.single_action_space.n))
        random = evaluate(worlds, policy, options, starts)
        print(f"random   {describe(random)}", flush=True)
        teacher, curve, begun = Reinforce(policy), [], time.monotonic()
        for batch in range(options.batches):
            episodes = collect(worlds, policy, options.steps, options.seed + 1_000 * batch, starts)
            teacher.learn(episodes)
            curve.append(float(episodes.final.mean()))
            if len(curve) % REPORT_EVERY == 0:
                recent = float(np.mean(curve[-REPORT_EVERY:]))
                print(f"batches to {len(curve):3d}: closeness {recent:.2f} {bar(recent)}", flush=True)
        seconds = time.monotonic() - begun
        trained = evaluate(worlds, policy, options, starts)
    finally:
        worlds.close()
    print(f"trained  {describe(trained)}, after {len(curve) * len(starts)} episodes in {seconds:.0f} s")
    if options.output is not None:
        results = {"random": asdict(random), "trained": asdict(trained), "curve": curve, "seconds": seconds}
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


def describe(score: Score) -> str:
    return (
        f"closeness {score.closeness:.2f} ± {score.closeness_error:.2f} at the end, "
        f"total reward {score.total_reward:+.2f}, over {score.episodes} episodes"
    )


if __name__ == "__main__":
    main()
