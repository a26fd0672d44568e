"""What a load test finds, as data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from app.loadtest.measures import Spread
from app.loadtest.scrape import EngineUse


@dataclass(frozen=True)
class Answer:
    """One rollout as its client saw it.

    Attributes:
        policy: label of the policy.
        began, ended: on the client's clock, in seconds.
        status: of the HTTP response to the request; 0 if there was none.
        state: how the rollout ended: ``succeeded``, or else what became of it; empty if it was refused.
        retry_after: whether a refusal said when to come back.
        later: it was asked for with ``Prefer: respond-async``.
        latency: seconds to the end: the client's own, or the server's for an asynchronous rollout.
        queue, first_frame: seconds, by the server.
        rollout_id: empty if none is known.
    """

    policy: str
    began: float
    ended: float
    status: int
    state: str = ""
    retry_after: bool = False
    later: bool = False
    latency: float = 0.0
    queue: float = 0.0
    first_frame: float = 0.0
    rollout_id: str = ""

    @property
    def accepted(self) -> bool:
        return self.status in (200, 202)

    @property
    def succeeded(self) -> bool:
        return self.accepted and self.state == "succeeded"

    @property
    def refused(self) -> bool:
        """Turned away in order: the server was full and said when to come back."""
        return self.status in (429, 503) and self.retry_after


@dataclass(frozen=True)
class Point:
    """A policy at a number of clients that always ask again (a closed loop).

    Attributes:
        rollouts_per_second, frames_per_second: while all of the clients were at it.
        failed: rollouts that did not succeed.
        outside: share of the engine's ticks outside the backbone, if known.
    """

    policy: str
    clients: int
    rollouts_per_second: float
    frames_per_second: float
    latency: Spread
    first_frame: Spread
    queue: Spread
    failed: int
    batch: float
    outside: float | None


@dataclass(frozen=True)
class Turn:
    """Some equal rollouts at once and the same ones one after another, one time.

    Attributes:
        policy, rollouts: of each of both.
        together, apart: wall time of both, in seconds.
        backbone: what tables measured just before and after say of the calls made for those at once, the
            mean; ``None`` without any.
        use: of the engine for those at once.
        failed: rollouts of both that did not succeed.
    """

    policy: str
    rollouts: int
    together: float
    apart: float
    backbone: float | None
    use: EngineUse
    failed: int = 0


@dataclass(frozen=True)
class Batching:
    """Medians over the turns of a policy.

    Attributes:
        policy, rollouts: of each turn.
        repeats: turns.
        together, apart: wall time at once and one after another, in seconds.
        of_apart: at once over one after another.
        of_table: wall time at once over the time of its backbone calls by the tables around it.
        of_backbone: wall time at once over the server's own time in backbone calls.
        gain_apart, gain_together: speed-up over the first policy, one after another and at once, each
            within one turn.
        batch: mean rows of a call.
        outside: share of the ticks outside the backbone, if known.
        failed: rollouts that did not succeed.
    """

    policy: str
    repeats: int
    rollouts: int
    together: float
    apart: float
    of_apart: float
    of_table: float | None
    of_backbone: float
    gain_apart: float
    gain_together: float
    batch: float
    outside: float | None
    failed: int

    @property
    def kept_gain(self) -> float:
        """Speed-up at once over the speed-up of single rollouts."""
        return self.gain_together / self.gain_apart


@dataclass(frozen=True)
class Load:
    """Requests that came at times of their own (an open loop).

    Attributes:
        rate: expected arrivals a second.
        seconds: during which they came.
        share: of the sustainable rate.
        sent: all requests; ``later`` of them asked for an answer at once and the rollout later.
        statuses: responses by HTTP status; 0 stands for none.
        accepted, succeeded: rollouts.
        lost: accepted rollouts that did not succeed, and requests without a response, by what happened.
        refused: turned away with Retry-After.
        wrong: responses that are neither an acceptance nor such a refusal.
        late: longest time by which a request was sent too late.
        completed_per_second: rollouts, after the first quarter and until the last arrival.
        latency, by_policy: of accepted rollouts.
        first_frame, queue: of the same.
    """

    rate: float
    seconds: float
    share: float
    sent: int
    later: int
    statuses: Mapping[int, int]
    accepted: int
    succeeded: int
    lost: Mapping[str, int]
    refused: int
    wrong: int
    late: float
    completed_per_second: float
    latency: Spread
    by_policy: Mapping[str, Spread]
    first_frame: Spread
    queue: Spread


@dataclass(frozen=True)
class Memory:
    """Resident memory of the server, in MiB.

    Attributes:
        samples: pairs of seconds and MiB.
        growth: of the straight line through the samples of the last two fifths, MiB a minute.
        range: highest less lowest sample of the last two fifths.
        level: mean of the last two fifths.
        minutes: the last two fifths.
    """

    samples: Sequence[tuple[float, float]]
    growth: float
    range: float
    level: float
    minutes: float


@dataclass(frozen=True)
class Levels:
    """What must be as it was once all is over."""

    queue_depth: float
    active: float
    memory: float | None


@dataclass(frozen=True)
class Cancellations:
    """Rollouts that were cancelled, half by DELETE, half by closing the connection.

    Attributes:
        deleted: DELETE answered that they are cancelled.
        disconnected: connections that were closed before an answer.
        escaped: ended before they were cancelled.
        failed: requests or rollouts that failed.
        counted: cancelled rollouts by the server's counter.
        before, after: levels.
    """

    deleted: int
    disconnected: int
    escaped: int
    failed: int
    counted: float
    before: Levels
    after: Levels


@dataclass(frozen=True)
class Findings:
    """Everything.

    Attributes:
        about: model, machine and settings, for the head of the report.
        capacity: rollouts that may be active, and that may wait.
        backbone: seconds of a backbone call by its rows; empty if it was not measured.
        sustainable: rollouts a second of the mix, from the points with the most clients.
        steady: the mix below that rate.
        overload: the mix at twice that rate; begins with a burst that fills the queue.
    """

    about: Mapping[str, Any]
    capacity: tuple[int, int]
    backbone: Mapping[int, float]
    points: Sequence[Point]
    batching: Sequence[Batching]
    sustainable: float
    steady: Load
    overload: Load
    before: Levels
    after: Levels
    memory: Memory | None
    cancellations: Cancellations
    turns: Sequence[Turn] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)


def summarise_turns(turns: Sequence[Turn], reference: Sequence[Turn]) -> Batching:
    """Medians of a policy's turns, each against the reference's turn of the same repeat."""

    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    tables = [t.together / t.backbone for t in turns if t.backbone]
    outside = [t.use.outside for t in turns if t.use.outside is not None]
    return Batching(
        policy=turns[0].policy,
        repeats=len(turns),
        rollouts=turns[0].rollouts,
        together=median([t.together for t in turns]),
        apart=median([t.apart for t in turns]),
        of_apart=median([t.together / t.apart for t in turns]),
        of_table=median(tables) if tables else None,
        of_backbone=median([t.together / t.use.backbone_seconds for t in turns]),
        gain_apart=median([r.apart / t.apart for t, r in zip(turns, reference, strict=True)]),
        gain_together=median([r.together / t.together for t, r in zip(turns, reference, strict=True)]),
        batch=median([t.use.batch for t in turns]),
        outside=median(outside) if outside else None,
        failed=sum(t.failed for t in turns),
    )
