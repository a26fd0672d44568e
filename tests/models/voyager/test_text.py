"""The text encoders, tiny and with random weights, through the files that a folder has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.voyager.tiny import TEXT, observe
from worldcache.core import Conditioning
from worldcache.models.registry import load_model
from worldcache.models.voyager.world import VoyagerWorldModel

transformers: Any = pytest.importorskip("transformers")
pipeline: Any = pytest.importorskip("diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video")

SPECIAL = ("<pad>", "<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PATCHES = 24
"""Along each side of a picture: LLaVA's 576."""


def write_llava(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = pipeline.DEFAULT_PROMPT_TEMPLATE["template"].replace("|>", "|> ").replace("<|", " <|").split()
    known = dict.fromkeys([*SPECIAL, "<unk>", *words, *"abcdefgh"])
    vocabulary = {word: index for index, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[1:]),
    )
    fast.save_pretrained(path)
    sizes = {"hidden_size": 24, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **sizes, num_hidden_layers=3, image_size=2 * PATCHES, patch_size=2
        ),
        text_config=transformers.LlamaConfig(
            **sizes, num_hidden_layers=3, vocab_size=len(known), pad_token_id=0
        ),
        image_token_index=vocabulary["<image>"],
        pad_token_id=0,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(path)
    size = {"height": 2 * PATCHES, "width": 2 * PATCHES}
    transformers.CLIPImageProcessor(size={"shortest_edge": 2 * PATCHES}, crop_size=size).save_pretrained(path)


def write_clip(path: Path) -> None:
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {word: index for index, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(path)
    config = transformers.CLIPTextConfig(
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(vocabulary),
        eos_token_id=vocabulary["<|endoftext|>"],
        bos_token_id=vocabulary["<|startoftext|>"],
    )
    transformers.CLIPTextModel(config).save_pretrained(path)


@pytest.fixture(scope="module")
def encoding(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose texts are encoded."""
    path = Path(shutil.copytree(folder, tmp_path_factory.mktemp("text") / "model"))
    (path / TEXT).unlink()
    torch.manual_seed(0)
    write_llava(path / "text_encoder_i2v")
    write_clip(path / "text_encoder_2")
    return path


@pytest.fixture(scope="module")
def encoder(encoding: Path) -> VoyagerWorldModel:
    model = load_model("voyager", path=encoding)
    assert isinstance(model, VoyagerWorldModel)
    return model


def test_any_prompt_is_taken(encoder: VoyagerWorldModel) -> None:
    assert encoder.info.conditioning == {"prompt": (), "negative_prompt": ()}
    # the words of this vocabulary are fewer than the places that are cut off before a prompt
    texts = Conditioning(prompt="a " * 40 + "b c d", negative_prompt="a " * 40)
    context = encoder.begin(observe(), texts)
    assert context.prompt.tokens.shape == (len(context.prompt.mask), 24)
    assert context.prompt.pooled.shape == (12,)
    # every other place of the picture counts, and one for each of the three words more
    assert context.prompt.mask[: PATCHES**2 // 2].all()
    assert context.prompt.mask.sum() - context.negative.mask.sum() == 3
    assert not torch.equal(context.prompt.pooled, context.negative.pooled)


def test_the_picture_is_looked_at(encoder: VoyagerWorldModel) -> None:
    one, other = (encoder.begin(observe(seed), Conditioning(prompt="a b " * 30)) for seed in (0, 1))
    assert not torch.allclose(one.prompt.tokens, other.prompt.tokens)
    assert torch.equal(one.prompt.pooled, other.prompt.pooled)


def test_offloaded_encoders_say_the_same_and_take_no_memory(
    encoding: Path, encoder: VoyagerWorldModel
) -> None:
    offloaded = load_model("voyager", path=encoding, offload=True)
    asked = observe(), Conditioning(prompt="a b")
    np.testing.assert_allclose(
        offloaded.begin(*asked).prompt.tokens, encoder.begin(*asked).prompt.tokens, atol=1e-6
    )
    assert offloaded.memory_bytes < encoder.memory_bytes
