"""Every kind of law a denoiser can be of, for what must hold for all of them."""

import torch
from helpers import LAWS, log_uniform, normals

import workbench as wb

D = 5


def low_rank_mixture(generator, rest) -> wb.Mixture:
    weights = 0.2 + torch.rand(3, generator=generator, dtype=torch.float64)
    bases = torch.linalg.qr(normals(generator, 3, D, 2)).Q
    variances = 0.1 + normals(generator, 3, 2) ** 2
    means = 1.5 * normals(generator, 3, D)
    return wb.Mixture.low_rank(weights / weights.sum(), means, bases, variances, rest)


#: ``make(generator, d)`` of each.
ALL = LAWS | {
    "mixture-rank-2": lambda g, d: low_rank_mixture(g, 0.0),
    "mixture-rank-2-and-rest": lambda g, d: low_rank_mixture(g, normals(g, 3) ** 2),
}


def level(generator) -> tuple[float, float]:
    return log_uniform(generator, 0.05, 2.0), log_uniform(generator, 0.05, 3.0)
