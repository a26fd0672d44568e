"""Which quality a deadline allows: the best that still meets it, or a refusal that says what would."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from dataclasses import replace

from app.dispatcher import Dispatcher
from app.errors import ApiError
from worldcache.engine.pace import Pacer, budget_policy
from worldcache.engine.rollout import RolloutRequest
from worldcache.models.base import WorldModel


class DeadlinePlanner:
    """Turns the time that is left into a policy.

    Args:
        dispatcher: knows what rollouts take.
        fewest: FULL steps a chunk below which quality is not offered.
        margin: share of the time that is kept back for what cannot be foreseen.
    """

    def __init__(self, dispatcher: Dispatcher, *, fewest: int, margin: float) -> None:
        self._dispatcher, self._fewest, self._margin = dispatcher, fewest, margin

    def plan(
        self, model: WorldModel, request: RolloutRequest, deadline: float, *, choose: bool
    ) -> RolloutRequest:
        """The request, with its deadline and what can be computed until then.

        Args:
            model: that it will run on.
            request: as the client sent it.
            deadline: by ``time.monotonic()``.
            choose: whether the policy is ours to choose. If not, the client's own must meet the deadline.

        Raises:
            ApiError: 504; the message says what would be possible.
        """
        seconds = (deadline - time.monotonic()) * (1 - self._margin)
        if not choose:
            full_steps = self._dispatcher.known_full_steps(model, request)
            if full_steps is None:  # it may be quick: only trying can tell
                full_steps = min(self._fewest, request.num_inference_steps)
            self._check(model, request, seconds, full_steps)
            return replace(request, deadline=deadline)
        steps = request.num_inference_steps
        budgets = range(min(self._fewest, steps), steps + 1)
        self._check(model, request, seconds, budgets[0])

        def expect(full_steps: int) -> float:
            return self._dispatcher.expect(model, request, full_steps) or math.inf

        best = budgets[max(0, bisect_right(budgets, seconds, key=expect) - 1)]
        expected = self._dispatcher.expect(model, request, best)
        chunks = model.info.chunks(len(request.actions))
        in_line = self._dispatcher.expect(model, request, 0)
        call_seconds = None
        if expected is not None and in_line is not None:  # the time in the line will have passed by then
            call_seconds = max(0.0, expected - in_line) / (chunks * best)
        pace = Pacer(steps, budgets[0], call_seconds, self._margin)
        return replace(request, policy=budget_policy(best, steps), deadline=deadline, pace=pace)

    def _check(self, model: WorldModel, request: RolloutRequest, seconds: float, full_steps: float) -> None:
        """Refuse what is expected to take longer; what nobody has measured is given a try."""
        expected = self._dispatcher.expect(model, request, full_steps)
        if seconds > 0 and (expected is None or expected <= seconds):
            return
        message = "the deadline cannot be met"
        if expected is not None:
            message += f": about {self._ms(expected)} ms would be needed with this many frames and steps"
            fastest = self._dispatcher.expect(model, request, min(self._fewest, request.num_inference_steps))
            if fastest is not None and fastest < expected:
                message += f"; without a cache of your own choice, {self._ms(fastest)} ms would be possible"
        raise ApiError(504, "deadline_unreachable", message, param="deadline_ms")

    def _ms(self, seconds: float) -> int:
        """What a client would have to allow, the margin included."""
        return math.ceil(1000 * seconds / (1 - self._margin))
