"""Plan toward a picture: which actions lead from a start to what the goal shows?

The cross-entropy method draws candidates, the server dreams what would come of each, 16 in one request and in
shared batches, and the best ones say where to draw next. The best of all is then played. A picture shows the
start, the goal, what was reached, and how far from the goal every candidate ended.

    python examples/plan_to_goal.py --url http://127.0.0.1:8000 --output plan.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from worldcache.client import Branch, Client, Session

Frame = NDArray[np.uint8]
"""``[H, W, 3]``."""

INK, FAINT, ACCENT = "#222222", "#9a9a9a", "#c2410c"
SCALE, GAP, LINE = 4, 16, 20
CHART_HEIGHT = 220


class ActionSequences:
    """A distribution of sequences of actions: what each step does, and how readily it repeats the one before.

    Args:
        steps: of a sequence.
        actions: to choose from at each step.
        hold: probability that a step repeats the one before.
        rate: how far one lesson moves the distribution.
    """

    def __init__(self, steps: int, actions: int, hold: float = 0.5, rate: float = 0.7) -> None:
        self._hold, self._rate = hold, rate
        self._shares = np.full((steps, actions), 1 / actions)

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Sequences, ``[count, steps]``."""
        steps, actions = self._shares.shape
        drawn = np.stack([rng.choice(actions, count, p=shares) for shares in self._shares], axis=1)
        held = rng.random((count, steps)) < self._hold
        for step in range(1, steps):
            drawn[:, step] = np.where(held[:, step], drawn[:, step - 1], drawn[:, step])
        return drawn

    def learn(self, best: NDArray[np.int64]) -> None:
        """Move toward the best sequences, ``[count, steps]``."""
        shares = np.eye(self._shares.shape[1])[best].mean(axis=0)
        self._shares += self._rate * (shares - self._shares)


@dataclass
class Search:
    """Every candidate so far, by round.

    Attributes:
        candidates: of each round, ``[count, steps]``.
        distances: from the goal, of each round, ``[count]``.
    """

    candidates: list[NDArray[np.int64]] = field(default_factory=list)
    distances: list[NDArray[np.float64]] = field(default_factory=list)

    def best(self, count: int) -> NDArray[np.int64]:
        """The candidates that ended nearest to the goal, ``[count, steps]``, nearest first."""
        order = np.argsort(np.concatenate(self.distances), kind="stable")
        return np.concatenate(self.candidates)[order[:count]]


def distance(frame: Frame, goal: Frame) -> float:
    """Root mean square difference in 8-bit counts."""
    return float(np.sqrt(np.mean((frame.astype(np.float64) - goal) ** 2)))


def final_distance(branch: Branch, goal: Frame) -> float:
    """How far from the goal a candidate ended; infinitely far if the server could not dream it."""
    return float("inf") if branch.error else distance(branch.frames["rgb"][-1], goal)


def search(session: Session, goal: Frame, options: argparse.Namespace) -> Search:
    """Look for actions that lead to the goal; the session stays where it is."""
    rng = np.random.default_rng(options.seed)
    sequences = ActionSequences(options.steps, len(action_names(session)))
    found = Search()
    for number in range(1, options.rounds + 1):
        candidates = sequences.draw(options.candidates, rng)
        asked = np.repeat(candidates, session.frames_per_step, axis=1).tolist()
        branches = session.plan(asked, frames="last").branches
        distances = np.array([final_distance(branch, goal) for branch in branches])
        found.candidates.append(candidates)
        found.distances.append(distances)
        sequences.learn(found.best(options.elite))
        print(f"round {number}: nearest {distances.min():.2f}, median {np.median(distances):.2f}", flush=True)
    return found


def action_names(session: Session) -> tuple[str, ...]:
    """Of a world with discrete actions."""
    if session.action_space.names is None or session.action_space.type != "discrete":
        raise SystemExit(f"--model: {session.model} has no discrete actions to plan with")
    return session.action_space.names


def play(session: Session, actions: Sequence[Any]) -> list[Frame]:
    """Take a step for each action; the last frame of each."""
    return [session.step([action]).frames["rgb"][-1] for action in actions]


def load_goal(path: str, like: Frame) -> Frame:
    """A picture as large as the frames are."""
    with Image.open(path) as picture:
        goal = np.asarray(picture.convert("RGB"))
    if goal.shape != like.shape:
        (height, width), (has_height, has_width) = like.shape[:2], goal.shape[:2]
        raise SystemExit(f"--goal: {has_width}x{has_height}, but the model's frames are {width}x{height}")
    return goal


class Sheet:
    """A page to put pictures and text on."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self.image)
        self._font = ImageFont.load_default(14)

    def text(self, x: float, y: float, text: str, colour: str = INK, anchor: str = "lt") -> None:
        self._draw.text((x, y), text, colour, self._font, anchor)

    def frame(self, x: int, y: int, frame: Frame, width: int, caption: str) -> None:
        """A frame enlarged to a width, with its caption above."""
        self.text(x, y, caption)
        height = round(frame.shape[0] * width / frame.shape[1])
        kind = Image.Resampling.NEAREST if width % frame.shape[1] == 0 else Image.Resampling.BICUBIC
        self.image.paste(Image.fromarray(frame).resize((width, height), kind), (x, y + LINE))

    def dot(self, x: float, y: float, colour: str) -> None:
        self._draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        self._draw.line(points, colour, 2)


def draw_distances(sheet: Sheet, top: int, found: Search, marks: dict[str, float]) -> None:
    """A column of dots for each round, the nearest so far as a line, and heights with a name."""
    left, right, bottom = 150, sheet.image.width - GAP, top + CHART_HEIGHT
    finite = [values[np.isfinite(values)] for values in found.distances]
    highest = 1.05 * max([*marks.values(), *np.concatenate(finite)])
    if highest == 0:
        highest = 1.0

    def height(value: float) -> float:
        return bottom - (bottom - top) * value / highest

    sheet.text(GAP, bottom, "0", FAINT, "lm")
    sheet.line([(left, bottom), (right, bottom)], FAINT)
    for name, value in marks.items():
        sheet.line([(left, height(value)), (right, height(value))], FAINT)
        sheet.text(GAP, height(value), f"{name} {value:.1f}", INK, "lm")
    width = (right - left) / len(finite)
    nearest: list[tuple[float, float]] = []
    so_far = float("inf")
    for number, distances in enumerate(finite):
        for index, value in enumerate(distances):
            sheet.dot(left + width * (number + 0.2 + 0.6 * index / len(distances)), height(value), INK)
        so_far = min([so_far, *distances])
        middle = left + width * (number + 0.5)
        nearest.append((middle, height(so_far)))
        sheet.text(middle, bottom + 6, f"round {number + 1}", INK, "mt")
    sheet.line(nearest, ACCENT)
    for x, y in nearest:
        sheet.dot(x, y, ACCENT)


def draw(
    start: Frame,
    goal: Frame,
    seen: Sequence[Frame],
    names: Sequence[str],
    found: Search,
    marks: dict[str, float],
) -> Image.Image:
    """Start, goal and what was reached; the way there; and every candidate's distance from the goal."""
    large = SCALE * start.shape[1]
    width = 3 * large + 4 * GAP
    small = (width - GAP) // len(seen) - GAP
    aspect = start.shape[0] / start.shape[1]
    way = GAP + LINE + round(large * aspect) + GAP
    chart = way + LINE + round(small * aspect) + 2 * GAP
    sheet = Sheet(width, chart + LINE + CHART_HEIGHT + 2 * GAP + LINE)
    captions = ("start", "goal", f"reached, {distance(seen[-1], goal):.1f} from the goal")
    for index, (frame, caption) in enumerate(zip((start, goal, seen[-1]), captions, strict=True)):
        sheet.frame(GAP + index * (large + GAP), GAP, frame, large, caption)
    for index, (frame, name) in enumerate(zip(seen, names, strict=True)):
        sheet.frame(GAP + index * (small + GAP), way, frame, small, name)
    sheet.text(
        GAP, chart, "RMS difference from the goal where each candidate ended; orange: the nearest so far"
    )
    draw_distances(sheet, chart + LINE + GAP, found, marks)
    return sheet.image


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
    parser.add_argument("--start", default="far_right", help="of the model's starts")
    parser.add_argument(
        "--goal", metavar="PICTURE", help="a file as large as the frames; or else it is dreamt"
    )
    parser.add_argument(
        "--goal-actions",
        nargs="+",
        default=["MOVE_LEFT"] * 5 + ["NOOP"],
        metavar="ACTION",
        help="one a step, that a goal is dreamt with, from another seed; the planner does not know them",
    )
    parser.add_argument("--cache", default="fast", help="preset")
    parser.add_argument("--seed", type=int, default=7, help="of the world and of the search")
    parser.add_argument("--steps", type=positive, default=6, help="of a plan")
    parser.add_argument("--candidates", type=positive, default=16, help="in one request")
    parser.add_argument("--rounds", type=positive, default=5, help="requests")
    parser.add_argument("--elite", type=positive, default=4, help="candidates that are learned from")
    parser.add_argument("--output", default="plan.png", help="picture to write")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    terms: dict[str, Any] = {"model": options.model, "start": options.start, "cache": options.cache}
    with (
        Client(options.url, api_key=options.api_key) as client,
        client.sessions.create(**terms, seed=options.seed) as session,
    ):
        names = action_names(session)
        start = play(session, [0])[-1]
        marks = {}
        if options.goal is None:
            with client.sessions.create(**terms, seed=options.seed + 1) as other:
                goal = play(other, [0, *options.goal_actions])[-1]
        else:
            goal = load_goal(options.goal, start)
        found = search(session, goal, options)
        best = found.best(1)[0].tolist()
        seen = play(session, best)
        marks = {"start": distance(start, goal), "reached": distance(seen[-1], goal)}
    chosen = [names[action] for action in best]
    print(f"plan: {' '.join(chosen)}")
    print(f"distance from the goal: {marks['start']:.2f} at the start, {marks['reached']:.2f} reached")
    draw(start, goal, seen, chosen, found, marks).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
