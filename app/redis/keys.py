"""The names of everything in Redis. All begin with the prefix; in a cluster it must hold a ``{tag}``."""

from __future__ import annotations

import hashlib

GROUP = "workers"
"""The consumer group of the work stream."""


class Keys:
    """Names under one prefix; the scripts spell the same ones.

    Args:
        prefix: of all of them.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.work = f"{prefix}work"
        self.changes = f"{prefix}changes"
        self.ended = f"{prefix}ended"
        self.news = f"{prefix}news"

    def rollout(self, rollout_id: str) -> str:
        """A hash: record, status, who may write it, and while it is live its order and checkpoint."""
        return f"{self.prefix}rollout:{rollout_id}"

    def artifacts(self, rollout_id: str) -> str:
        """A hash: by name, an artifact's size and where its bytes are."""
        return f"{self.prefix}artifacts:{rollout_id}"

    def blob(self, place: str) -> str:
        """The bytes of an artifact."""
        return f"{self.prefix}blob:{place}"

    def idempotency(self, owner: str, key: str) -> str:
        """What an owner's idempotency key stands for."""
        digest = hashlib.sha256(f"{owner}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.prefix}key:{digest}"

    def rate(self, name: str) -> str:
        """A bucket of tokens."""
        return f"{self.prefix}rate:{name}"

    def session(self, session_id: str) -> str:
        """A session's latest snapshot."""
        return f"{self.prefix}session:{session_id}"
