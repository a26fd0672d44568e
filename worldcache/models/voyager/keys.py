"""The published checkpoint's names as those of diffusers' classes, and a network's size from its shapes.

Published linear layers are fused: queries, keys and values in one, in single blocks with the feed-forward
part as well. The last layer's modulation is (shift, scale) there and (scale, shift) here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from worldcache.errors import ModelLoadError

Names = Mapping[str, tuple[str, ...]]
"""Published names of layers, and the layers that each is split into."""

_EMBEDDERS: Names = MappingProxyType(
    {
        "img_in.proj": ("x_embedder.proj",),
        "txt_in.input_embedder": ("context_embedder.proj_in",),
        "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
        "txt_in.t_embedder.mlp.2": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
        "txt_in.c_embedder.linear_1": ("context_embedder.time_text_embed.text_embedder.linear_1",),
        "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2",),
        "time_in.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    }
)
_CONTEXT: Names = MappingProxyType(
    {
        "condition_in.proj": ("context.embedder.proj",),
        "zero_linear1": ("context.to_double",),
        "zero_linear2": ("context.to_single",),
    }
)
_REFINER: Names = MappingProxyType(
    {
        "norm1": ("norm1",),
        "norm2": ("norm2",),
        "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "self_attn_proj": ("attn.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
        "adaLN_modulation.1": ("norm_out.linear",),
    }
)
_DOUBLE: Names = MappingProxyType(
    {
        "img_mod.linear": ("norm1.linear",),
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "img_attn_q_norm": ("attn.norm_q",),
        "img_attn_k_norm": ("attn.norm_k",),
        "img_attn_proj": ("attn.to_out.0",),
        "img_mlp.fc1": ("ff.net.0.proj",),
        "img_mlp.fc2": ("ff.net.2",),
        "txt_mod.linear": ("norm1_context.linear",),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn_q_norm": ("attn.norm_added_q",),
        "txt_attn_k_norm": ("attn.norm_added_k",),
        "txt_attn_proj": ("attn.to_add_out",),
        "txt_mlp.fc1": ("ff_context.net.0.proj",),
        "txt_mlp.fc2": ("ff_context.net.2",),
    }
)
_SINGLE: Names = MappingProxyType(
    {
        "modulation.linear": ("norm.linear",),
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
        "q_norm": ("attn.norm_q",),
        "k_norm": ("attn.norm_k",),
    }
)

REFINER_BLOCKS = "txt_in.individual_token_refiner.blocks"
DOUBLE_BLOCKS = "double_blocks"
SINGLE_BLOCKS = "single_blocks"
ROPE_AXES = MappingProxyType({128: (16, 56, 56)})
"""How a head of that many channels is divided among time, height and width: it cannot be told from shapes."""


def transformer_config(
    weights: Mapping[str, Tensor], rope_axes_dim: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """The arguments of ``VoyagerTransformer3DModel`` that published weights were made with.

    Args:
        weights: by published names; only the shapes are read.
        rope_axes_dim: channels of a head for time, height and width; the published ones if ``None``.

    Raises:
        ModelLoadError: a key that must be there is missing.
    """

    def shape(key: str) -> tuple[int, ...]:
        if key not in weights:
            raise ModelLoadError(f"the key {key!r} is missing")
        return tuple(weights[key].shape)

    width, channels, patch_time, patch = shape("img_in.proj.weight")[:4]
    head = shape(f"{DOUBLE_BLOCKS}.0.img_attn_q_norm.weight")[0]
    axes = rope_axes_dim or ROPE_AXES.get(head)
    if axes is None or sum(axes) != head:
        raise ModelLoadError(f"rope_axes_dim in world.json must be three numbers whose sum is {head}")
    return {
        "in_channels": channels,
        "out_channels": shape("final_layer.linear.weight")[0] // (patch_time * patch**2),
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": _count(weights, DOUBLE_BLOCKS),
        "num_single_layers": _count(weights, SINGLE_BLOCKS),
        "num_refiner_layers": _count(weights, REFINER_BLOCKS),
        "mlp_ratio": shape(f"{DOUBLE_BLOCKS}.0.img_mlp.fc1.weight")[0] / width,
        "patch_size": patch,
        "patch_size_t": patch_time,
        "guidance_embeds": False,
        "text_embed_dim": shape("txt_in.input_embedder.weight")[1],
        "pooled_projection_dim": shape("vector_in.in_layer.weight")[1],
        "rope_axes_dim": tuple(axes),
        "image_condition_type": "latent_concat",
        "context_block": "condition_in.proj.weight" in weights,
    }


def to_diffusers(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Published weights as the state of a ``VoyagerTransformer3DModel`` with ``config``.

    Raises:
        ModelLoadError: a key is missing or unexpected, or a shape cannot be split.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layers = dict(_layers(config))
    expected = {f"{name}.{part}" for name in layers for part in _parts(name)}
    for key in expected:
        if key not in weights:
            raise ModelLoadError(f"the key {key!r} is missing")
    state: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key not in expected:
            raise ModelLoadError(f"the key {key!r} is unexpected; this is no such checkpoint")
        name, _, part = key.rpartition(".")
        targets = layers[name]
        if name == "final_layer.adaLN_modulation.1":
            value = torch.cat([*reversed(value.chunk(2))])
        sizes = [width] * min(len(targets), 3) + [len(value) - 3 * width] * (len(targets) - 3)
        if len(targets) == 1:
            sizes = [len(value)]
        if min(sizes) < 0 or sum(sizes) != len(value):
            raise ModelLoadError(f"the key {key!r} has the shape {list(value.shape)}, which does not fit")
        for target, piece in zip(targets, value.split(sizes), strict=True):
            state[f"{target}.{part}"] = piece
    return state


def _layers(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from _EMBEDDERS.items()
    blocks = [
        (REFINER_BLOCKS, "context_embedder.token_refiner.refiner_blocks", "num_refiner_layers", _REFINER),
        (DOUBLE_BLOCKS, "transformer_blocks", "num_layers", _DOUBLE),
        (SINGLE_BLOCKS, "single_transformer_blocks", "num_single_layers", _SINGLE),
    ]
    for published, ours, count, names in blocks:
        for i in range(config[count]):
            yield from _within(names, f"{published}.{i}", f"{ours}.{i}")
    if config.get("context_block"):
        yield from _CONTEXT.items()
        yield from _within(_DOUBLE, "context_block1", "context.double_block")
        yield from _within(_SINGLE, "context_block2", "context.single_block")


def _within(names: Names, published: str, ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, targets in names.items():
        yield f"{published}.{name}", tuple(f"{ours}.{target}" for target in targets)


def _parts(name: str) -> tuple[str, ...]:
    """What a layer is made of."""
    return ("weight",) if name.endswith(("q_norm", "k_norm")) else ("weight", "bias")


def _count(weights: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks there are under a name: one more than the largest index."""
    depth = blocks.count(".") + 1
    indices = {key.split(".")[depth] for key in weights if key.startswith(f"{blocks}.")}
    return 1 + max((int(index) for index in indices if index.isdigit()), default=-1)
