r"""The exact output law of a sampler on Gaussian data, without sampling.

On Gaussian data every evaluation is affine in each mode, so a linear sampler takes its start to a
Gaussian whose mean and variances follow from the rows of its program
(:func:`workbench.exact.transfer`), fresh noise and memory of earlier steps included. The error of a
sampler is then a number, not an estimate.
"""

from __future__ import annotations

import torch

from workbench.covariance import apply, completed, same_basis
from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.exact.modes import gaussian_core
from workbench.exact.transfer import transfer
from workbench.sampling import Grid, Program, Sampler
from workbench.sampling.plan import program_of


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
        TypeError: data that are not Gaussian, or not independent in the basis of the process; a
            sampler that is not linear.
    """
    data = gaussian_core(diffusion, "the exact law")
    program = program_of(diffusion, sampler, grid)
    if not program.linear:
        raise TypeError(f"{sampler!r} is not linear, so it has no exact law; sample.")
    if start is None:
        made = _from_prior(diffusion, program, data, grid)
    else:
        made = _from_law(diffusion, program, data, grid, start)
    return diffusion.law_from_core(made, grid.t[-1])


def _from_prior(diffusion: Diffusion, program: Program, data: Gaussian, grid: Grid) -> Gaussian:
    """The law of the core variable, started from the process's prior (independent in any basis)."""
    variances, mean = data.variances, data.mean.flatten().double()
    gain, response, noise, pull = transfer(program, variances)
    process, t = diffusion.process, grid.t[0]
    spread = torch.as_tensor(process.prior_std(t), dtype=torch.float64).flatten().to(mean) ** 2
    made, rest, outside = gain.square() * spread + noise, 0.0, (0.0, 0.0, 0.0)
    if len(variances) < data.dim:  # outside the basis: one more mode, of variance ``rest``
        (g,), (r,), (fresh,), (c,) = transfer(program, mean.new_tensor([data.rest]))
        outside, rest = (g, r, c), (g * g * spread + fresh).item()
    final = apply(data.basis, response, outside[1], mean)
    if diffusion.condition is not None:
        off = process.prior_mean(t) - process.shift(t)[0]
        shares = off * gain + pull, off * outside[0] + outside[2]
        final += apply(data.basis, *shares, diffusion.condition.flatten().double())
    return Gaussian._make(final.reshape(data.event_shape), data.basis, made, rest)


def _from_law(
    diffusion: Diffusion, program: Program, data: Gaussian, grid: Grid, start: Gaussian
) -> Gaussian:
    """The law of the core variable, started from any Gaussian law of the state."""
    basis, variances = completed(data.basis, data.variances, data.rest)
    gain, response, noise, pull = transfer(program, variances)
    mean = data.mean.flatten().double()
    begin = diffusion.to_core(start.mean.to(diffusion.dtype), grid.t[0]).flatten().double()
    drawn = 0 * mean if diffusion.condition is None else diffusion.condition.flatten().double()
    spectral = diffusion.process.spectral
    if basis is None:
        final = (response * mean + gain * begin + pull * drawn).reshape(data.event_shape)
        if start.basis is None and not spectral:
            return Gaussian._make(final, None, gain.square() * start.variances + noise, 0.0)
    else:
        shares = response * (mean @ basis) + gain * (begin @ basis) + pull * (drawn @ basis)
        final = (basis @ shares).reshape(data.event_shape)
        if len(data.variances) == data.dim and same_basis(data.basis, start.basis):
            return Gaussian._make(final, basis, gain.square() * start.variances + noise, 0.0)
    cov = start.cov.double()
    if spectral:
        matrix = diffusion.process.basis.matrix.to(cov)
        cov = matrix.T @ cov @ matrix
    diagonal = cov.count_nonzero() == cov.diagonal().count_nonzero()
    if basis is None and diagonal:  # stays so: no need for a decomposition
        return Gaussian._make(final, None, gain.square() * cov.diagonal() + noise, 0.0)
    cov = cov if basis is None else basis.T @ cov @ basis
    cov = gain[:, None] * cov * gain + torch.diag(noise)
    cov = cov if basis is None else basis @ cov @ basis.T
    return Gaussian(final, 0.5 * (cov + cov.T))
