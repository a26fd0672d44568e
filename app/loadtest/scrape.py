"""The service's metrics as numbers, and what changed between two looks at them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

Sample: TypeAlias = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Scrape:
    """Samples by name and labels."""

    samples: Mapping[Sample, float]

    @classmethod
    def parse(cls, text: str) -> Scrape:
        """Read what ``/metrics`` answers."""
        return cls(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def since(self, before: Scrape) -> Scrape:
        """How much every sample has grown."""
        return Scrape({key: value - before.samples.get(key, 0.0) for key, value in self.samples.items()})

    def total(self, name: str, **labels: str) -> float | None:
        """Sum of the samples of this name with these labels; ``None`` if the service has no such metric."""
        wanted = labels.items()
        found = [v for (n, have), v in self.samples.items() if n == name and wanted <= have]
        return sum(found) if found else None

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Observations of a histogram by the upper bound of their bucket, empty ones left out."""
        cumulative: dict[float, float] = {}
        for (sample, have), value in self.samples.items():
            if sample == f"{name}_bucket" and labels.items() <= have:
                bound = float(dict(have)["le"])
                cumulative[bound] = cumulative.get(bound, 0.0) + value
        counts, below = {}, 0.0
        for bound in sorted(cumulative):
            if cumulative[bound] > below:
                counts[bound] = cumulative[bound] - below
            below = cumulative[bound]
        return counts


@dataclass(frozen=True)
class EngineUse:
    """What the engine did in a stretch of time.

    Attributes:
        calls, rows: of the backbone.
        sizes: calls by rows, as fine as the buckets of the histogram.
        backbone_seconds: in backbone calls, by the server's own clock.
        tick_seconds, decode_seconds: in whole ticks, and decoding; ``None`` if the server does not say.
    """

    calls: float
    rows: float
    sizes: Mapping[int, float]
    backbone_seconds: float
    tick_seconds: float | None
    decode_seconds: float | None

    @property
    def outside(self) -> float | None:
        """Share of the ticks that was not spent in backbone calls."""
        if not self.tick_seconds:
            return None
        return (self.tick_seconds - self.backbone_seconds) / self.tick_seconds

    @property
    def batch(self) -> float:
        """Mean rows of a call."""
        return self.rows / self.calls if self.calls else math.nan


def engine_use(grown: Scrape, model: str) -> EngineUse:
    """What the engine did for a model between two looks."""
    calls = grown.total("worldcache_batch_size_count", model=model) or 0.0
    rows = grown.total("worldcache_batch_size_sum", model=model) or 0.0
    sizes = grown.buckets("worldcache_batch_size", model=model)
    known = {round(bound): count for bound, count in sizes.items() if math.isfinite(bound)}
    beyond = calls - sum(known.values())
    if beyond > 0:  # above the last bucket: what is left of the rows
        left = rows - sum(size * count for size, count in known.items())
        known[round(left / beyond)] = beyond
    return EngineUse(
        calls,
        rows,
        known,
        grown.total("worldcache_backbone_seconds_sum", model=model) or 0.0,
        grown.total("worldcache_tick_seconds_sum", model=model),
        grown.total("worldcache_decode_seconds_sum", model=model),
    )
