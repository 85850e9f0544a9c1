"""What it costs to split a score: on a grid in 2-D and 3-D, from samples, and of a network.

CPU time, one thread. The network is the digits' U-Net that ships, at 20 noise levels and 64 states
each, four random probes of its Jacobian; in float32, as it was trained.

python benchmarks/gauge.py
"""

import time

import torch

import workbench as wb
from workbench.exact.helmholtz import grid_split
from workbench.lenses.galerkin import galerkin_split


def took(what: str, limit: float, work) -> None:
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    print(f"{what:48}{seconds:8.2f} s   (limit {limit:g} s){'' if seconds < limit else '  OVER'}")


def on_grid(nodes: int, axes: int):
    law = wb.datasets.ring().law if axes == 2 else wb.Gaussian(torch.zeros(3).double(), 1.0)
    side = 4.5 if axes == 2 else 8.0
    h = side / nodes
    line = -0.5 * side + h * (torch.arange(nodes).double() + 0.5)
    points = torch.stack(torch.meshgrid(*[line] * axes, indexing="ij"), -1)
    level = law.at(1.0, 0.2)
    score = level.score(points)
    turned = torch.cat([-score[..., 1:2], score[..., :1], 0 * score[..., 2:]], -1)
    return lambda: grid_split(score + turned, level.log_prob(points), h)


def main() -> None:
    torch.set_num_threads(1)
    on_grid(32, 2)()  # what is imported once
    took("grid of 256 x 256, ring at rho = 0.2", 2, on_grid(256, 2))
    took("grid of 64 x 64 x 64, Gaussian", 10, on_grid(64, 3))
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    took("2000 samples in 16 dimensions", 5, lambda: galerkin_split(x.roll(1, 1), x))
    data = wb.datasets.digits()
    net = wb.Diffusion(wb.EDM(), wb.Neural.from_data(data))
    lens = wb.lenses.LENSES["asymmetry"](levels=20, samples=64)
    took("digits' U-Net, 20 levels, 64 states", 60, lambda: wb.measure(lens, net, data=data))


if __name__ == "__main__":
    main()
