"""The service's metrics as numbers: parsed from what its registry says."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.loadtest.scrape import EngineUse, Scrape, engine_use
from app.metrics import BATCHES, Metrics
from worldcache.engine.engine import Tick


class Source:
    """A registry that is observed and scraped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)

    def call(self, rows: int, seconds: float, model: str = "toy") -> None:
        self.metrics.ticked(Tick(model, ((rows, seconds),), seconds))

    def scrape(self) -> Scrape:
        return Scrape.parse(generate_latest(self.registry).decode())


def test_the_sizes_of_eight_rollouts_batches_are_exact() -> None:
    assert set(range(1, 9)) <= set(BATCHES)
    source = Source()
    source.call(3, 9.0)
    before = source.scrape()
    for rows in (1, 5, 5, 8):
        source.call(rows, 0.5)
    source.call(8, 7.0, model="other")
    use = engine_use(source.scrape().since(before), "toy")
    assert use.sizes == {1: 1, 5: 2, 8: 1}
    assert (use.calls, use.rows, use.backbone_seconds) == (4, 19, 2.0)
    assert use.batch == 19 / 4


def test_calls_beyond_the_last_bucket_keep_their_rows() -> None:
    source = Source()
    before = source.scrape()
    for rows in (2, 100, 100):
        source.call(rows, 0.5)
    assert engine_use(source.scrape().since(before), "toy").sizes == {2: 1, 100: 2}


def test_a_metric_that_the_service_lacks_is_not_zero() -> None:
    source = Source()
    assert source.scrape().total("worldcache_no_such_total") is None
    source.metrics.add_model("toy")
    assert source.scrape().total("worldcache_queue_depth", model="toy") == 0.0


def test_time_outside_the_backbone_is_a_share_of_the_ticks() -> None:
    known = EngineUse(1, 1, {1: 1}, 0.9, 1.0, 0.3)
    assert known.outside == pytest.approx(0.1)
    assert EngineUse(1, 1, {1: 1}, 0.9, None, None).outside is None


def test_ticks_and_decoding_are_read_where_the_service_tells_them() -> None:
    text = "".join(
        f"# TYPE worldcache_{name}_seconds histogram\n"
        f'worldcache_{name}_seconds_bucket{{model="toy",le="+Inf"}} 1\n'
        f'worldcache_{name}_seconds_count{{model="toy"}} 1\n'
        f'worldcache_{name}_seconds_sum{{model="toy"}} {value}\n'
        for name, value in (("tick", 2.0), ("decode", 0.25), ("backbone", 1.5))
    )
    use = engine_use(Scrape.parse(text), "toy")
    assert (use.tick_seconds, use.decode_seconds, use.outside) == (2.0, 0.25, 0.25)
