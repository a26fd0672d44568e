"""Results as lines of JSON in the benchmark's folder: what is there is not computed again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Record: TypeAlias = dict[str, Any]


class Key(NamedTuple):
    """What a record is about.

    Attributes:
        model: id of the model.
        setting: name of the setting.
        part: ``chunks``, ``rollouts``, ``reference``, ``timing`` or ``overhead``.
        entry: label of the entry.
    """

    model: str
    setting: str
    part: str
    entry: str


class Store:
    """Appends records to a file and reads them back; the newest of a key counts.

    A record remembers under which ``terms`` (sizes, weights, parameters) it was made. Asked for under
    other terms it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[Key, Record] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a run that was killed while it wrote
                self._records[key_of(record)] = record

    def find(self, key: Key, terms: Any) -> Record | None:
        """The record of ``key`` if it was made under these terms and did not fail."""
        record = self._records.get(key)
        if record is None or "failure" in record or record["terms"] != json.loads(json.dumps(terms)):
            return None
        return record

    def add(self, key: Key, terms: Any, values: Record) -> Record:
        """Write a record to the file at once."""
        record = json.loads(json.dumps({**key._asdict(), "terms": terms, **values}))
        self._records[key] = record
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return dict(record)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())


def key_of(record: Record) -> Key:
    """The key of a record."""
    return Key(*(record[name] for name in Key._fields))
