r"""Multistep methods: one evaluation a step, earlier ones remembered.

All are exponential integrators in :math:`\lambda = \log(\alpha/\sigma)` or, for the noise, in
:math:`\rho = \sigma/\alpha`: between two nodes

.. math::
    x' = \tfrac{\sigma'}{\sigma} x + \sigma' \int e^{\lambda} D\, d\lambda,
    \qquad \tfrac{x'}{\alpha'} = \tfrac{x}{\alpha} + \int \hat\epsilon\, d\rho,

with D or the noise prediction extrapolated from the evaluations at hand. They start with the order
that these allow, and start anew after pure noise, which has no :math:`\lambda`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler, exponential_step, remembered
from workbench.sampling.methods.single_steps import Predicts, log_ratio, single_step
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step

#: Runs that end with steps of lower order, by their number of steps.
LOWERED = {"never": 0, "below_10": 10, "below_15": 15, "always": math.inf}

LowerOrderFinal = Annotated[
    Literal["never", "below_10", "below_15", "always"],
    Param(
        "lower the order in the last two steps of runs of few steps: below 10 in DPM-Solver's "
        "code, below 15 in diffusers, always in UniPC's"
    ),
]
Start = Annotated[
    Literal["published", "single_steps"],
    Param(
        "first steps: of growing order, as published, or single steps of order 2 or 3 that take as "
        "many evaluations",
        label="first steps",
    ),
]


class Multistep(Sampler):
    """Base: a subclass combines the state with remembered evaluations.

    ``remembers`` is how many evaluations a step uses at most, ``keeps`` what of them: the denoised
    state or the noise prediction.

    The first steps have fewer to remember. As published (``start``) they are of the order that
    these allow, which does no harm where D hardly changes yet: at noise far above the data.
    Elsewhere a first step of order 1 limits the whole run to order 2, unless the first
    ``remembers - 1`` steps are single ones: of order 2 where two evaluations are remembered, of
    order 3 where more are (enough for a run of order 4).

    ``lower_order_final`` lowers the order to 1 in the last step and to 2 in the one before it; a
    final step to sigma = 0, which is of order 1 anyway, counts. Steadier at few steps; at many it
    leaves order 1 on grids whose last steps are long in log-SNR.
    """

    keeps: Predicts = "denoised"
    lower_order_final: str = "never"
    start: str = "published"
    taylor = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lower_order_final", "start"):
            self.refuse_unless(name, self.remembers > 1, "order 1 is neither lowered nor raised")

    @property
    def remembers(self) -> int:
        return self.order

    def combine(
        self, nodes: Sequence[Node], b: Node, times: np.ndarray | None
    ) -> tuple[float, Sequence[float], float]:
        """Coefficients of the state, of the evaluations at ``nodes`` (latest first), of the noise.

        ``nodes`` holds between one and ``remembers`` nodes; all have alpha > 0 and sigma > 0.
        ``times`` are those of :meth:`levels_within` the step, where it gives any.
        """
        raise NotImplementedError

    def levels_within(self, a: Node, b: Node) -> np.ndarray | None:
        """Levels rho within a step whose times :meth:`combine` needs."""
        return None

    def _program(self, process: Process, grid: Grid) -> Program:
        steps, history, count = [], [], 0
        times = iter(self._times(process, grid))
        for i, (a, b) in enumerate(pairwise(grid.nodes)):
            if a.alpha == 0 or b.sigma == 0:
                steps.append(Step(a, b, exponential_step(a, b, self._eta)))
                continue
            history = remembered(history, a, f"E{i % self.remembers}", self.remembers)
            order, within, count = self._order(grid, i), next(times), count + 1
            used = history[:order]
            latest, *names = [name for _, name in used]
            if self._starts(count, order):
                steps.append(Step(a, b, self._single(a, b, latest, order)))
                continue
            if a.rho == b.rho:  # the integrals are over nothing
                x, past, fresh = b.alpha / a.alpha, [0.0] * len(used), 0.0
            else:
                x, past, fresh = self.combine([node for node, _ in used], b, within)
            if self.keeps == "denoised":
                rows: list[Row] = [Evaluate(latest, "x", a)]
                terms = {"x": x, latest: past[0], **dict(zip(names, past[1:], strict=True))}
            else:
                # DDIM's step, and how much earlier predictions differ from the latest: in the
                # step as it is written, x / alpha and what is taken from it may be huge.
                rows = [Evaluate("D", "x", a), self._kept(a, latest)]
                # Under the reverse SDE the prediction counts twice.
                ratio, twice = b.sigma / a.sigma, 1 + (self._eta > 0)
                kept = twice * ratio - (twice - 1) * b.alpha / a.alpha
                terms = {"x": kept, "D": twice * (b.alpha - a.alpha * ratio)}
                terms[latest] = -sum(past[1:])
                terms |= dict(zip(names, past[1:], strict=True))
            rows.append(Combine("x", terms, fresh))
            steps.append(Step(a, b, tuple(rows)))
        return Program(tuple(steps))

    def _order(self, grid: Grid, i: int) -> int:
        """How many evaluations step ``i`` may look back over."""
        lowered = grid.steps < LOWERED[self.lower_order_final]
        return min(self.remembers, grid.steps - i) if lowered else self.remembers

    def _starts(self, count: int, order: int) -> bool:
        """Whether the step with the ``count``-th evaluation is one of the single steps."""
        return self.start == "single_steps" and count < order

    def _single(self, a: Node, b: Node, name: str, order: int) -> tuple[Row, ...]:
        """A single step that keeps its first evaluation in register ``name``."""
        first, *rest = single_step(a, b, min(order, 3), taylor=self.taylor)
        return (first, self._kept(a, name), *rest)

    def _kept(self, a: Node, name: str) -> Combine:
        """The row that makes what is remembered of the denoised state at ``a``."""
        if self.keeps == "noise":
            return Combine(name, {"x": 1 / a.sigma, "D": -a.alpha / a.sigma})
        return Combine(name, {"D": 1.0})

    def nfe(self, grid: Grid) -> int:
        total, count = grid.steps, 0
        for i, (a, b) in enumerate(pairwise(grid.nodes)):
            if a.alpha > 0 and b.sigma > 0:
                count, order = count + 1, self._order(grid, i)
                total += min(order, 3) - 1 if self._starts(count, order) else 0
        return total

    def _times(self, process: Process, grid: Grid) -> Sequence[np.ndarray | None]:
        """For each step that is the method's own; asked of the process in one call."""
        own = [(a, b) for a, b in pairwise(grid.nodes) if a.alpha and b.sigma]
        within = [self.levels_within(a, b) if a.rho != b.rho else None for a, b in own]
        levels = [some for some in within if some is not None]
        if not levels:
            return within
        found = iter(process.time_of(torch.from_numpy(np.stack(levels))).numpy())
        return [next(found) if some is not None else None for some in within]

    @property
    def _eta(self) -> float:
        """Noise of a step from pure noise or to sigma = 0, as in DDIM."""
        return 1.0 if self.stochastic else 0.0


@cache
def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """So many points and weights on [-1, 1]."""
    return np.polynomial.legendre.leggauss(count)


@dataclass(frozen=True)
class DEIS(Multistep):
    r"""Diffusion exponential integrator sampler: the noise prediction as a polynomial.

    .. math:: \tfrac{x'}{\alpha'} = \tfrac{x}{\alpha} + \sum_j C_j \hat\epsilon_j,\qquad
              C_j = \int_{\rho}^{\rho'} \ell_j\, d\rho

    with :math:`\ell_j` the Lagrange polynomials through the remembered nodes, in rho (rhoAB, an
    Adams-Bashforth method) or in t (tAB, published as the better one at few steps). Order =
    degree + 1; degree 0 is DDIM. One evaluation a step.

    Source: Zhang & Chen 2023, arXiv:2204.13902, section 3.3.
    """

    order: Annotated[int, Param("order: evaluations that a step uses", ge=1, le=4)] = 3
    axis: Annotated[Literal["t", "rho"], Param("the variable of the polynomial")] = "t"
    lower_order_final: LowerOrderFinal = "never"
    start: Start = "published"

    keeps = "noise"

    @staticmethod
    def _quadrature(a: Node, b: Node) -> tuple[np.ndarray, np.ndarray]:
        """Gauss-Legendre in log rho: exact to rounding for polynomials of this degree in t or rho;
        levels and weights."""
        points, weights = gauss_legendre(32)
        lo, hi = math.log(b.rho), math.log(a.rho)
        rho = np.exp(0.5 * (lo + hi) + 0.5 * (hi - lo) * points)
        return rho, -0.5 * (hi - lo) * weights * rho

    def levels_within(self, a: Node, b: Node) -> np.ndarray | None:
        return self._quadrature(a, b)[0] if self.axis == "t" else None

    def combine(self, nodes: Sequence[Node], b: Node, times: np.ndarray | None):
        a = nodes[0]
        rho, weights = self._quadrature(a, b)
        if self.axis == "t":
            at, places = times, [node.t for node in nodes]
        else:
            at, places = rho, [node.rho for node in nodes]
        past = []
        for j, mine in enumerate(places):
            others = [p for k, p in enumerate(places) if k != j]
            polynomial = math.prod(((at - p) / (mine - p) for p in others), start=np.ones_like(at))
            past.append(b.alpha * float(weights @ polynomial))
        return b.alpha / a.alpha, past, 0.0


#: Adams-Bashforth weights of equal steps, latest first.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class IPNDM(Multistep):
    """Improved pseudo numerical methods: Adams-Bashforth weights of equal steps on any grid.

    Euler's step in rho with the noise prediction replaced by its weighted past. Good at few steps;
    as the weights are those of equal steps in rho, order 2 at best on other grids. One evaluation a
    step.

    Sources: Liu et al. 2022 (PNDM), arXiv:2202.09778; Zhang & Chen 2023, arXiv:2204.13902.
    """

    memory: Annotated[int, Param("evaluations that a step uses", ge=1, le=4)] = 4

    keeps = "noise"

    @property
    def order(self) -> int:
        return min(self.memory, 2)

    @property
    def remembers(self) -> int:
        return self.memory

    def combine(self, nodes: Sequence[Node], b: Node, times: np.ndarray | None):
        a = nodes[0]
        step = b.alpha * (b.rho - a.rho)
        return b.alpha / a.alpha, [step * w for w in ADAMS_BASHFORTH[len(nodes) - 1]], 0.0


@dataclass(frozen=True)
class UniPC(Multistep):
    r"""Unified predictor-corrector: a multistep predictor, corrected by its own next evaluation.

    The evaluation at the predicted state corrects that state and serves the next step as it is, so
    a step costs one. The last step is not corrected. The corrector raises the order by one.

    Source: Zhao et al. 2023, arXiv:2302.04867 (data prediction, B1 and B2).
    """

    order: Annotated[int, Param("order of the predictor", ge=1, le=4)] = 2
    variant: Annotated[Literal["bh1", "bh2"], Param("B(h): h itself, or e^h - 1")] = "bh2"
    corrector: Annotated[bool, Param("correct each step by the next evaluation")] = True
    lower_order_final: LowerOrderFinal = "never"
    start: Start = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        full = self.start != "published" and self.lower_order_final == "never"
        self.refuse_unless(
            "variant", self.order < 3 or not full, "B(h) cancels where three evaluations are used"
        )
        self.refuse_unless(
            "variant", self.order > 1 or self.corrector, "the predictor of order 1 is DDIM"
        )

    def _program(self, process: Process, grid: Grid) -> Program:
        steps, history, count = [], [], 0
        evaluated = False
        for i, (a, b) in enumerate(pairwise(grid.nodes)):
            if a.alpha == 0:
                steps.append(Step(a, b, exponential_step(a, b)))
                continue
            rows: list[Row] = []
            if not evaluated:
                history = remembered(history, a, f"E{i % (self.order + 1)}", self.order)
                order, count = self._order(grid, i), count + 1
                if b.sigma > 0 and self._starts(count, order):
                    steps.append(Step(a, b, self._single(a, b, history[0][1], order)))
                    continue
                rows.append(Evaluate(history[0][1], "x", a))
            if b.sigma == 0:
                rows.append(Combine("x", {history[0][1]: b.alpha}))
                steps.append(Step(a, b, tuple(rows)))
                continue
            used = history[: self._order(grid, i)]
            names = [name for _, name in used]
            weights = self._weights([node for node, _ in used], b)
            last = i == grid.steps - 1
            evaluated = self.corrector and not last
            ratio = b.sigma / a.sigma
            predicted = {"x": ratio, **dict(zip(names, weights[0], strict=True))}
            if not evaluated:
                rows.append(Combine("x", predicted))
            else:
                out = f"E{(i + 1) % (self.order + 1)}"
                rows += [Combine("y", predicted), Evaluate(out, "y", b)]
                terms = dict(zip([*names, out], weights[1], strict=True))
                rows.append(Combine("x", {"x": ratio, **terms}))
                history = remembered(history, b, out, self.order)
            steps.append(Step(a, b, tuple(rows)))
        return Program(tuple(steps))

    def _weights(self, nodes: Sequence[Node], b: Node) -> tuple[list[float], list[float]]:
        """Weights of the remembered evaluations (latest first) in the predictor; and of them and
        the new one in the corrector."""
        a, h, p = nodes[0], log_ratio(nodes[0], b), len(nodes)
        if a.rho == b.rho:
            return [0.0] * p, [0.0] * (p + 1)
        hh = -h
        first = math.expm1(hh)
        scale = hh if self.variant == "bh1" else first
        places = [log_ratio(a, node) / h for node in nodes[1:]] + [1.0]
        matrix = np.array([[r**k for r in places] for k in range(p)])
        right, phi, factorial = [], first / hh - 1, 1
        for k in range(1, p + 1):
            right.append(phi * factorial / scale)
            factorial *= k + 1
            phi = phi / hh - 1 / factorial
        base = -b.alpha * first
        if p == 1:
            ahead, both = [], [0.5]
        else:
            ahead = [0.5] if p == 2 else np.linalg.solve(matrix[:-1, :-1], right[:-1]).tolist()
            both = np.linalg.solve(matrix, right).tolist()

        def weights(rhos: Sequence[float], used: Sequence[float]) -> list[float]:
            # D_0 phi_1 + B sum rho_k (D_k - D_0) / r_k
            each = [-b.alpha * scale * rho / r for rho, r in zip(rhos, used, strict=True)]
            return [base - sum(each), *each]

        corrector = weights(both, places)
        return weights(ahead, places[:-1]), corrector
