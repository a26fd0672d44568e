"""Who is served next: the most urgent first, and among equals one rollout of each client in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from worldcache.engine.rollout import Priority, Rollout


class WaitingLine:
    """Rollouts that have been accepted and not started.

    A client that sends many waits behind its own: the line goes round the clients of a priority, and
    takes the oldest rollout of each.
    """

    def __init__(self) -> None:
        self._clients: dict[Priority, OrderedDict[str, deque[Rollout]]] = {
            priority: OrderedDict() for priority in Priority
        }

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Rollout]:
        """In no promised order."""
        for clients in self._clients.values():
            for rollouts in clients.values():
                yield from rollouts

    def add(self, rollout: Rollout) -> None:
        """Put a rollout at its client's end."""
        clients = self._clients[rollout.request.priority]
        clients.setdefault(rollout.request.client, deque()).append(rollout)

    def next(self) -> Rollout | None:
        """The rollout whose turn it is; it stays in the line."""
        for clients in self._clients.values():
            for rollouts in clients.values():
                return rollouts[0]
        return None

    def take(self, rollout: Rollout) -> None:
        """Take a rollout whose turn it is out of the line, its client to the end of the round."""
        self.remove(rollout)
        clients = self._clients[rollout.request.priority]
        if rollout.request.client in clients:
            clients.move_to_end(rollout.request.client)

    def remove(self, rollout: Rollout) -> bool:
        """Take a rollout out of the line that gives up; its client's turn stays. False if it is not there."""
        clients = self._clients[rollout.request.priority]
        rollouts = clients.get(rollout.request.client, deque())
        if rollout not in rollouts:
            return False
        rollouts.remove(rollout)
        if not rollouts:
            del clients[rollout.request.client]
        return True
