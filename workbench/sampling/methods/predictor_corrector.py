r"""Predictor-corrector sampling: Langevin steps at a noise level, then a step to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.ancestral import DDPM, ReverseDiffusion, transition
from workbench.sampling.methods.base import Sampler
from workbench.sampling.methods.exponential import DDIM
from workbench.sampling.methods.runge_kutta import Heun
from workbench.sampling.methods.stochastic import EulerMaruyama, ExponentialSDE
from workbench.sampling.program import Apply, Combine, Evaluate, Program, Row, Step

#: What leads from one noise level to the next: methods that remember nothing.
PREDICTORS: dict[str, type[Sampler]] = {
    kind.__name__: kind
    for kind in (ReverseDiffusion, DDPM, EulerMaruyama, ExponentialSDE, DDIM, Heun)
}


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    r"""At every node ``corrector_steps`` of Langevin dynamics, then the predictor's step.

    .. math:: x \leftarrow x + \epsilon s(x) + \sqrt{2\epsilon}\, z,\qquad
              \epsilon = 2 A^2 \left(r \frac{\|z\|}{\|s\|}\right)^2

    with r the signal-to-noise ratio ``snr`` and :math:`A^2 = (\alpha/\alpha')^2` of the step that
    follows (1 - beta under VP, 1 under VE; always 1 unless ``scaled``). The norms are each sample's
    own, or their means over the batch, as published, whence a sample depends on the others; or what
    they are for noise alone, :math:`\epsilon = 2A^2r^2\sigma^2`, the annealed Langevin dynamics of
    public code, with which the method is linear and its law exact. A sample's own norm may be close
    to 0: in d dimensions the jumps have a tail of power d, so below about ten dimensions
    ``"expected"`` is the safer choice.

    The corrector's steps do not shrink with the predictor's: those at the last node leave a bias of
    about r²/2 of the noise's variance there. Order 1 is the predictor's. Evaluations a step:
    ``corrector_steps`` more than the predictor's; at pure noise (alpha = 0) nothing is to correct.

    The sampler of SGMSE+ (``OUVE``) is ``PredictorCorrector("EulerMaruyama", snr=0.5,
    norms="expected", scaled=False)`` on 29 equal steps from t = 1 to 0.03 and one more to 0.

    Sources: Song et al. 2021, arXiv:2011.13456, section 4.2, algorithms 4 and 5, appendix G;
    Richter et al. 2023 (SGMSE+), arXiv:2208.05830.
    """

    predictor: Annotated[
        Literal["ReverseDiffusion", "DDPM", "EulerMaruyama", "ExponentialSDE", "DDIM", "Heun"],
        Param("what leads to the next noise level"),
    ] = "ReverseDiffusion"
    corrector_steps: Annotated[int, Param("Langevin steps at each node", ge=0, le=100)] = 1
    snr: Annotated[float, Param("signal-to-noise ratio r of a Langevin step", gt=0, le=10)] = 0.16
    norms: Annotated[
        Literal["sample", "batch", "expected"],
        Param("norms in the step size: each sample's, their mean over the batch, or of pure noise"),
    ] = "sample"
    noise_removal: Annotated[bool, Param("draw no noise in the last step")] = True
    scaled: Annotated[
        bool, Param("step sizes times (alpha/alpha')^2, as published for VP and not for OUVE")
    ] = True

    order = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("snr", "norms", "scaled"):
            self.refuse_unless(name, self.corrector_steps > 0, "there is no step of a corrector")

    @property
    def stochastic(self) -> bool:
        return self.corrector_steps > 0 or PREDICTORS[self.predictor]().stochastic

    def nfe(self, grid: Grid) -> int:
        corrected = sum(node.alpha > 0 for node in grid.nodes[:-1])
        return PREDICTORS[self.predictor]().nfe(grid) + self.corrector_steps * corrected

    def _program(self, process: Process, grid: Grid) -> Program:
        predicted = PREDICTORS[self.predictor]()._program(process, grid).steps
        steps = [
            Step(step.start, step.end, (*self._corrector(step.start, step.end), *step.rows))
            for step in predicted
        ]
        if self.noise_removal:
            *rows, last = steps[-1].rows
            rows.append(Combine(last.out, dict(last.terms)))
            steps[-1] = Step(steps[-1].start, steps[-1].end, tuple(rows))
        return Program(tuple(steps))

    def _corrector(self, a: Node, b: Node) -> tuple[Row, ...]:
        count = self.corrector_steps
        if a.alpha == 0 or not count:
            return ()
        factor = transition(a, b)[0] if self.scaled else 1.0
        scale = 2 * (factor * self.snr) ** 2  # of (|z| / |s|)^2
        if self.norms == "expected":  # |z|^2 = d, |s|^2 = d / sigma^2
            moved = {"x": 1 - scale, "C": scale * a.alpha}
            fresh = math.sqrt(2 * scale) * a.sigma
            return (Evaluate("C", "x", a), Combine("x", moved, fresh)) * count

        def langevin(run, x: Tensor) -> Tensor:
            for _ in range(count):
                score = (a.alpha * run.denoise(x, a.alpha, a.sigma) - x) / a.sigma**2
                z = run.noise()
                ratio = self._norm(z) / self._norm(score)
                # A score of exactly zero asks for an infinite step; it gets none.
                size = torch.where(ratio.isfinite(), scale * ratio.square(), 0.0)
                x = x + size * score + (2 * size).sqrt() * z
            return x

        return (Apply("x", ("x",), langevin, evaluations=count, draws=count),)

    def _norm(self, v: Tensor) -> Tensor:
        """Euclidean norms, shaped to multiply (n, *event)."""
        norms = v.flatten(1).norm(dim=1) if v.ndim > 1 else v.abs()
        norms = norms.reshape(-1, *(1,) * (v.ndim - 1))
        return norms.mean(0, keepdim=True) if self.norms == "batch" else norms
