"""How much faster is a step of eight worlds in one request than eight single ones, one after another?

Both are timed in turn, on the same server and from the same starts; the answer is a ratio, since times depend
on the machine and on what else it does.

    python examples/vector_speed.py --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import gymnasium
import numpy as np
import worldcache.client.gym  # noqa: F401  (registers the environments)


def seconds(work: Callable[[], Any]) -> float:
    """How long something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare(
    singles: Sequence[gymnasium.Env[Any, Any]],
    vector: gymnasium.vector.VectorEnv[Any, Any, Any],
    repeats: int,
    seed: int,
) -> list[tuple[float, float]]:
    """Seconds of a step of all single worlds and of the vector, with the same actions: a pair a repeat.

    Which of them goes first changes every time. The first pair warms both up and is left out.
    """
    vector.action_space.seed(seed)
    pairs = []
    for repeat in range(repeats + 1):
        actions = vector.action_space.sample()

        def step_singles(actions: Any = actions) -> None:
            for world, action in zip(singles, actions, strict=True):
                world.step(action)

        def step_vector(actions: Any = actions) -> None:
            vector.step(actions)

        if repeat % 2:
            together, alone = seconds(step_vector), seconds(step_singles)
        else:
            alone, together = seconds(step_singles), seconds(step_vector)
        pairs.append((alone, together))
    return pairs[1:]


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
    parser.add_argument("--model", default="doom", help="of the server's")
    parser.add_argument("--start", default="centre", help="of the model's starts")
    parser.add_argument("--cache", default="fast", help="preset")
    parser.add_argument("--worlds", type=positive, default=8, help="in the vector, and single ones")
    parser.add_argument("--repeats", type=positive, default=9, help="of both measurements")
    parser.add_argument("--seed", type=int, default=0, help="of the worlds and the actions")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    terms = {
        "id": "WorldCache/World-v0",
        "model": options.model,
        "start": options.start,
        "cache": options.cache,
        "base_url": options.url,
        "api_key": options.api_key,
    }
    with ExitStack() as stack:
        vector = gymnasium.make_vec(**terms, num_envs=options.worlds, vectorization_mode="vector_entry_point")
        stack.callback(vector.close)
        singles = []
        for _ in range(options.worlds):
            world = gymnasium.make(**terms)
            stack.callback(world.close)
            singles.append(world)
        vector.reset(seed=options.seed)
        for index, world in enumerate(singles):
            world.reset(seed=options.seed + index)
        pairs = compare(singles, vector, options.repeats, options.seed)
    ratios = [alone / together for alone, together in pairs]
    alone, together = np.median(pairs, axis=0)
    print(f"{options.worlds} single worlds in turn: {alone * 1000:.0f} ms a step, median of {len(pairs)}")
    print(f"one vector of {options.worlds}:        {together * 1000:.0f} ms a step")
    print(f"ratio: {np.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
