"""Pipelines as world models: the pipeline's own video, in turns with the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

import worldcache
from tests.engine.listening import Listener, finish, submit
from tests.models.pipeline.tiny import FRAMES, OTHERS, SHORT, SIZE, STEPS, picture, save
from worldcache.core import UNCONDITIONED, Conditioning, Observation
from worldcache.engine.engine import Engine, Tick
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import InvalidInput, RolloutFailed, UnknownName
from worldcache.models.base import ChunkTask, Denoiser
from worldcache.models.pipeline.facts import read_facts
from worldcache.models.pipeline.world import PipelineWorldModel
from worldcache.policies.registry import make_policy
from worldcache.sampler import chunk_generator

CACHES: dict[str, dict[str, Any]] = {
    "none": {},
    "interval": {"interval": 3},
    "worldcache": {"warmup_steps": 3, "drift_threshold": 1e9, "max_skip": 2},
    "taylor": {"interval": 2, "warmup_steps": 2},
    "easycache": {"warmup_steps": 2, "threshold": 0.5},
}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "pipeline"]


def request(
    policy: str = "none",
    seed: int = 1,
    frames: int = SHORT,
    steps: int = STEPS,
    image: int = 0,
    guidance_scale: float = 3.0,
    conditioning: Conditioning = UNCONDITIONED,
) -> RolloutRequest:
    return RolloutRequest(
        Observation(frames=picture(image)[None]),
        (0,) * frames,
        make_policy(policy, **CACHES[policy]),
        seed,
        steps,
        guidance_scale,
        conditioning=conditioning,
    )


def call(pipe: Any, seed: int = 1, image: int = 0, frames: int = SHORT, **more: Any) -> Tensor:
    """The untouched pipeline's video ``[F, H, W, 3]``."""
    arguments = {"prompt": "", "guidance_scale": 3.0, "num_inference_steps": STEPS, **more}
    video = pipe(
        image=Image.fromarray(picture(image)),
        height=SIZE,
        width=SIZE,
        num_frames=frames,
        generator=chunk_generator(seed, 0),
        output_type="np",
        **arguments,
    ).frames
    return torch.from_numpy(video[0])


def denoise(model: PipelineWorldModel, denoiser: Denoiser) -> Tensor:
    """Drive a chunk to its end, as the engine does."""
    while not denoiser.done:
        outputs = model.evaluate(denoiser.rows())
        tokens = model.tokens(outputs.shape[1:]).to_tokens(outputs)
        denoiser.advance(denoiser.take(tokens).tolist())
    return denoiser.latent


def begin(model: PipelineWorldModel, policy: str = "none", seed: int = 1, frames: int = SHORT) -> Denoiser:
    context = model.begin(Observation(frames=picture(0)[None]))
    task = ChunkTask(
        make_policy(policy, **CACHES[policy]), context, frames, STEPS, 3.0, chunk_generator(seed, 0)
    )
    return model.own_denoiser(task)


def decisions(pipe: Any) -> str:
    """A letter per step: FULL if any branch was."""
    branches = worldcache.summary(pipe).branches
    return "".join(
        "F" if "F" in letters else "." for letters in zip(*(b.decisions for b in branches), strict=True)
    )


@pytest.mark.parametrize("frames", [SHORT, FRAMES])
def test_without_a_cache_it_is_the_pipelines_own_call(
    model: PipelineWorldModel, plain: Any, frames: int
) -> None:
    assert torch.equal(denoise(model, begin(model, frames=frames)), call(plain, frames=frames))


@pytest.mark.parametrize("policy", [name for name in CACHES if name != "none"])
def test_with_a_cache_it_is_what_enable_makes_of_the_pipeline(
    model: PipelineWorldModel, plain: Any, policy: str
) -> None:
    uncached = call(plain)
    worldcache.enable(plain, policy, **CACHES[policy])
    expected = call(plain)
    assert not torch.equal(expected, uncached)
    denoiser = begin(model, policy)
    assert torch.equal(denoise(model, denoiser), expected)
    stats = denoiser.stats(0)
    assert stats.decisions == decisions(plain)
    assert 0 < stats.steps_full < STEPS
    worldcache.disable(plain)
    assert torch.equal(call(plain), uncached)


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_pipelines(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / name)
    model = PipelineWorldModel.load(folder, device=torch.device("cpu"), dtype=torch.float32)
    plain = DiffusionPipeline.from_pretrained(folder)
    model.warm()
    assert torch.equal(denoise(model, begin(model)), call(plain))
    for policy in ("interval", "worldcache"):
        worldcache.enable(plain, policy, **CACHES[policy])
        denoiser = begin(model, policy)
        assert torch.equal(denoise(model, denoiser), call(plain))
        branches = worldcache.summary(plain).branches
        letters = denoiser.stats(0).decisions
        parts = {branch.transformer: branch.decisions for branch in branches}
        assert len(parts) == (2 if name == "two_wans" else 1)
        assert letters == "".join(parts.values())
        assert "." in letters and len(letters) == STEPS
        worldcache.disable(plain)


def test_a_rollouts_frames_and_statistics(model: PipelineWorldModel, plain: Any) -> None:
    ticks: list[Tick] = []
    (listener,) = finish(Engine(observer=ticks.append), model, request("interval"))
    worldcache.enable(plain, "interval", interval=3)
    expected = (call(plain) * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(listener.rgb(), expected)
    branches = worldcache.summary(plain).branches
    assert len(ticks) == sum(branch.steps_full for branch in branches)  # a call a tick
    stats = listener.end.stats
    assert listener.decisions == [decisions(plain)]
    assert (stats.steps_total, stats.steps_full) == (STEPS, decisions(plain).count("F"))
    (chunk,) = stats.chunks
    cached = sum(branch.steps_cached for branch in branches)
    rgb = chunk.modalities["rgb"]
    assert rgb.tokens > 0 and rgb.skipped * len(branches) == rgb.tokens * cached
    assert chunk.drift == (None,) * STEPS


def test_a_drift_is_reported_where_there_is_one(model: PipelineWorldModel) -> None:
    denoiser = begin(model, "worldcache")
    denoise(model, denoiser)
    stats = denoiser.stats(4)
    assert stats.index == 4
    for letter, drift in zip(stats.decisions, stats.drift, strict=True):
        assert drift is not None and (drift == 0 if letter == "F" else drift >= 0)


def test_rollouts_at_once_are_each_what_they_are_alone(model: PipelineWorldModel) -> None:
    requests = (
        request("none", seed=1),
        request("interval", seed=2, image=1, steps=5),
        request("worldcache", seed=3, image=2, conditioning=Conditioning(prompt="left")),
        request("taylor", seed=1, frames=FRAMES, guidance_scale=1.0),
    )
    alone = [finish(Engine(), model, one)[0] for one in requests]
    together = finish(Engine(), model, *requests)
    for one, other in zip(alone, together, strict=True):
        assert one.end.status == other.end.status == "succeeded"
        assert one.decisions == other.decisions
        assert np.array_equal(one.rgb(), other.rgb())


def test_offloaded_rollouts_at_once_are_the_same(folders: dict[str, Path]) -> None:
    """The hooks of offloading, with the host in place of a device: they move nothing, but they run."""
    pytest.importorskip("accelerate")
    folder, host = folders["cogvideox"], torch.device("cpu")
    usual = PipelineWorldModel.load(folder, device=host, dtype=torch.float32)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.enable_model_cpu_offload(device=host)
    offloaded = PipelineWorldModel(pipe, read_facts(pipe, "tiny", folder), device=host)
    offloaded.warm()
    requests = (request("none", seed=1), request("interval", seed=2), request("worldcache", seed=3))
    expected = finish(Engine(), usual, *requests)
    for one, other in zip(expected, finish(Engine(), offloaded, *requests), strict=True):
        assert other.end.status == "succeeded"
        assert np.array_equal(one.rgb(), other.rgb())
    assert len(pipe._all_hooks) == 3 and all(hasattr(hook.model, "_hf_hook") for hook in pipe._all_hooks)


def test_prompts_seeds_pictures_and_guidance_count(model: PipelineWorldModel, plain: Any) -> None:
    prompts = Conditioning(prompt="left dark", negative_prompt="bright")
    (listener,) = finish(Engine(), model, request(conditioning=prompts))
    video = call(plain, prompt="left dark", negative_prompt="bright")
    assert np.array_equal(listener.rgb(), model.decode(video)["rgb"])
    texts = {"prompt": "left dark", "negative_prompt": "bright"}
    changes: list[dict[str, Any]] = [{"seed": 2}, {"image": 1}, {"guidance_scale": 1.0}, {"prompt": "right"}]
    others = [call(plain, **{**texts, **change}) for change in changes]
    assert not any(torch.equal(video, other) for other in others)


def test_the_next_chunk_begins_with_the_last_frame(model: PipelineWorldModel, plain: Any) -> None:
    (listener,) = finish(Engine(), model, request(frames=FRAMES + SHORT))
    first, second = listener.chunks
    assert [len(chunk.frames["rgb"]) for chunk in (first, second)] == [FRAMES, SHORT]
    video = plain(
        image=Image.fromarray(first.frames["rgb"][-1]),
        prompt="",
        height=SIZE,
        width=SIZE,
        num_frames=SHORT,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=chunk_generator(1, FRAMES),
        output_type="np",
    ).frames
    assert np.array_equal(second.frames["rgb"], (video[0] * 255).round().astype(np.uint8))


def test_a_session_goes_on_as_if_it_had_never_stopped(model: PipelineWorldModel) -> None:
    prompts = Conditioning(prompt="right", negative_prompt="")
    (whole,) = finish(Engine(), model, request(frames=FRAMES + SHORT, conditioning=prompts))
    state = whole.chunks[0].state
    assert state is not None and state.frames == FRAMES
    context = model.import_context(model.export_context(state.context))
    assert np.array_equal(context.image, state.context.image)
    assert (context.prompt, context.negative_prompt) == ("right", "")
    for start in (state, type(state)(context, state.frames)):
        rest = RolloutRequest(None, (0,) * SHORT, make_policy("none"), 1, STEPS, 3.0, state=start)
        (listener,) = finish(Engine(), model, rest)
        assert np.array_equal(listener.rgb(), whole.chunks[1].frames["rgb"])


def test_a_surplus_is_dropped(model: PipelineWorldModel) -> None:
    (listener,) = finish(Engine(), model, request(frames=3))
    (shortest,) = finish(Engine(), model, request(frames=model.info.chunk_lengths[0]))
    assert np.array_equal(listener.rgb(), shortest.rgb()[:3])


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_cancelling_ends_the_pipelines_thread(model: PipelineWorldModel, calls: int) -> None:
    engine = Engine()
    (rollout, listener), (_, other) = submit(engine, model, request(), request(seed=2))
    for _ in range(2 * calls):
        engine.tick()
    assert engine.cancel(rollout)
    assert listener.end.status == "cancelled"
    assert len([t for t in threading.enumerate() if t.name == "pipeline"]) == (1 if calls else 0)
    while not engine.idle:
        engine.tick()
    assert other.end.status == "succeeded"
    assert np.array_equal(other.rgb(), finish(Engine(), model, request(seed=2))[0].rgb())


def break_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, result: Any) -> None:
    """Let the ``at``-th call of a method raise an error, or return what a function makes of its result."""
    method, calls = getattr(owner, name), []

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == at and isinstance(result, Exception):
            raise result
        made = method(*args, **kwargs)
        return result(made) if len(calls) == at else made

    monkeypatch.setattr(owner, name, broken)


def as_nan(output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    output[0].view(-1)[7] = float("nan")
    return output


def one_fails(model: PipelineWorldModel) -> tuple[Listener, Listener]:
    """The listener of the rollout that failed, and of the one that did not."""
    expected = {1: request(seed=1), 2: request(seed=2)}
    listeners = finish(Engine(), model, *expected.values())
    listeners.sort(key=lambda listener: listener.end.status)
    failed, other = listeners
    assert (failed.end.status, other.end.status) == ("failed", "succeeded")
    return failed, other


@pytest.mark.parametrize("at", [1, 2])
def test_an_exception_in_the_pipeline_fails_its_rollout_alone(
    model: PipelineWorldModel, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    alone = [finish(Engine(), model, request(seed=seed))[0].rgb() for seed in (1, 2)]
    break_once(monkeypatch, model.pipe.vae, "decode", at, ZeroDivisionError("no picture"))
    failed, other = one_fails(model)
    assert isinstance(failed.end.error, ZeroDivisionError)
    assert any(np.array_equal(other.rgb(), frames) for frames in alone)


@pytest.mark.parametrize("error", [ZeroDivisionError("no text"), MemoryError("no room")])
def test_an_exception_before_the_first_step_fails_its_rollout_alone(
    model: PipelineWorldModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    break_once(monkeypatch, model.pipe.vae, "encode", 1, error)
    failed, _ = one_fails(model)
    end = failed.end.error
    assert error in (end, getattr(end, "__cause__", None))


@pytest.mark.parametrize("at", [1, 6])
def test_an_exception_in_the_transformer_fails_its_rollout_alone(
    model: PipelineWorldModel, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    break_once(monkeypatch, model.pipe.transformer, "forward", at, RuntimeError("the device is gone"))
    failed, _ = one_fails(model)
    assert isinstance(failed.end.error, RuntimeError)


@pytest.mark.parametrize("at", [1, 6])
def test_a_value_that_is_not_finite_fails_its_rollout_alone(
    model: PipelineWorldModel, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    break_once(monkeypatch, model.pipe.transformer, "forward", at, as_nan)
    failed, _ = one_fails(model)
    assert isinstance(failed.end.error, RolloutFailed)
    assert "not finite" in str(failed.end.error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda video: video[:, :-1], "gave \\[8, 32, 32, 3\\]"),
        (lambda video: video * np.float32("nan"), "not finite"),
    ],
)
def test_frames_that_cannot_be_used_are_refused(
    model: PipelineWorldModel,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], Any],
    message: str,
) -> None:
    break_once(monkeypatch, model.pipe.video_processor, "postprocess_video", 1, change)
    (listener,) = finish(Engine(), model, request(frames=SHORT))
    assert isinstance(listener.end.error, RolloutFailed)
    with pytest.raises(RolloutFailed, match=message):
        raise listener.end.error


def test_a_policy_that_cannot_work_is_named(model: PipelineWorldModel) -> None:
    policy = make_policy("teacache", coefficients=[1.0, 0.0])
    context = model.begin(Observation(frames=picture(0)[None]))
    with pytest.raises(InvalidInput, match="teacache") as caught:
        model.own_denoiser(ChunkTask(policy, context, SHORT, STEPS, 1.0, chunk_generator(0, 0)))
    assert (caught.value.param, caught.value.code) == ("cache.policy", "not_supported")


def test_a_rollout_leaves_the_pipeline_as_it_was(model: PipelineWorldModel, plain: Any) -> None:
    pipe = model.pipe
    before = {name: dict(vars(part)) for name, part in pipe.components.items() if hasattr(part, "__dict__")}
    scheduler, attributes = pipe.scheduler, set(vars(pipe))
    finish(Engine(), model, request("interval"), request("worldcache", seed=2))
    assert pipe.scheduler is scheduler and set(vars(pipe)) == attributes
    assert set(vars(pipe.transformer)) == set(before["transformer"])
    assert torch.equal(call(pipe), call(plain))


@pytest.mark.parametrize(
    ("observation", "param"),
    [
        (Observation(start="centre"), "observation.start"),
        (Observation(), "observation.frames"),
        (Observation(frames=np.zeros((1, 16, 32, 3), np.uint8)), "observation.frames"),
        (
            Observation(frames=picture(0)[None], depth=np.zeros((1, SIZE, SIZE), np.float32)),
            "observation.depth",
        ),
    ],
)
def test_observations_that_do_not_fit_are_refused(
    model: PipelineWorldModel, observation: Observation, param: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.begin(observation)
    assert caught.value.param == param
    assert isinstance(caught.value, UnknownName) == (param == "observation.start")


def test_what_it_cannot_be_conditioned_on_is_refused(model: PipelineWorldModel) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.begin(Observation(frames=picture(0)[None]), Conditioning(fov=60.0))
    assert caught.value.param == "conditioning.fov"


@pytest.mark.parametrize(
    ("arrays", "param"),
    [
        ({}, "image"),
        ({"image": np.zeros((4, 4, 3), np.uint8)}, "image"),
        ({"image": picture(0), "sound": picture(0)}, "sound"),
        ({"image": picture(0), "prompt": np.zeros((1, 1), np.uint8)}, "prompt"),
        ({"image": picture(0), "negative_prompt": np.array([255], np.uint8)}, "negative_prompt"),
    ],
)
def test_contexts_that_do_not_fit_are_refused(
    model: PipelineWorldModel, arrays: dict[str, np.ndarray], param: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.import_context(arrays)
    assert caught.value.param == param


def test_warming_makes_a_video_and_leaves_no_trace(model: PipelineWorldModel, folder: Path) -> None:
    before = denoise(model, begin(model, frames=SHORT))
    model.warm()
    assert torch.equal(denoise(model, begin(model, frames=SHORT)), before)
