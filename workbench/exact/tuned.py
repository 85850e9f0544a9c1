r"""Grids tuned to a spectrum: the nodes at which a sampler's exact output is closest to the data.

On Gaussian data of variances :math:`\lambda_k` a linear sampler on a grid leaves variances
:math:`v_k` (:func:`workbench.exact.transfer`), so

.. math:: W_2^2 = \sum_k \big(\sqrt{v_k} - \sqrt{\alpha^2\lambda_k + \sigma^2}\big)^2

at the last node is a sum of squares of smooth functions of the nodes, and Gauss-Newton with a
trust region (Levenberg & Marquardt; Branch, Coleman & Li 1999) finds where it is least. The nodes
are told by the shares of the whole way in :math:`\log\rho` that the steps take, each above a floor:
without one, errors of steps may be made to cancel for this one spectrum.

Tuning to the Gaussian of the data is tuning to its scales alone: data and, under an affine process,
their condition are centred at 0. What it gives on other laws with the same spectrum is a
measurement: the lens :class:`workbench.lenses.tuning.Tuning`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.exact.modes import checked
from workbench.exact.transfer import transfer
from workbench.processes import Process
from workbench.sampling import Grid, Node, Sampler, levels

#: Iterations, and the relative gain at which they end: from each standard grid, and then from the
#: best two of what these lead to.
SCREENING, POLISH = (12, 1e-4), (40, 1e-6)
#: Step of the differences in the logarithm of a share.
DIFFERENCE = 1e-6


def tuned_grid(
    process: Process,
    spectrum: Tensor | Sequence[Tensor],
    sampler: Sampler,
    nfe: int,
    final: str = "stop",
    floor: float = 0.1,
) -> Grid:
    """The grid on which a sampler's output law is closest (2-Wasserstein) to the marginal.

    From the process's prior at ``t_max`` to the last node: at ``t_min``, or at sigma = 0. It takes
    as many steps as ``nfe`` evaluations allow. Deterministic: equal arguments give equal grids.

    Args:
        process: scalar; the grid goes from its ``t_max`` to its ``t_min``.
        spectrum: variances of the modes [x²], e.g. eigenvalues of the data's covariance, (d,); or
            several spectra, over which the mean of the squared relative distance is least:
            ``[0.1 * spectrum, spectrum]`` keeps the grid from steps that suit these scales only.
        sampler: any linear one, stochastic ones included.
        nfe: most denoiser evaluations of a run.
        final: how the grid ends: "stop" at ``t_min``, or "denoise": one more step to sigma = 0,
            and then the last node before it is free as well.
        floor: least step in log rho, as a share of the uniform step. At 0 errors of many steps may
            be made to cancel, which another spectrum undoes.

    Raises:
        TypeError: a sampler that is not linear; something of the wrong kind.
        ValueError: too few evaluations for one step, variances that are negative or not finite, a
            floor outside [0, 1), a spectral process.
    """
    family = _family(spectrum)
    if final not in ("stop", "denoise"):
        raise ValueError(f"final was {final!r}; it must be 'stop' or 'denoise'.")
    steps = steps_within(process, sampler, nfe, final)
    path = LogSteps(process, steps, final, floor)
    if path.free == 0:
        return path.standard[0]
    return path.search(_Objective(path, sampler, family))


def steps_within(process: Process, sampler: Sampler, nfe: int, final: str = "stop") -> int:
    """The largest number of steps of a grid on which ``sampler`` takes at most ``nfe`` evaluations.

    Raises:
        TypeError: a sampler whose evaluations only a run can tell.
        ValueError: not even one step; a spectral process.
    """
    if not isinstance(sampler, Sampler):
        hint = f"; call it first: {sampler.__name__}()" if isinstance(sampler, type) else ""
        raise TypeError(f"sampler was {sampler!r}; it must be a Sampler{hint}.")
    if process.spectral:
        raise ValueError(
            f"{process!r} has one rho per mode, so its grids cannot be tuned in rho; use "
            "Grid.uniform, Grid.quadratic or Grid.times."
        )
    if isinstance(nfe, bool) or not isinstance(nfe, numbers.Integral) or nfe < 1:
        raise ValueError(f"nfe was {nfe!r}; it must be a whole number of evaluations, at least 1.")
    for steps in range(int(nfe) + 1, 0, -1):
        count = sampler.nfe(Grid.log_snr(process, steps, final))
        if count is None:
            raise TypeError(
                f"{sampler!r} is not linear: how many evaluations it takes only the run can tell. "
                "Tune a grid for a linear sampler, e.g. Heun or DPMSolverPP."
            )
        if count <= nfe:
            return steps
    raise ValueError(
        f"nfe was {nfe}, but one step of {sampler!r} takes {count} evaluations; allow that many."
    )


class LogSteps:
    """Grids told by the shares of the way in log rho that their steps take, each above a floor.

    Where the process starts at pure noise, the first node of finite rho is free, and where the
    grid ends at sigma = 0, the last one before it: what is left of the way there has no floor.

    Attributes:
        free: how many numbers tell a grid.
        standard: grids to start from.
    """

    def __init__(self, process: Process, steps: int, final: str, floor: float) -> None:
        if not 0 <= floor < 1:
            raise ValueError(f"floor was {floor!r}; it must be at least 0 and below 1.")
        self._process, self._final = process, final
        self.standard = [
            Grid.log_snr(process, steps, final),
            Grid.quadratic(process, steps, final),
            *(Grid.karras(process, steps, final, exponent=e) for e in (3.0, 7.0, 20.0)),
        ]
        rho = process(torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).rho
        self._low, self._high = rho.log().tolist()
        self._pure, self._open = self._high == math.inf, final == "denoise"
        if self._pure:
            low, high = process.t_min, process.t_max  # as in Grid.log_snr
            self._high = math.log(process(max(high - low, 0.5 * (high + low))).rho)
        # Finite nodes, with the two ends unless these are free; ``count`` ways between them.
        inner = steps + 1 - self._pure - self._open
        count = inner - 1 + self._pure + self._open
        self.free = max(0, count - 1) if inner >= 1 else 0
        self._floors = np.full(max(count, 1), max(floor, 1e-6) / max(inner - 1, 1))
        if self._pure:
            self._floors[0] = 0.0
        if self._open:
            self._floors[-1] = 0.0

    def grid(self, v: np.ndarray) -> Grid:
        return self.grids(v[None])[0]

    def grids(self, v: np.ndarray) -> list[Grid]:
        """One grid for each row of ``v`` (P, free): logarithms of shares, relative to the last."""
        v = np.concatenate([v, np.zeros((len(v), 1))], 1)
        share = np.exp(v - v.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        share = self._floors + (1 - self._floors.sum()) * share
        way = np.cumsum(share, 1)[:, :-1]
        inside = np.exp(self._high + way * (self._low - self._high))
        times = self._process.time_of(torch.from_numpy(inside))
        tail = [] if self._open else [self._process.t_min]
        rows = [[self._process.t_max, *mine, *tail] for mine in times.tolist()]
        alpha, sigma = levels(self._process, [t for row in rows for t in row])
        nodes = list(map(Node, (t for row in rows for t in row), alpha, sigma))
        ends = [Node(0.0, *levels(self._process, [0.0])[0], 0.0)] if self._open else []
        size = len(rows[0])
        return [
            Grid((*nodes[i * size : (i + 1) * size], *ends), self._final, "tuned")
            for i in range(len(rows))
        ]

    def coordinates(self, grid: Grid) -> np.ndarray:
        """The numbers (free,) of the grid that is nearest to ``grid`` above the floors."""
        rho = [r for r in grid.rho if 0 < r < math.inf]
        way = [] if not self._pure else [self._high]
        way += np.log(rho).tolist()
        way += [self._low] if self._open else []
        share = -np.diff(way) / (self._high - self._low)
        share = np.maximum(share - self._floors, 0.02 / len(share))
        v = np.log(share / share.sum())
        return v[:-1] - v[-1]

    def search(
        self,
        objective: Callable[[Sequence[Grid]], np.ndarray],
        starts: Sequence[Grid] | None = None,
        screening: tuple[int, float] = SCREENING,
        polish: tuple[int, float] | None = POLISH,
        difference: float = DIFFERENCE,
    ) -> Grid:
        """The grid on which the sum of squares of ``objective`` is least.

        Args:
            objective: of P grids, their residuals (P, number).
            starts: grids to start from; None are the standard ones.
            screening, polish: most iterations, and the relative gain at which they end, from each
                start and from the best two of what these lead to; without polish the best.
            difference: of the logarithm of a share, for derivatives; as small as the objective's
                rounding allows.
        """
        from scipy.optimize import least_squares

        known: dict[bytes, np.ndarray] = {}

        def residuals(v):
            key = v.tobytes()
            if key not in known:
                known.clear()
                known[key] = objective(self.grids(v[None]))[0]
            return known[key]

        def jacobian(v):
            there = objective(self.grids(v + difference * np.eye(len(v))))
            return (there - residuals(v)).T / difference

        def descend(v, budget, gain):
            # From the origin, where the trust region begins with radius 1, not with |v|.
            found = least_squares(
                lambda d: residuals(v + d),
                np.zeros_like(v),
                lambda d: jacobian(v + d),
                max_nfev=budget,
                xtol=1e-9,
                ftol=gain,
            )
            return found.cost, v + found.x

        places = [self.coordinates(grid) for grid in starts or self.standard]
        if starts is None:  # and equal steps over half of the way, then one that is long
            places.append(np.full(self.free, -math.log(self.free)))
        found = [descend(v, *screening) for v in places]
        found = sorted(found, key=lambda each: each[0])[:2]
        if polish is None:
            return self.grid(found[0][1])
        return self.grid(min((descend(v, *polish) for _, v in found), key=lambda each: each[0])[1])


class _Objective:
    """Relative differences of standard deviations, for the modes of all spectra."""

    def __init__(self, path: LogSteps, sampler: Sampler, family: list[Tensor]) -> None:
        self._process, self._sampler = path._process, sampler
        self._variances = torch.cat(family)
        first, last = path.standard[0].nodes[0], path.standard[0].nodes[-1]
        self._prior = float(self._process.prior_std(first.t)) ** 2
        wanted = [(last.alpha**2 * v + last.sigma**2).sqrt() for v in family]
        self._wanted = torch.cat(wanted)
        scales = [1 / ((float(w.norm()) or 1.0) * math.sqrt(len(family))) for w in wanted]
        self._scale = torch.cat(
            [torch.full_like(w, c) for w, c in zip(wanted, scales, strict=True)]
        )
        zeros = torch.zeros_like(self._variances)
        data, condition = Gaussian(zeros, self._variances), zeros if self._process.affine else None
        self._diffusion = Diffusion(self._process, data, condition)

    def __call__(self, grids: Sequence[Grid]) -> np.ndarray:
        samplers = [self._sampler.prepared(self._diffusion, grid) for grid in grids]
        programs = [s.program(self._process, g) for s, g in zip(samplers, grids, strict=True)]
        if not programs[0].linear:
            raise TypeError(
                f"{self._sampler!r} is not linear, so it has no exact law to tune a grid by; take "
                "a linear sampler, e.g. Heun or DPMSolverPP."
            )
        made = transfer(programs, self._variances)
        apart = (made.gain.square() * self._prior + made.noise).sqrt() - self._wanted
        return (apart * self._scale).nan_to_num(1e9, 1e9, -1e9).clamp(-1e9, 1e9).numpy()


def _family(spectrum: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One or several spectra as flat float64 tensors."""
    if isinstance(spectrum, Tensor) or not any(hasattr(each, "__len__") for each in spectrum):
        spectrum = torch.as_tensor(spectrum)
        spectrum = list(spectrum) if spectrum.ndim == 2 else [spectrum]
    family = [checked(each, "spectrum").detach().cpu().flatten() for each in spectrum]
    if not family or not all(len(each) for each in family):
        raise ValueError("spectrum was empty; give the variance of at least one mode.")
    return family
