"""Pipelines of diffusers from end to end, without text encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import worldcache
from tests.pipelines.cases import TEXT, cogvideox, fixed, flow, flux, ltx, mochi, sd3, wan

STEPS = 8


def wan_pipe() -> Any:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.WanPipeline(None, None, None, scheduler, wan())


def run_wan(pipe: Any, **arguments: Any) -> Tensor:
    return pipe(
        prompt_embeds=fixed(1, TEXT, 8),
        negative_prompt_embeds=-fixed(1, TEXT, 8),
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
        **arguments,
    ).frames


def cogvideox_pipe() -> Any:
    return diffusers.CogVideoXPipeline(None, None, None, cogvideox(), diffusers.CogVideoXDDIMScheduler())


def run_cogvideox(pipe: Any) -> Tensor:
    return pipe(
        prompt_embeds=fixed(1, TEXT, 8),
        negative_prompt_embeds=-fixed(1, TEXT, 8),
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        max_sequence_length=TEXT,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).frames


def flux_pipe() -> Any:
    return diffusers.FluxPipeline(flow(), None, None, None, None, None, flux())


def run_flux(pipe: Any) -> Tensor:
    return pipe(
        prompt_embeds=fixed(1, TEXT, 8),
        pooled_prompt_embeds=fixed(1, 8),
        height=64,
        width=64,
        num_inference_steps=STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).images


def sd3_pipe() -> Any:
    return diffusers.StableDiffusion3Pipeline(sd3(), flow(), None, *[None] * 6)


def run_sd3(pipe: Any) -> Tensor:
    return pipe(
        prompt_embeds=fixed(1, TEXT, 8),
        negative_prompt_embeds=-fixed(1, TEXT, 8),
        pooled_prompt_embeds=fixed(1, 8),
        negative_pooled_prompt_embeds=-fixed(1, 8),
        height=64,
        width=64,
        num_inference_steps=STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).images


def ltx_pipe() -> Any:
    return diffusers.LTXPipeline(flow(), None, None, None, ltx())


def run_ltx(pipe: Any) -> Tensor:
    return pipe(
        prompt_embeds=fixed(1, TEXT, 8),
        prompt_attention_mask=torch.ones(1, TEXT),
        negative_prompt_embeds=-fixed(1, TEXT, 8),
        negative_prompt_attention_mask=torch.ones(1, TEXT),
        height=128,
        width=128,
        num_frames=17,
        num_inference_steps=STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).frames


def mochi_pipe() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(scheduler, None, None, None, mochi())


def run_mochi(pipe: Any) -> Tensor:
    return pipe(
        prompt_embeds=fixed(1, TEXT, 8),
        prompt_attention_mask=torch.ones(1, TEXT).bool(),
        negative_prompt_embeds=-fixed(1, TEXT, 8),
        negative_prompt_attention_mask=torch.ones(1, TEXT).bool(),
        height=64,
        width=64,
        num_frames=7,
        num_inference_steps=STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).frames


Runner = tuple[Callable[[], Any], Callable[[Any], Tensor], tuple[str | None, ...]]

PIPELINES: dict[str, Runner] = {
    "Wan": (wan_pipe, run_wan, ("cond", "uncond")),
    "CogVideoX": (cogvideox_pipe, run_cogvideox, ("cond_uncond",)),
    "Flux": (flux_pipe, run_flux, ("cond",)),
    "SD3": (sd3_pipe, run_sd3, (None,)),
    "LTX": (ltx_pipe, run_ltx, ("cond_uncond",)),
    "Mochi": (mochi_pipe, run_mochi, ("cond_uncond",)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("make", "run", "contexts"), PIPELINES.values(), ids=list(PIPELINES))
def test_a_pipeline_from_end_to_end(
    make: Callable[[], Any], run: Callable[[Any], Tensor], contexts: tuple[str | None, ...]
) -> None:
    pipe = quiet(make())
    plain = run(pipe)
    worldcache.enable(pipe, "none")
    assert torch.equal(run(pipe), plain)
    worldcache.disable(pipe)

    worldcache.enable(pipe, warmup_steps=3, drift_threshold=1e9, max_skip=2)
    cached = run(pipe)
    assert not torch.equal(cached, plain) and cached.isfinite().all()
    assert torch.equal(run(pipe), cached)
    summary = worldcache.summary(pipe)
    assert [branch.context for branch in summary.branches] == list(contexts)
    assert {branch.decisions for branch in summary.branches} == {"FFF..F.F"}
    worldcache.disable(pipe)
    assert torch.equal(run(pipe), plain)


def test_a_call_that_raises_or_is_interrupted_leaves_nothing_to_the_next() -> None:
    pipe = quiet(wan_pipe())
    worldcache.enable(pipe, "interval", interval=3)
    expected = run_wan(pipe)

    def fail(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise KeyboardInterrupt
        return values

    def interrupt(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 3
        return values

    with pytest.raises(KeyboardInterrupt):
        run_wan(pipe, callback_on_step_end=fail)
    assert {branch.decisions for branch in worldcache.summary(pipe).branches} == {"F..F"}
    assert torch.equal(run_wan(pipe), expected)
    run_wan(pipe, callback_on_step_end=interrupt)
    assert {branch.decisions for branch in worldcache.summary(pipe).branches} == {"F..F"}
    assert torch.equal(run_wan(pipe), expected)


def test_two_threads_with_a_pipeline_each() -> None:
    first, second = quiet(wan_pipe()), quiet(sd3_pipe())
    worldcache.enable(first, "interval", interval=3)
    worldcache.enable(second, "taylor", interval=2, warmup_steps=2)
    alone = run_wan(first), run_sd3(second)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            together = pool.submit(run_wan, first), pool.submit(run_sd3, second)
            assert torch.equal(together[0].result(), alone[0])
            assert torch.equal(together[1].result(), alone[1])
    assert worldcache.summary(first).branches[0].decisions == "F..F..F."
