"""How many replicas: as many as their requests and the accepted work ask for."""

from __future__ import annotations

from typing import Any

WORK = "work"
"""What every replica reports: asynchronous rollouts that have not ended, wherever they wait or run."""


def by_ongoing_work(context: Any) -> tuple[float, dict[str, Any]]:
    """Replicas for ``target_ongoing_requests`` each; Serve applies the bounds and delays.

    An asynchronous rollout is answered at once, so Serve does not see it among the ongoing requests.

    Args:
        context: Serve's ``AutoscalingContext``.
    """
    reported = (context.aggregated_metrics or {}).get(WORK, {})
    work = max(reported.values(), default=0.0)
    target = context.config.get_target_ongoing_requests()
    return (context.total_num_requests + work) / target, {}
