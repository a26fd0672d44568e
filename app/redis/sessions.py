"""Sessions' snapshots in Redis, each with the name of the server that has the session."""

from __future__ import annotations

from app.errors import ApiError
from app.redis.keys import Keys
from app.redis.link import Link
from app.schemas import SnapshotBody
from app.session_keeper import KeptSession

ELSEWHERE_RETRY_SECONDS = 2


class RedisSnapshots:
    """The latest snapshot of every session.

    Args:
        replica: name of this server.
    """

    def __init__(self, link: Link, keys: Keys, replica: str) -> None:
        self._link, self._keys, self._replica = link, keys, replica

    async def keep(self, session_id: str, kept: KeptSession, seconds: float) -> bool:
        return bool(
            await self._link.run(
                "keep_session",
                self._keys.session(session_id),
                self._replica,
                kept.body.model_dump_json(),
                kept.owner,
                kept.client,
                f"{kept.created_at:.6f}",
                int(1000 * seconds),
            )
        )

    async def take(self, session_id: str, owner: str) -> KeptSession | None:
        found = await self._link.run("take_session", self._keys.session(session_id), self._replica, owner)
        if not found:
            return None
        if found[0] == b"elsewhere":
            message = f"session {session_id!r} is at another server; send its requests there"
            headers = {"Retry-After": str(ELSEWHERE_RETRY_SECONDS)}
            raise ApiError(409, "session_elsewhere", message, headers=headers)
        _, data, client, created_at = found
        return KeptSession(owner, client.decode(), float(created_at), SnapshotBody.model_validate_json(data))

    async def leave(self, session_id: str) -> None:
        await self._link.run("leave_session", self._keys.session(session_id), self._replica)

    async def remove(self, session_id: str) -> None:
        await self._link.call("UNLINK", self._keys.session(session_id))
