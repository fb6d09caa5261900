"""Warnings about calibration crops: each kind alone, and none for photographs that are alike."""

from __future__ import annotations

import pytest
import torch

from qartsr_lib.images.datasets.advice import warnings_about


def crops(count: int = 20, brightness: float = 0.5, contrast: float = 0.1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    draw = lambda: torch.randn(1, 3, 32, 32, generator=generator)  # noqa: E731
    spread = lambda: 0.02 * torch.randn(1, generator=generator)  # noqa: E731
    return [(brightness + spread() + (contrast + spread().abs()) * draw()).clamp(0, 1) for _ in range(count)]


def test_enough_crops_that_are_alike_give_no_warning():
    assert warnings_about(crops(), 20) == []


@pytest.mark.parametrize(
    ("images", "files", "words"),
    [
        (crops(4), 4, ["4 crops of 4 images are few"]),
        (crops(), 1, ["20 crops of 1 images are few"]),
        (crops() + [torch.full((1, 3, 32, 32), 0.5)], 21, ["1 of 21 crops are nearly of one colour"]),
        (crops() + crops()[:2], 20, ["2 of 22 crops are repetitions"]),
        (crops() + crops(4, brightness=0.98, contrast=0.01), 24, ["4 of 24 crops are far darker, brighter"]),
        (crops(contrast=0.05) + crops(3, contrast=0.45), 23, ["3 of 23 crops are far darker, brighter"]),
        (crops(contrast=0.05) + crops(1, contrast=0.45), 21, []),
        ([torch.zeros(1, 3, 32, 32)] * 20, 20, ["20 of 20 crops are nearly of one", "19 of 20 crops are repetitions"]),
    ],
)
def test_each_kind_is_told_once(images, files, words):
    lines = warnings_about(images, files)
    assert len(lines) == len(words) and all(map(str.startswith, lines, words)), lines
