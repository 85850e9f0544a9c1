"""Exponential integrators: the linear part of the flow is solved, the denoised state modelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Node
from workbench.sampling.methods.base import Sampler, chain_factor, exponential_step
from workbench.sampling.program import Row


@dataclass(frozen=True)
class DDIM(Sampler):
    r"""Denoising diffusion implicit models: the denoised state is held over a step.

    .. math:: x' = \alpha' D + \sqrt{\sigma'^2 - s^2}\,\hat\epsilon + s z,\qquad
              s = \eta\,\sigma'\sqrt{1 - A^2\sigma'^2/\sigma^2}

    with A what the process's forward chain keeps of the state: alpha/alpha', where s is
    :math:`\eta\,\sigma'\sqrt{1 - \rho'^2/\rho^2}`, and 1 under ``RDDM``, whose sampler this is (the
    eta of its authors scales the variance: it is the square of this one).

    Order 1. With eta 0 it is explicit Euler in rho (and DPM-Solver-1); with eta 1 it is DDPM's
    ancestral sampling. One evaluation a step.

    Sources: Song, Meng & Ermon 2021, arXiv:2010.02502, eq. 12 and 16; Liu et al. 2024 (RDDM),
    arXiv:2308.13712.
    """

    eta: Annotated[float, Param("fresh noise: 0 deterministic, 1 ancestral", ge=0, le=1)] = 0.0

    order = 1

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        return exponential_step(a, b, self.eta, chain_factor(process, a, b))
