"""The split on a grid against closed forms, in the plane and in space."""

import math

import numpy as np
import pytest
import torch
from helpers import covariance, normals

import workbench as wb
from workbench.exact.gauge import gauge_split
from workbench.exact.helmholtz import grid_split


def grid(low: float, high: float, nodes: int, axes: int = 2) -> tuple[torch.Tensor, float]:
    h = (high - low) / nodes
    line = low + h * (torch.arange(nodes).double() + 0.5)
    return torch.stack(torch.meshgrid(*[line] * axes, indexing="ij"), -1), h


@pytest.mark.parametrize(("axes", "nodes"), [(2, (32, 64, 128)), (3, (12, 24, 48))])
def test_linear_fields_converge_to_the_closed_split_with_order_two(axes, nodes, generator):
    law = wb.Gaussian(0.2 * normals(generator, axes), covariance(generator, axes, 0.3, 1.0))
    b = normals(generator, axes, axes)
    exact, errors = gauge_split(b, law), []
    for n in nodes:
        points, h = grid(-6.0, 6.0, n, axes)
        y, log_prob = points - law.mean, law.log_prob(points, 1.0, 0.0)
        split = grid_split(y @ b.T, log_prob + 7.0, h)
        # Pythagoras holds to rounding, whatever the spacing.
        parts = split.conservative_norm2 + split.gauge_norm2
        assert parts == pytest.approx(split.norm2, rel=1e-9)
        there = split.support
        off = (split.conservative - y @ exact.conservative)[there].square().nansum(-1)
        in_norm = (log_prob[there].exp() * off).sum().mul(h**axes).sqrt().item()
        errors.append((in_norm, abs(split.gauge_norm2 - exact.gauge_norm2)))
        assert split.pieces == 1 and split.border < 1e-6
    slopes = np.log2(np.array(errors)[:-1] / np.array(errors)[1:])
    assert (slopes[-1] > 1.8).all() and (slopes[-1] < 2.3).all(), slopes
    assert errors[-1][0] < 0.02 * math.sqrt(exact.conservative_norm2)


def test_a_mixture_s_score_is_recovered_from_under_a_gauge():
    """c A grad log p of any density: conservative part the score, gauge part what was added."""
    law, rho, c = wb.datasets.ring().law, 0.3, 0.7
    a = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
    off, share = [], []
    for n in (64, 128):
        points, h = grid(-3.2, 3.2, n)
        score = law.at(1.0, rho).score(points)
        split = grid_split(score + c * score @ a.T, law.at(1.0, rho).log_prob(points), h)
        weight = law.at(1.0, rho).log_prob(points).exp()[split.support, None] * h * h
        square = (weight * (split.conservative - score)[split.support].square()).sum()
        off.append((square / split.conservative_norm2).sqrt().item())
        share.append(split.gauge_norm2 / split.norm2 - c**2 / (1 + c**2))
    assert off[1] < 0.02 and 3.4 < off[0] / off[1] < 4.6
    assert abs(share[1]) < 1e-3 and 3.4 < share[0] / share[1] < 4.6


def test_far_modes_have_a_potential_each():
    law = wb.Mixture(
        torch.tensor([0.5, 0.5]).double(),
        torch.tensor([[-3.0, 0.0], [3.0, 0.0]]).double(),
        torch.tensor([0.1, 0.1]).double(),
    )
    points, h = grid(-5.0, 5.0, 80)
    level = law.at(1.0, 0.1)
    split = grid_split(level.score(points), level.log_prob(points), h)
    assert split.pieces == 2 and split.gauge_norm2 < 1e-5 * split.norm2


def test_what_it_cannot_split_is_a_sentence():
    points, h = grid(-3.0, 3.0, 16)
    level = -0.5 * points.square().sum(-1)
    for field, log_prob, spacing, said in (
        (points[..., 0], level[:, 0], h, "estimate the split from samples"),
        (points[..., :1], level, h, "one vector at each node"),
        (points, level - math.inf, h, "the density vanishes"),
        (points, 1e6 * level, h, "too coarse"),
        (points.where(points > 0, math.nan), level, h, "sampled off its support"),
        (points, level, -h, "spacing was"),
    ):
        with pytest.raises(ValueError, match=said):
            grid_split(field, log_prob, spacing)
