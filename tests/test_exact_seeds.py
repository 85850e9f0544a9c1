"""Variance components over classes and seeds against an analysis of variance of samples."""

import math

import pytest
import torch
from helpers import covariance, normals, uniform

import workbench as wb
from workbench.exact.seeds import variance_components
from workbench.processes import HeatDissipation
from workbench.processes.bases import DCT


def classes_of(generator, count: int = 4, d: int = 3) -> list[wb.Gaussian]:
    return [wb.Gaussian(normals(generator, d), covariance(generator, d)) for _ in range(count)]


def anova(x: torch.Tensor) -> list[float]:
    """Components of a balanced two-way layout (class, seed, replicate, d) from its mean squares."""
    c, s, r, _ = x.shape
    cell = x.mean(2)
    row, column, grand = cell.mean(1), cell.mean(0), cell.mean((0, 1))
    ms_class = r * s * (row - grand).square().sum().item() / (c - 1)
    ms_seed = r * c * (column - grand).square().sum().item() / (s - 1)
    both = cell - row[:, None] - column + grand
    ms_both = r * both.square().sum().item() / ((c - 1) * (s - 1))
    within = (x - cell[:, :, None]).square().sum().item() / (c * s * (r - 1)) if r > 1 else 0.0
    return [
        (ms_class - ms_both) / (r * s),
        (ms_seed - ms_both) / (r * c),
        (ms_both - within) / r,
        within,
    ]


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_components_are_those_of_samples(eta, generator, record_property):
    """Each class carried exactly from shared noise, with fresh noise of its own where eta > 0."""
    process, laws = wb.EDM(sigma_max=20.0), classes_of(generator)
    seeds, repeats, s = 3000, 8, 0.5
    z = process.prior_std(20.0) * normals(generator, seeds, 3)
    rows = []
    for law in laws:
        back = wb.Diffusion(process, law)
        if eta:
            x = z[:, None].expand(-1, 2, -1)
            top, end = (law.noised(1.0, rho) for rho in (20.0, s))
            kept = (end.variances / top.variances) ** (0.5 * (1 + eta))
            fresh = (end.variances * (1 - (end.variances / top.variances) ** eta)).sqrt()
            noise = normals(generator, seeds, 2, 3)
            x = law.mean + ((x - law.mean) @ law.basis * kept + fresh * noise) @ law.basis.T
        else:
            x = back.flow(z, 20.0, s)[:, None]
        rows.append(x)
    x = torch.stack(rows)
    blocks = torch.tensor([anova(part) for part in x.chunk(repeats, 1)])
    got = variance_components(laws, process, eta, s=s)
    error = 8 * blocks.std(0) / math.sqrt(repeats)  # eight values: t-distributed
    for name, mean, wide, value in zip(got._fields, blocks.mean(0), error, got, strict=True):
        assert mean.item() == pytest.approx(value, abs=wide.item() + 1e-9), name
    record_property("measured", f"eta {eta}: {[round(v, 3) for v in got]}, icc {got.icc:.3f}")


def test_from_infinite_noise_it_is_the_square_root(generator):
    laws = classes_of(generator, 3)
    a, b = variance_components(laws), variance_components(laws, wb.RectifiedFlow())
    assert tuple(b) == pytest.approx(tuple(a), rel=1e-9)
    # A prior of mean zero also moves the class means a little towards each other.
    assert tuple(variance_components(laws, wb.VP())) == pytest.approx(tuple(a), rel=0.03)
    within = sum(law.cov.trace().item() for law in laws) / 3
    assert a.seed + a.interaction == pytest.approx(within, rel=1e-12)
    assert sum(a.shares) == pytest.approx(1.0)
    assert a.icc == pytest.approx(a.seed / within)


def test_every_form_of_covariance(generator):
    full = classes_of(generator, 3)
    basis = torch.linalg.qr(normals(generator, 3, 1)).Q
    low = wb.Gaussian.low_rank(normals(generator, 3), basis, torch.tensor([2.0]).double(), 0.2)
    flat = wb.Gaussian(normals(generator, 3), 0.1 + normals(generator, 3) ** 2)
    got = variance_components([*full, low, flat], wb.VP(), 0.2)
    dense = [wb.Gaussian(law.mean, law.cov) for law in (low, flat)]
    assert tuple(got) == pytest.approx(tuple(variance_components([*full, *dense], wb.VP(), 0.2)))


def test_equal_classes_have_nothing_but_the_seed(generator):
    law = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    got = variance_components([law, law])
    assert (got.between, got.interaction) == (0.0, 0.0)
    assert got.icc == 1.0
    eta = uniform(generator, 0.1, 1)
    assert variance_components([law, law], wb.RectifiedFlow(), eta).seed == pytest.approx(0.0)


def test_what_is_refused(generator):
    laws = classes_of(generator, 2)
    with pytest.raises(ValueError, match="has 1 laws of"):
        variance_components(laws[:1])
    with pytest.raises(ValueError, match=r"2 laws of \[2, 3\] dimensions"):
        variance_components([laws[0], wb.Gaussian(torch.zeros(2), 1.0)])
    with pytest.raises(ValueError, match="eta needs a process"):
        variance_components(laws, eta=0.5)
    with pytest.raises(TypeError, match="take a scalar process"):
        variance_components(laws, HeatDissipation(DCT((3,))))
