"""Taylor methods: derivatives of the probability flow itself, not differences of evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.program import Combine, Evaluate, Row


@dataclass(frozen=True)
class GENIE(Sampler):
    r"""The truncated Taylor method of second order (GENIE) with the exact second derivative.

    With :math:`y = x/\alpha`, :math:`h = \rho' - \rho` and :math:`dy/d\rho = \hat\epsilon`,

    .. math:: y' = y + h\,\hat\epsilon + \tfrac{h^2}{2}\frac{d\hat\epsilon}{d\rho},\qquad
              \frac{d\hat\epsilon}{d\rho} = -\frac{1}{\rho}\frac{dD}{d\rho},

    the slope of D a directional derivative along the flow. Order 2. Two evaluations a step are
    counted, D and its slope; of a network the slope is one Jacobian-vector product, about two to
    three evaluations (published: one evaluation and one such product, or one small head instead).
    One where the step leaves pure noise and in a final step to sigma = 0.

    Under a spectral process only for data that are Gaussian and independent in its basis: in others
    the slope along the flow depends on how the modes' rho move together.

    Source: Dockhorn, Vahdat & Kreis 2022, arXiv:2210.05475, eq. 9 and 10.
    """

    order = 2

    def evaluations(self, a: Node, b: Node) -> int:
        return 1 if a.alpha == 0 else 2

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if a.alpha == 0:
            return exponential_step(a, b)
        kept = b.sigma / a.sigma
        bend = -b.alpha * (b.rho - a.rho) ** 2 / (2 * a.rho)
        return (
            Evaluate("D", "x", a),
            Evaluate("slope", "x", a, of="slope"),
            Combine("x", {"x": kept, "D": b.alpha - a.alpha * kept, "slope": bend}),
        )

    def prepared(self, diffusion: Diffusion, grid: Grid) -> GENIE:
        core = diffusion.core
        alone = isinstance(core, Gaussian) and core.basis is None
        if diffusion.process.spectral and not alone:
            raise ValueError(
                f"GENIE was given {diffusion.process!r} with {core!r}: where every mode has its "
                "own rho and the modes depend on each other, the slope it needs is not defined by "
                "one derivative. Take a method without slopes, e.g. Heun or DPMSolverPP."
            )
        return self
