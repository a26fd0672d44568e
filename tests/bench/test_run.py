"""The benchmark on a model that a hand can follow; its times are not judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.toy import ToyWorldModel
from worldcache.bench.entries import UNCACHED, Entry, Tune
from worldcache.bench.run import CHUNKS, REFERENCE, ROLLOUTS, Bench
from worldcache.bench.timing import measure_timing
from worldcache.bench.wrapper import BenchWorldModel

HALF = Entry("every second", "interval", "interval", {"interval": 2}, rollouts=True, reference=True)
MakeBench = Callable[..., Bench]


def test_every_entry_is_measured_against_the_uncached_run(make_bench: MakeBench) -> None:
    bench = make_bench(ToyWorldModel(gain=3.0))
    none, half = (bench.measure(CHUNKS, entry) for entry in (UNCACHED, HALF))
    assert (none["steps_total"], none["steps_full"], half["steps_full"]) == (20, 20, 10)
    assert none["to_uncached"]["rgb"]["psnr"] == 100.0
    assert none["to_uncached"]["depth"]["ssim"] == pytest.approx(1.0)
    assert half["to_uncached"]["rgb"]["psnr"] < 60
    assert half["decisions"] == "F." * 10
    assert half["to_truth"]["all"]["depth"]["error"] > 0


def test_what_was_measured_is_not_computed_again(make_bench: MakeBench) -> None:
    make_bench(ToyWorldModel()).run([UNCACHED, HALF])
    again = ToyWorldModel()
    told: list[str] = []
    make_bench(again).run([UNCACHED, HALF], progress=lambda label, done, total: told.append(label))
    assert again.batches == []
    assert told[:2] == ["chunks: none", "chunks: every second"]


def test_results_of_another_work_or_spec_are_computed_again(make_bench: MakeBench) -> None:
    make_bench(ToyWorldModel()).measure(CHUNKS, HALF)
    for bench, entry in (
        (make_bench(ToyWorldModel(), chunks=2), HALF),
        (make_bench(ToyWorldModel()), Entry("every second", "interval", "interval", {"interval": 4})),
        (make_bench(ToyWorldModel(), setting="shift7"), HALF),
    ):
        bench.measure(CHUNKS, entry)
        assert bench.model.batches  # type: ignore[attr-defined]


def test_one_entry_alone_makes_the_uncached_run_that_it_needs(make_bench: MakeBench) -> None:
    bench = make_bench(ToyWorldModel(gain=3.0))
    bench.run([UNCACHED, HALF], only="second")
    assert [record["entry"] for record in bench.store] == ["every second"]


def test_a_parameter_is_tuned_to_a_number_of_full_steps(make_bench: MakeBench) -> None:
    entry = Entry("about 5", "interval", "interval", tune=Tune("interval", 1, 20, 5, integer=True))
    record = make_bench(ToyWorldModel()).measure(CHUNKS, entry)
    assert (record["parameters"], record["steps_full"]) == ({"interval": 4}, 5)


def test_a_blind_policy_is_tuned_without_the_model(make_bench: MakeBench) -> None:
    model = ToyWorldModel()
    tune = Tune("interval", 1, 20, 5, integer=True, blind=True)
    # of 20 steps, 4 computes 0, 4, ... 16 and 6 computes 0, 6, 12, 18, which ends later
    assert make_bench(model).settle(Entry("about 5", "interval", "interval", tune=tune)) == {"interval": 6}
    assert model.batches == []


def test_what_cannot_run_is_recorded_and_the_rest_goes_on(make_bench: MakeBench) -> None:
    bench = make_bench(ToyWorldModel())
    bench.run([Entry("nobody", "nobody", "nobody"), Entry("hook", "hook", hook="first_block"), HALF])
    failures = [record.get("failure", "") for record in bench.store]
    assert "unknown policy 'nobody'" in failures[0]
    assert "no diffusers transformer" in failures[1]
    assert failures[2] == ""


def test_fewer_steps_take_a_shorter_schedule(make_bench: MakeBench) -> None:
    bench = make_bench(ToyWorldModel(gain=3.0))
    for solver in ("euler", "unipc", "dpm++"):
        record = bench.measure(CHUNKS, Entry(solver, solver, solver=solver, steps=8))
        assert (record["steps_total"], record["steps_full"]) == (8, 8)
        assert record["to_uncached"]["rgb"]["psnr"] > 10


def test_a_guided_chunk_computes_two_rows_a_step(make_bench: MakeBench) -> None:
    model = ToyWorldModel()
    make_bench(model, setting="guided3").measure(CHUNKS, UNCACHED)
    assert sum(model.batches) == 3 * 20 * 2


def test_rollouts_and_a_longer_reference_are_measured(make_bench: MakeBench) -> None:
    bench = make_bench(
        ToyWorldModel(gain=3.0), rollouts=2, reference_chunks=2, reference_steps=40, judge_steps=2
    )
    bench.run([UNCACHED, HALF])
    by_part = {(r["part"], r["entry"]): r for r in bench.store}
    rollout = by_part[ROLLOUTS, "every second"]
    assert (rollout["steps_total"], rollout["steps_full"]) == (20, 10)
    assert 0 <= rollout["control"]["generated"]["accuracy"] <= 1
    assert rollout["control"]["frames"] == 8 - 3  # the last three frames only complete windows
    reference = {entry: by_part[REFERENCE, entry]["to_reference"] for entry in ("none", "every second")}
    assert reference["none"]["rgb"]["psnr"] > reference["every second"]["rgb"]["psnr"]


def test_single_rollouts_are_timed_in_turn(make_bench: MakeBench) -> None:
    bench = make_bench(ToyWorldModel())
    records = measure_timing(bench, [], repeats=2)
    assert [r["entry"] for r in records] == ["none", "worldcache, Voyager's preset"]
    assert records[0]["speed_up"] == 1.0
    assert records[0]["share_of_ideal"] == 1.0
    ideal = records[1]["steps_total"] / records[1]["steps_full"]
    assert records[1]["share_of_ideal"] == pytest.approx(records[1]["speed_up"] / ideal)


def test_the_wrapped_model_decodes_to_pictures_that_are_not_rounded() -> None:
    model = ToyWorldModel()
    latent = model.initial_latent(None, 4, torch.Generator().manual_seed(0))
    pictures = BenchWorldModel(model).decode(latent)
    assert pictures["rgb"].dtype == "float32"
    assert torch.equal(torch.from_numpy(pictures["depth"]), (latent[3].clamp(-1, 1) + 1) / 2)
