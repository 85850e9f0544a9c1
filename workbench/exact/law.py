r"""The exact output law of a sampler on Gaussian data, without sampling.

On Gaussian data an evaluation is affine in each mode,

.. math:: D = \mu + \frac{\alpha\lambda}{\alpha^2\lambda + \sigma^2}(x - \alpha\mu),

so the joint mean and covariance of a program's registers go through its rows exactly, fresh noise
and memory of earlier steps included. The error of a sampler is then a number, not an estimate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.sampling import Combine, Evaluate, Grid, Program, Sampler

__all__ = ["law", "w2"]


def law(
    diffusion: Diffusion, sampler: Sampler, grid: Grid, start: Gaussian | None = None
) -> Gaussian:
    """The law of the final state of ``sampler`` on ``grid``, as a Gaussian (float64).

    Args:
        diffusion: of a Gaussian.
        sampler: any linear one.
        grid: the nodes.
        start: law of the initial state; None is what ``wb.sample`` starts from, the process's prior
            at ``grid.t[0]``. Independent of all noise.

    Raises:
        TypeError: data that are not Gaussian.
    """
    data = diffusion.denoiser
    if not isinstance(data, Gaussian):
        raise TypeError(
            f"the exact law needs Gaussian data; these are {data!r}. For others, sample."
        )
    program = sampler.program(diffusion.process, grid)
    basis, variances = _modes(data, complete=start is not None)
    mean = data.mean.flatten().double()
    mean = mean if basis is None else mean @ basis
    gain, shift, noise = _transfer(program, variances, mean)
    if start is None:
        spread = diffusion.process.prior_std(grid.t[0]) ** 2
        made, rest = gain.square() * spread + noise, 0.0
        final = shift if basis is None else basis @ shift
        if len(variances) < data.dim:  # outside the basis: one more mode, of variance ``rest``
            outside = data.mean.flatten().double() - basis @ mean
            unit = torch.ones(1).to(mean)
            (g,), (response,), (fresh,) = _transfer(program, data.rest * unit, unit)
            final, rest = final + response * outside, (g * g * spread + fresh).item()
        return Gaussian._make(final.reshape(data.event_shape), basis, made, rest)
    turn = torch.eye(data.dim, dtype=torch.float64, device=data.device) if basis is None else basis
    cov = turn.T @ start.cov.double() @ turn
    cov = gain[:, None] * cov * gain + torch.diag(noise)
    final = shift + gain * (start.mean.flatten().double() @ turn)
    cov = turn @ cov @ turn.T
    return Gaussian((turn @ final).reshape(data.event_shape), 0.5 * (cov + cov.T))


def _modes(data: Gaussian, complete: bool) -> tuple[Tensor | None, Tensor]:
    """Basis (d, r) and variances (r,) of the data, float64; r = d if ``complete``."""
    if data.basis is None:
        return None, data.variances
    basis = data.basis.double()
    if not complete or basis.shape[1] == data.dim:
        return basis, data.variances
    full = torch.linalg.qr(basis, mode="complete").Q
    full[:, : basis.shape[1]] = basis
    others = data.variances.new_full((data.dim - basis.shape[1],), data.rest)
    return full, torch.cat([data.variances, others])


def _transfer(program: Program, variances: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per mode: the final state is ``gain * x_T + shift + N(0, noise)``."""
    zero = torch.zeros_like(variances)
    gains, shifts = {"x": torch.ones_like(variances)}, {"x": zero}
    covs: dict[tuple[str, str], Tensor] = {("x", "x"): zero}

    def cov(a: str, b: str) -> Tensor:
        return covs.get((a, b), zero)

    def put(out: str, gain: Tensor, shift: Tensor, cross: dict[str, Tensor], own: Tensor) -> None:
        gains[out], shifts[out] = gain, shift
        for name, value in cross.items():
            covs[name, out] = covs[out, name] = value
        covs[out, out] = own

    for row in program.rows:
        others = [name for name in gains if name != row.out]
        if isinstance(row, Evaluate):
            a, s = row.node.alpha, row.node.sigma
            g = a * variances / (a * a * variances + s * s).clamp_min(1e-300)
            cross = {name: g * cov(row.at, name) for name in others}
            own = g * g * cov(row.at, row.at)
            put(row.out, g * gains[row.at], mean + g * (shifts[row.at] - a * mean), cross, own)
        else:
            _combine(row, gains, shifts, cov, put, others, zero)
    return gains["x"], shifts["x"], covs["x", "x"]


def _combine(row: Combine, gains, shifts, cov, put, others, zero) -> None:
    gain = sum((c * gains[k] for k, c in row.terms), zero)
    shift = sum((c * shifts[k] for k, c in row.terms), zero)
    cross = {name: sum((c * cov(k, name) for k, c in row.terms), zero) for name in others}
    own = sum((c * e * cov(k, m) for k, c in row.terms for m, e in row.terms), zero)
    put(row.out, gain, shift, cross, own + row.noise**2)


def w2(a: Gaussian, b: Gaussian) -> float:
    r"""2-Wasserstein (Bures) distance between two Gaussians [x].

    .. math:: W_2^2 = |\mu_a - \mu_b|^2 + \operatorname{tr} C_a + \operatorname{tr} C_b
              - 2\,\|C_a^{1/2} C_b^{1/2}\|_*

    In a common basis it is the distance between the vectors of standard deviations.
    """
    apart = (a.mean.double() - b.mean.double()).square().sum().item()
    same = (a.basis is None and b.basis is None) or (
        a.basis is not None
        and b.basis is not None
        and a.basis.shape == b.basis.shape
        and torch.equal(a.basis.double(), b.basis.double())
    )
    if same:
        spread = (a.variances.sqrt() - b.variances.sqrt()).square().sum().item()
        others = a.dim - len(a.variances)
        return math.sqrt(apart + spread + others * (math.sqrt(a.rest) - math.sqrt(b.rest)) ** 2)
    roots = [_root(g) for g in (a, b)]
    nuclear = torch.linalg.svdvals(roots[0].T @ roots[1]).sum().item()
    traces = sum(g.spectrum.sum().item() for g in (a, b))
    return math.sqrt(max(0.0, apart + traces - 2 * nuclear))


def _root(g: Gaussian) -> Tensor:
    """A matrix R with R R^T the covariance."""
    basis, variances = _modes(g, complete=g.rest > 0)
    return torch.diag(variances.sqrt()) if basis is None else basis * variances.sqrt()
