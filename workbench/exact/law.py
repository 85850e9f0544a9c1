r"""The exact output law of a sampler on Gaussian data, without sampling.

On Gaussian data an evaluation is affine in each mode,

.. math:: D = \mu + \frac{\alpha\lambda}{\alpha^2\lambda + \sigma^2}(x - \alpha\mu),

so the joint mean and covariance of a program's registers go through its rows exactly, fresh noise
and memory of earlier steps included. The error of a sampler is then a number, not an estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.processes.spectral import Spectral
from workbench.sampling import Combine, Evaluate, Grid, Program, Sampler

__all__ = ["law"]


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
        TypeError: data that are not Gaussian, or not independent in the basis of the process.
    """
    data = diffusion.core
    if not isinstance(data, Gaussian):
        raise TypeError(
            f"the exact law needs Gaussian data; these are {data!r}. For others, sample."
        )
    spectral = isinstance(diffusion.process, Spectral)
    if spectral and data.basis is not None:
        raise TypeError(
            f"the modes of {diffusion.process!r} are correlated in these data, so there is no law "
            "mode by mode; sample, or use data with a diagonal covariance in that basis."
        )
    program = sampler.program(diffusion.process, grid)
    made = _from_prior(diffusion, program, data, grid) if start is None else None
    made = made or _from_law(diffusion, program, data, grid, start)
    if spectral:
        made = made.transformed(diffusion.process.basis.matrix.T.to(made.dtype))
    if diffusion.condition is not None:
        offset = diffusion.process.shift(grid.t[-1])[0] * diffusion.condition.double()
        made = Gaussian._make(made.mean + offset, made.basis, made.variances, made.rest)
    return made


def _from_prior(diffusion: Diffusion, program: Program, data: Gaussian, grid: Grid) -> Gaussian:
    """The law of the core variable, started from the process's prior (independent in any basis)."""
    basis, variances = _modes(data, complete=False)
    mean = data.mean.flatten().double()
    inner = mean if basis is None else mean @ basis
    gain, shift, noise = _transfer(program, variances, inner)
    process, t = diffusion.process, grid.t[0]
    spread = torch.as_tensor(process.prior_std(t), dtype=torch.float64).flatten().to(mean) ** 2
    begin = torch.zeros_like(mean)
    if diffusion.condition is not None:
        off = process.prior_mean(t) - process.shift(t)[0]
        begin = off * diffusion.condition.flatten().double()
    inside = begin if basis is None else begin @ basis
    made, rest = gain.square() * spread + noise, 0.0
    final = shift + gain * inside
    final = final if basis is None else basis @ final
    if len(variances) < data.dim:  # outside the basis: one more mode, of variance ``rest``
        unit = torch.ones(1).to(mean)
        (g,), (response,), (fresh,) = _transfer(program, data.rest * unit, unit)
        final = final + response * (mean - basis @ inner) + g * (begin - basis @ inside)
        rest = (g * g * spread + fresh).item()
    return Gaussian._make(final.reshape(data.event_shape), basis, made, rest)


def _from_law(
    diffusion: Diffusion, program: Program, data: Gaussian, grid: Grid, start: Gaussian
) -> Gaussian:
    """The law of the core variable, started from any Gaussian law of the state."""
    basis, variances = _modes(data, complete=True)
    mean = data.mean.flatten().double()
    if _same_basis(data, start):
        gain, shift, noise = _transfer(program, variances, mean @ basis)
        begin = diffusion.to_core(start.mean.to(diffusion.dtype), grid.t[0]).flatten().double()
        final = basis @ (shift + gain * (begin @ basis))
        made = gain.square() * start.variances + noise
        return Gaussian._make(final.reshape(data.event_shape), basis, made, 0.0)
    turn = torch.eye(data.dim, dtype=torch.float64, device=data.device) if basis is None else basis
    begin = diffusion.to_core(start.mean.to(diffusion.dtype), grid.t[0]).flatten().double()
    cov = start.cov.double()
    if isinstance(diffusion.process, Spectral):
        matrix = diffusion.process.basis.matrix.to(cov)
        cov = matrix.T @ cov @ matrix
    gain, shift, noise = _transfer(program, variances, mean @ turn)
    if _diagonal(cov) and basis is None:  # stays so: no need for a decomposition
        made = gain.square() * cov.diagonal() + noise
        return Gaussian._make((shift + gain * begin).reshape(data.event_shape), None, made, 0.0)
    cov = turn.T @ cov @ turn
    cov = gain[:, None] * cov * gain + torch.diag(noise)
    final = turn @ (shift + gain * (begin @ turn))
    cov = turn @ cov @ turn.T
    return Gaussian(final.reshape(data.event_shape), 0.5 * (cov + cov.T))


def _same_basis(a: Gaussian, b: Gaussian) -> bool:
    """Whether two laws have one and the same complete eigenbasis."""
    complete = a.basis is not None and b.basis is not None and len(a.variances) == a.dim
    return complete and torch.equal(a.basis.double(), b.basis.double())


def _diagonal(matrix: Tensor) -> bool:
    return int(matrix.count_nonzero()) == int(matrix.diagonal().count_nonzero())


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
            a, s = _per_mode(row.node.alpha), _per_mode(row.node.sigma)
            level = (a * a * variances + s * s).clamp_min(1e-300)
            score = row.of == "score"
            g = -1 / level if score else a * variances / level
            cross = {name: g * cov(row.at, name) for name in others}
            own = g * g * cov(row.at, row.at)
            base = zero if score else mean
            put(row.out, g * gains[row.at], base + g * (shifts[row.at] - a * mean), cross, own)
        else:
            _combine(row, gains, shifts, cov, put, others, zero)
    return gains["x"], shifts["x"], covs["x", "x"]


def _combine(row: Combine, gains, shifts, cov, put, others, zero) -> None:
    terms = [(k, _per_mode(c)) for k, c in row.terms]
    gain = sum((c * gains[k] for k, c in terms), zero)
    shift = sum((c * shifts[k] for k, c in terms), zero)
    cross = {name: sum((c * cov(k, name) for k, c in terms), zero) for name in others}
    own = sum((c * e * cov(k, m) for k, c in terms for m, e in terms), zero)
    put(row.out, gain, shift, cross, own + _per_mode(row.noise) ** 2)


def _per_mode(c: float | Tensor) -> float | Tensor:
    """A coefficient as a float or, under a spectral process, one value per mode (d,)."""
    return c.flatten() if isinstance(c, Tensor) else c
