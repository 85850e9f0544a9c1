"""The table of truths and what its checks share.

`reference/theory.json` holds inputs, values and tolerances; each was found in two ways when the
table was made. A tolerance is absolute for values up to one and relative above.
"""

import json
from pathlib import Path

import torch

import workbench as wb

TABLE = Path(__file__).with_name("reference") / "theory.json"
CASES = {case["id"]: case for case in json.loads(TABLE.read_text(encoding="utf-8"))}
CHECKS = {}

VP, EDM = wb.VP(), wb.EDM()
PROCESSES = {"vp_linear": VP, "edm": EDM, "fm_linear": wb.RectifiedFlow()}


def case(*names):
    """Register a function of ``(inputs, expected, near)`` as the check of these cases."""

    def register(function):
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return register


def tensor(value) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


class Near:
    """Compare with the table; keep the largest deviation seen."""

    def __init__(self, tolerance: float):
        self.tolerance, self.worst = tolerance, 0.0

    def __call__(self, got, wanted, tolerance: float | None = None):
        tolerance = self.tolerance if tolerance is None else tolerance
        got, wanted = tensor(got), tensor(wanted)
        assert got.shape == wanted.shape
        error = ((got - wanted).abs() / wanted.abs().clamp_min(1)).max().item()
        assert error <= tolerance, f"{got.tolist()}\nis not {wanted.tolist()}: off by {error:.2g}"
        self.worst = max(self.worst, error)


def gaussian(variances) -> wb.Gaussian:
    """Centred, in its eigenbasis."""
    variances = tensor(variances).reshape(-1)
    return wb.Gaussian(torch.zeros_like(variances), variances)


def mixture(inputs=None) -> wb.Mixture:
    """Of these inputs; by default the one that several cases share without repeating it."""
    inputs = inputs or CASES["gmm_vp_linear"]["inputs"]
    return wb.Mixture(tensor(inputs["w"]), tensor(inputs["mu"]), tensor(inputs["Sigma"]))


#: Sixth-order central differences of a first derivative.
STENCIL = ((-3, -1 / 60), (-2, 3 / 20), (-1, -3 / 4), (1, 3 / 4), (2, -3 / 20), (3, 1 / 60))


def slope(function, h: float):
    return sum(w * function(k * h) for k, w in STENCIL) / h


def score_residual(diffusion, x, t, h=1e-2):
    """The score's Fokker-Planck residual from the exact fields and one numerical gradient."""
    c = diffusion.process(t)

    def potential(y):
        s = diffusion.score(y, t)
        trace = diffusion.hessian(y, t).trace()
        return 0.5 * c.g2 * (trace + s @ s) - c.f * (y @ s)

    units = torch.eye(len(x)).double()
    gradient = torch.stack([slope(lambda e, u=u: potential(x + e * u), h) for u in units])
    return diffusion.score_rate(x, t) - gradient
