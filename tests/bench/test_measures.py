"""Distances between pictures, worked out by hand or by scikit-image."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity

from worldcache.bench.measures import PSNR_CAP, closeness, faithfulness, split, ssim


def test_psnr_is_a_mean_over_chunks_and_over_the_pooled_error() -> None:
    target = torch.zeros(1, 4, 8, 8, 3)
    ours = target.clone()
    ours[:, :2] = 0.1  # mse 0.01: 20 dB
    ours[:, 2:] = 0.01  # mse 0.0001: 40 dB
    values = closeness({"rgb": ours}, {"rgb": target}, frames=2)["rgb"]
    assert values["psnr"] == pytest.approx(30.0, abs=1e-4)
    assert values["psnr_lowest"] == pytest.approx(20.0, abs=1e-4)
    # mean mse 0.00505: -10 log10(0.00505) = 22.967
    assert values["psnr_pooled"] == pytest.approx(22.967, abs=1e-3)


def test_equal_pictures_have_the_capped_psnr() -> None:
    same = torch.rand(2, 2, 8, 8, 1)
    values = closeness({"depth": same}, {"depth": same}, frames=2)["depth"]
    assert values["psnr"] == PSNR_CAP
    assert values["ssim"] == pytest.approx(1.0)


def test_differences_that_rounding_hides_are_seen() -> None:
    target = torch.full((1, 1, 8, 8, 1), 0.5)
    values = closeness({"depth": target + 1e-4}, {"depth": target}, frames=1)["depth"]
    assert values["psnr"] == pytest.approx(80.0, abs=0.05)


def test_ssim_is_scikit_images() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 1, 16, 20, 3, generator=generator)
    b = (a + 0.2 * torch.rand(a.shape, generator=generator)).clamp(0, 1)
    ours = ssim(a, b)
    for index in range(2):
        theirs = structural_similarity(
            a[index, 0].double().numpy(), b[index, 0].double().numpy(), channel_axis=-1, data_range=1.0
        )
        assert float(ours[index]) == pytest.approx(theirs, abs=1e-9)


def test_surplus_frames_are_dropped() -> None:
    assert split(torch.zeros(2, 7, 3, 3, 1), 3).shape == (4, 3, 3, 3, 1)


def test_the_error_is_in_the_modalitys_unit_and_told_where_the_view_moves() -> None:
    truth = {"depth": torch.zeros(2, 1, 8, 8, 1)}
    ours = {"depth": torch.stack([torch.full((1, 8, 8, 1), 0.1), torch.full((1, 8, 8, 1), 0.3)])}
    report = faithfulness(ours, truth, 1, {"depth": 50.0}, (False, True))
    assert report["all"]["depth"]["error"] == pytest.approx(10.0)
    assert report["moving"]["depth"]["error"] == pytest.approx(15.0)
    assert report["moving_samples"] == 1
