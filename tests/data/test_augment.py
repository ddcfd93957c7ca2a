"""What training pictures are turned into: a distortion of no strength is none, each does what it says, by the seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laconic.data.augment import rotate_and_scale

NONE = {"degrees": 0.0, "scale": 0.0, "shear": 0.0, "pixels": 0.0}


def distorted(x: torch.Tensor, seed: int = 0, **strength: float) -> torch.Tensor:
    inputs = rotate_and_scale(**{**NONE, **strength})({"x": x}, torch.Generator().manual_seed(seed))
    return inputs["x"]


def spot(row: int, column: int) -> torch.Tensor:
    """A blot around one place of 64 pictures of 28 x 28."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 4).expand(64, 1, 28, 28)


def centres(pictures: torch.Tensor) -> torch.Tensor:
    """Where each picture's weight lies, from the middle: (n, 2), rows and columns."""
    along = torch.arange(28.0) - 13.5
    weight = pictures[:, 0] / pictures[:, 0].sum((1, 2), keepdim=True)
    return torch.stack([(weight.sum(2) * along).sum(1), (weight.sum(1) * along).sum(1)], 1)


def test_no_strength_changes_nothing() -> None:
    torch.testing.assert_close(distorted(spot(9, 17)), spot(9, 17), atol=1e-5, rtol=0)
    flat = torch.rand(3, 28)
    assert distorted(flat, degrees=90.0) is flat, "no picture"


def test_moving_stays_within_its_pixels() -> None:
    moved = centres(distorted(spot(14, 13), pixels=2.0)) - centres(spot(14, 13))
    assert moved.abs().max() <= 2.01
    assert moved.abs().amax(0).min() > 1.5


def test_rotating_keeps_the_distance_from_the_middle() -> None:
    before, after = centres(spot(20, 14)), centres(distorted(spot(20, 14), degrees=30.0))
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), atol=0.05, rtol=0)
    turned = torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0])
    assert 25 < torch.rad2deg(turned.abs().max()) <= 30.1


@pytest.mark.parametrize(("what", "most"), [("scale", 0.25), ("shear", 0.25)])
def test_stretching_and_shearing_move_what_is_far_out(what: str, most: float) -> None:
    strength: dict[str, Any] = {what: most}
    far = (centres(distorted(spot(21, 21), **strength)) - centres(spot(21, 21))).norm(dim=1)
    middle = (centres(distorted(spot(14, 14), **strength)) - centres(spot(14, 14))).norm(dim=1)
    assert far.max() > 1
    assert middle.max() < 0.3


def test_the_seed_decides() -> None:
    x = spot(10, 10)
    assert torch.equal(distorted(x, 1, degrees=9.0), distorted(x, 1, degrees=9.0))
    assert not torch.equal(distorted(x, 1, degrees=9.0), distorted(x, 2, degrees=9.0))
    assert not torch.equal(*distorted(x, degrees=9.0)[:2]), "each picture its own"
