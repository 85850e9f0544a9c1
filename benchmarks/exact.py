"""What the exact denoisers cost beside the usual ways, and their goals.

Each figure is a ratio of two things timed in turns within one run, on one thread.

python benchmarks/exact.py
"""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timing import ratio
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import workbench as wb

LEVELS = [80.0 * (0.002 / 80.0) ** (i / 32) for i in range(33)]


def show(what: str, figures: tuple[float, float, float], goal: str) -> None:
    """``figures`` are the usual way, ours, and how many times faster we are."""
    print(f"{what:58}{figures[0]:9.2f}ms{figures[1]:9.2f}ms{figures[2]:8.2f}   {goal}", flush=True)


# ---- a Gaussian ----------------------------------------------------------------------------------


def cholesky_levels(x: Tensor, mean: Tensor, cov: Tensor) -> list[Tensor]:
    """The usual way: a solve with the covariance of every noise level."""
    eye = torch.eye(len(mean))
    out = []
    for s in LEVELS:
        factor = torch.linalg.cholesky(cov + s * s * eye)
        out.append(mean + (cov @ torch.cholesky_solve((x - mean).T, factor)).T)
    return out


def all_levels(law: wb.Gaussian, x: Tensor) -> Tensor:
    return law.denoise_levels(x, [(1.0, s) for s in LEVELS])


def each_level(law: wb.Gaussian, x: Tensor) -> list[Tensor]:
    return [law.denoise(x, 1.0, s) for s in LEVELS]


def gaussian() -> None:
    d, batch = 784, 256
    root = torch.randn(d, d) / math.sqrt(d)
    law = wb.Gaussian(torch.randn(d), root @ root.T)
    twin, basis = wb.Diffusion(wb.EDM(), law).diagonalised()
    x = torch.randn(batch, d)
    usual = partial(cholesky_levels, x, law.mean, law.cov)
    there = basis.forward(x)
    name = f"Gaussian, {d} dimensions, 33 levels, {batch} samples"
    show(f"{name}: data space", ratio(usual, partial(all_levels, law, x), 5), "goal 2.5")
    show("  level by level", ratio(usual, partial(each_level, law, x), 5), "")
    show("  in its eigenbasis", ratio(usual, partial(each_level, twin.denoiser, there), 5), "40")


# ---- mixtures ------------------------------------------------------------------------------------


def usual_mixture(x: Tensor, means: Tensor, variance: float, log_weights: Tensor, s: float):
    level = variance + s * s
    squares = x.square().sum(1, keepdim=True) - 2 * x @ means.T + means.square().sum(1)
    share = torch.softmax(log_weights - squares / (2 * level), -1)
    return (variance * x + s * s * (share @ means)) / level


def mixtures() -> None:
    k, d, batch, s = 8, 2, 4096, 0.5
    means, x = 2 * torch.randn(k, d), 2 * torch.randn(batch, d)
    weights = torch.full((k,), 1 / k)
    isotropic = wb.Mixture(weights, means, torch.full((k,), 0.01))
    root = 0.2 * torch.randn(k, d, d)
    full = wb.Mixture(weights, means, root @ root.mT + 0.01 * torch.eye(d))
    usual = partial(usual_mixture, x, means, 0.01, weights.log(), s)
    ours = partial(isotropic.denoise, x, 1.0, s)
    show(f"Mixture, {k} isotropic components, {batch} samples", ratio(usual, ours, 101), "goal 4")
    figures = ratio(partial(full.denoise, x, 1.0, s), ours, 101)
    show("  full covariances, isotropic ones", figures, "at most 2")


# ---- a data set ----------------------------------------------------------------------------------


def by_products(x: Tensor, points: Tensor, half_norms: Tensor, s: float) -> Tensor:
    k = 1 / (s * s)
    return torch.softmax(torch.addmm(-k * half_norms, k * x, points.T), 1) @ points


def by_attention(x: Tensor, points: Tensor, half_norms: Tensor, s: float) -> Tensor:
    k = 1 / (s * s)
    query, keys = x[None, None], points[None, None]  # four axes: the fused kernel asks for them
    bias = (-k * half_norms).expand(len(x), -1)
    return scaled_dot_product_attention(query, keys, keys, bias, scale=k)[0, 0]


def online(x: Tensor, points: Tensor, half_norms: Tensor, s: float, chunk: int = 2048) -> Tensor:
    k = 1 / (s * s)
    most, scaled, biases = torch.full((len(x), 1), -math.inf), k * x, -k * half_norms
    total, out = torch.zeros(len(x), 1), torch.zeros_like(x)
    for part, bias in zip(points.split(chunk), biases.split(chunk), strict=True):
        logits = torch.addmm(bias, scaled, part.T)
        higher = torch.maximum(most, logits.amax(1, keepdim=True))
        share, kept = logits.sub_(higher).exp_(), (most - higher).exp_()
        total = total * kept + share.sum(1, keepdim=True)
        out, most = torch.addmm(out * kept, share, part), higher
    return out / total


def data_set() -> None:
    n, batch = 10_000, 256
    for d, s in ((2, 0.5), (784, 5.0), (784, 0.5)):
        points = torch.randn(n, d)
        x = points[:batch] + s * torch.randn(batch, d)
        law, half = wb.Empirical(points), 0.5 * points.square().sum(1)
        ours = partial(law.denoise, x, 1.0, s)
        ways: dict[str, Callable[..., Tensor]] = {
            "matrix products": by_products,
            "attention": by_attention,
            "online softmax": online,
        }
        print(f"Empirical, {n} points, {d} dimensions, sigma {s}")
        for name, way in ways.items():
            usual = partial(way, x, points, half, s)
            error = (usual() - ours()).abs().max().item()
            assert error < 1e-3, (name, error)
            show(f"  {name}", ratio(usual, ours, 9), "goal 1 / 1.2")


MEMORY = """
import torch, workbench as wb
from timing import peak
torch.set_num_threads(1)
points = torch.rand(50_000, 3072)
x = points[:256] + torch.randn(256, 3072)
before = peak()
wb.Empirical(points).denoise(x, 1.0, 1.0)
print((peak() - before) / 2**30)
"""


def memory() -> None:
    here = Path(__file__).parent  # where `timing` is found
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=here
    )
    beyond = float(done.stdout)
    print(f"Empirical, 50 000 points in 3072 dimensions: {beyond:.2f} GiB beyond them   at most 1")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':58}{'usual':>11}{'ours':>11}  faster")
    gaussian()
    mixtures()
    data_set()
    memory()


if __name__ == "__main__":
    main()
