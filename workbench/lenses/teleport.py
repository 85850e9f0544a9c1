r"""How far the first part of a run can be skipped: analytical teleportation.

At high noise every score is nearly that of the Gaussian with the data's mean :math:`\mu` and
covariance, whose probability flow has a closed form. Carried by it from pure noise to a noise level
rho, and by a solver from there, a sample ends away from where the solver alone would have taken it:
by how much, as a function of rho, says how non-Gaussian the run is at each level. For Gaussian data
it is zero at every rho.

The solver walks in the coordinates that the Gaussian flow leaves at rest,

.. math:: c = \frac{u^\top (x/\alpha - \mu)}{\sqrt{\lambda + \rho^2}},\qquad
          \frac{dc}{d\log\rho} = -\frac{u^\top (D - D_G)}{\sqrt{\lambda + \rho^2}}

for each eigenvector u of variance :math:`\lambda`, with D the denoised state and :math:`D_G` that
of the Gaussian: a skip changes nothing in them, and what is integrated is the difference alone.

Source: Wang & Vastola 2024, arXiv:2412.09726.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.datasets import Data
from workbench.denoisers import Denoiser, Gaussian, Neural
from workbench.diffusion import Diffusion
from workbench.lenses.base import BOUNDS, Lens, OnStep, Subject, estimate, spaced
from workbench.lenses.checks import check_one_level
from workbench.lenses.errors import root_mean
from workbench.params import Param
from workbench.sampling import Grid, Record
from workbench.sampling.methods import Euler
from workbench.trajectory import sample

#: Quantiles over samples that are kept.
SHARES = (0.1, 0.5, 0.9)

#: Share of the data's standard deviation that a skip may cost to be called cheap.
CHEAP = 0.01

#: Roundings of the state that a walk may add up to: a few at each of ten units of log rho.
ROUNDING = 256

#: What is said of a process with a noise level for each mode.
NO_LEVEL = "there is no noise level to skip to, so use a process with one alpha and sigma"


def matched_gaussian(denoiser: Denoiser) -> Gaussian:
    """The Gaussian with the mean and covariance of a denoiser's data.

    Both are read off the denoiser at pure noise: there it returns the mean, and the covariance of
    x0 given x is that of the data.
    """
    if isinstance(denoiser, Gaussian):
        return denoiser
    zero = torch.zeros(1, *denoiser.event_shape, dtype=denoiser.dtype, device=denoiser.device)
    mean = denoiser.denoise(zero, 0.0, 1.0)[0]
    return Gaussian(mean, denoiser.posterior_cov(zero, 0.0, 1.0)[0])


def gaussian_of(subject: Subject) -> Gaussian:
    """The Gaussian with the mean and covariance of the data: those that a network was trained on,
    or those that a denoiser in closed form knows. Made once for each subject.

    Raises:
        NotImplementedError: a network, or a law without a covariance of its own, whose data are
            not at hand.
    """
    return subject.once("gaussian", lambda: _gaussian_of(subject.denoiser, subject.data))


def _gaussian_of(denoiser: Denoiser, data: Data | None) -> Gaussian:
    if not isinstance(denoiser, Neural):
        try:
            return matched_gaussian(denoiser)
        except ValueError as error:  # it has no covariance of its own
            if data is None:
                text = f"no covariance of the data is known: {error}"
                raise NotImplementedError(text) from None
    if data is None:
        raise NotImplementedError(
            "a network does not tell the mean and covariance of its data; give them: "
            "wb.measure(..., data=data)."
        )
    return Gaussian.fit(data.points.to(denoiser.device, torch.float64))


def teleportation(
    diffusion: Diffusion,
    seeds: Sequence[int],
    levels: int = 13,
    steps: int = 96,
    on_step: Callable[[int, int], None] | None = None,
    law: Gaussian | None = None,
) -> xr.Dataset:
    """Endpoint error of skipping to a noise level by the matched Gaussian's exact flow.

    Args:
        diffusion: any whose denoiser gives a posterior covariance, under a process with one alpha
            and sigma for all coordinates.
        seeds: one per sample; they start where ``wb.sample`` starts them.
        levels: how many noise levels, even in log rho; the last is the end of the run, skipped as
            a whole.
        steps: of the solver (fourth-order Runge-Kutta), even in log rho over the whole range; an
            even number. A start at pure noise is left by the Gaussian flow, which is exact there
            to order rho^-3.
        on_step: called as ``on_step(done, total)`` along the way, in units of work.
        law: the Gaussian whose flow carries; None: :func:`matched_gaussian`. A network is asked in
            float32, everything else in float64.

    Returns:
        Dataset over ``rho`` (decreasing; coord ``t``): ``rms`` root mean square over samples and
        coordinates of the endpoint's displacement [x]; ``quantile`` (rho, share), its 10, 50 and
        90 % quantiles over samples; ``floor``, how much of it changes when the solver's steps are
        doubled, and rounding: a displacement below that cannot be told from zero.

    Raises:
        NotImplementedError: a spectral process.
        ValueError: fewer than one level, or steps that are not an even number.
    """
    check_one_level(diffusion.process, NO_LEVEL)
    if steps < 2 or steps % 2 or levels < 1:
        raise ValueError(
            f"steps was {steps} and levels {levels}; steps must be an even number, at least 2, "
            "and levels at least 1."
        )
    dtype = torch.float32 if isinstance(diffusion.denoiser, Neural) else torch.float64
    law = (law or matched_gaussian(diffusion.denoiser)).to(torch.float64)
    diffusion = diffusion.to(dtype)
    process, std = diffusion.process, diffusion.denoiser.std
    lead = int(process(process.t_max).rho == math.inf)
    fine = Grid.log_snr(process, steps + lead)
    begin = sample(diffusion, Euler(), Grid.times(process, fine.t[:2]), seeds, Record("x"))["x"][0]
    twin = Diffusion(process, law, diffusion.condition)
    residual = _Residual(diffusion.core, twin.core)
    begin = twin.to_core(begin.to(torch.float64), fine.t[0])
    still = residual.coordinates(begin, fine.alpha[0], fine.sigma[0])
    nodes = [math.log(rho) for rho in fine.rho[lead:]]
    at = [2 * k for k in spaced(steps // 2 + 1, levels + 1)][1:]
    total = _work(at, steps) + _work([k // 2 for k in at], steps // 2)
    done = 0

    def told(groups: int) -> None:
        nonlocal done
        done += groups
        if on_step is not None:
            on_step(done, total)

    walked = residual.walk(still, nodes, at, told)
    coarse = residual.walk(still, nodes[::2], [k // 2 for k in at], told)
    scale = fine.alpha[-1] * residual.spread(nodes[-1])  # of c at the end [x]
    apart = scale * (walked[1:] - walked[:1])
    displaced = apart.square().mean(2)  # (level, sample)
    unsure = (apart - scale * (coarse[1:] - coarse[:1])).square().mean((1, 2)).sqrt()
    size = (scale * walked[0]).square().mean() + residual.mean.square().mean()
    rounding = ROUNDING * torch.finfo(dtype).eps * size.sqrt().item()
    shares = torch.tensor(SHARES, dtype=torch.float64, device=displaced.device)
    where = [k + lead for k in at]
    rms, error = root_mean(displaced)
    quantile = displaced.sqrt().quantile(shares, dim=1).T.cpu().numpy()
    floor = unsure.clamp_min(rounding).cpu().numpy()
    about = "displacement, quantile over samples"
    said = "change by doubling the solver's steps, and rounding"
    return xr.Dataset(
        {
            **estimate("rms", "rho", rms, "RMS displacement of the endpoint", "x", error),
            **estimate("quantile", ("rho", "share"), quantile, about, "x"),
            **estimate("floor", "rho", floor, said, "x"),
        },
        {
            "rho": [fine.rho[k] for k in where],
            "t": ("rho", [fine.t[k] for k in where]),
            "share": list(SHARES),
        },
        {
            "data_std": std,
            "samples": len(begin),
            "steps": steps,
            "gaussian": isinstance(diffusion.denoiser, Gaussian),
        },
    )


@dataclass(frozen=True)
class Teleportation(Lens):
    """How far could the first part of the run be skipped, by the Gaussian's closed form?

    See :func:`teleportation`. On Gaussian data every skip is exact: ``rms`` is 0. A displacement
    below the solver's floor is told from nothing: the null band.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=1, le=100_000)] = 64
    levels: Annotated[int, Param("how many noise levels", ge=1, le=10_000)] = 12
    steps: Annotated[int, Param("steps of the solver, an even number", ge=2, le=100_000)] = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps % 2:
            raise ValueError(f"Teleportation: steps was {self.steps}; it must be an even number.")

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 128 * self.samples * (self.levels + 2) * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        found = teleportation(
            subject.diffusion, subject.seeds, self.levels, self.steps, on_step, gaussian_of(subject)
        )
        floor = found["floor"].values
        about = {"long_name": "below the solver's floor and rounding", "units": "x"}
        band = (("rho", "bound"), np.stack([0 * floor, floor], -1), about)
        return found.assign(rms_null=band).assign_coords(bound=list(BOUNDS))

    def exact(self, subject: Subject) -> xr.Dataset | None:
        if not isinstance(subject.denoiser, Gaussian):
            return None
        return xr.Dataset({"rms": ((), 0.0)})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        rms, floor, rho = (dataset[key].values for key in ("rms", "floor", "rho"))
        std = dataset.attrs["data_std"]
        if (rms <= floor).all():
            return [
                f"Every skip is exact, down to the data: the largest displacement is "
                f"{rms.max():.1g}, below the solver's floor ({floor.max():.1g})."
                + (" So it must be: these data are Gaussian." if dataset.attrs["gaussian"] else "")
            ]
        cheap = rms <= CHEAP * std
        cheap[np.argmin(cheap) :] = bool(cheap.all())  # only what is reached without a gap
        said = (
            f"A skip of all of the run displaces the endpoint by {rms[-1]:.2g} (root mean square "
            f"per coordinate), {rms[-1] / std:.0%} of the data's standard deviation"
        )
        if not cheap.any():
            return [f"{said}; no skip drawn here costs less than {CHEAP:.0%} of it."]
        last = int(np.flatnonzero(cheap)[-1])
        return [
            f"{said}; a skip to ρ = {rho[last]:.3g} (t = {float(dataset['t'][last]):.3g}), by "
            f"{rms[last]:.1g}."
        ]


def _work(at: list[int], steps: int) -> int:
    """Steps times groups under way, of a walk that a new group joins at each node of ``at``."""
    return steps + sum(steps - k for k in at)


class _Residual:
    """The flow of a denoiser in the coordinates c that its matched Gaussian's flow leaves at rest.

    They are taken at alpha = 1, sigma = rho: the flow in rho is the same for every process.
    """

    def __init__(self, denoiser: Denoiser, law: Gaussian) -> None:
        self.denoiser = denoiser
        twin, self.turn = law.diagonalised()
        self.variances = twin.variances.to(self.turn)
        self.mean = twin.mean.flatten()  # along the eigenvectors

    def spread(self, log_rho: float) -> Tensor:
        return (self.variances + math.exp(2 * log_rho)).sqrt()

    def coordinates(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """States (n, *event) as c (n, d)."""
        level = alpha * alpha * self.variances + sigma * sigma
        return (x.flatten(1) @ self.turn - alpha * self.mean) / level.sqrt()

    def rate(self, c: Tensor, log_rho: float) -> Tensor:
        """dc / d log rho, of c (group, n, d)."""
        spread = self.spread(log_rho)
        apart = spread * c
        state = ((self.mean + apart) @ self.turn.T).reshape(-1, *self.denoiser.event_shape)
        asked = state.to(self.denoiser.dtype)
        denoised = self.denoiser.denoise(asked, 1.0, math.exp(log_rho)).to(state)
        found = (denoised.flatten(1) @ self.turn).reshape(c.shape) - self.mean
        return (self.variances / spread.square() * apart - found) / spread

    def walk(self, c: Tensor, nodes: list[float], at: list[int], told) -> Tensor:
        """``c`` (n, d) along all nodes and, after it, skipped to each node of ``at``: at the end.

        Steps of Runge-Kutta's method of order four; the skipped ones join at their node.
        """
        groups = c[None]
        for k, (a, b) in enumerate(pairwise(nodes), 1):
            h = b - a
            first = self.rate(groups, a)
            second = self.rate(groups + h / 2 * first, a + h / 2)
            third = self.rate(groups + h / 2 * second, a + h / 2)
            last = self.rate(groups + h * third, b)
            groups = groups + h / 6 * (first + 2 * second + 2 * third + last)
            told(len(groups))
            if k in at:
                groups = torch.cat([groups, c[None]])
        return groups
