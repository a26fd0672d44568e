"""What all resources have in common, as operations of an :class:`Exchange`, and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from worldcache.client.errors import UnexpectedAnswer
from worldcache.client.exchange import Exchange, ModelT, Operation, Request, read_answer
from worldcache.client.types import ModelDescription

ItemT = TypeVar("ItemT")

PAGE = 100


class Listing(Generic[ItemT]):
    """A list that is fetched page after page.

    Args:
        exchange: of the client.
        path: of the list.
        wrap: makes an item of its data.
        limit: most items.
        params: of every request.
    """

    def __init__(
        self,
        exchange: Exchange,
        path: str,
        wrap: Callable[[Any], ItemT],
        limit: int | None,
        params: Mapping[str, str | None] | None = None,
    ) -> None:
        self._exchange, self._path, self._wrap, self._limit = exchange, path, wrap, limit
        self._params = {name: value for name, value in (params or {}).items() if value is not None}
        self.more = limit is None or limit > 0
        """There may be another page."""

    def next_page(self) -> Operation[tuple[ItemT, ...]]:
        """The items that come next."""
        limit = str(PAGE if self._limit is None else min(PAGE, self._limit))
        request = Request("GET", self._path, params={"limit": limit, **self._params}, repeatable=True)
        answer = (yield from self._exchange.ask(request)).json()
        items = read_list(answer)
        page = tuple(self._wrap(item) for item in items)
        if self._limit is not None:
            self._limit -= len(page)
        self.more = bool(page and answer.get("has_more")) and (self._limit is None or self._limit > 0)
        if page:
            self._params["after"] = str(items[-1]["id"])
        return page


def read_list(answer: Any) -> list[Any]:
    """What a list holds.

    Raises:
        UnexpectedAnswer: it is none.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
        raise UnexpectedAnswer("this is no list")
    items: list[Any] = answer["data"]
    return items


def model(exchange: Exchange, model_id: str, action: str | None = None) -> Operation[ModelDescription]:
    """A model, after an action if one is given."""
    path = f"/v1/models/{quote(model_id, safe='')}"
    request = Request("GET", path, repeatable=True) if action is None else Request("POST", f"{path}/{action}")
    reply = yield from exchange.ask(request)
    return read_answer(ModelDescription, reply.json())


def fetch_all(exchange: Exchange, kind: type[ModelT], path: str) -> Operation[tuple[ModelT, ...]]:
    """A list that has one page."""
    reply = yield from exchange.ask(Request("GET", path, repeatable=True))
    return tuple(read_answer(kind, item) for item in read_list(reply.json()))
