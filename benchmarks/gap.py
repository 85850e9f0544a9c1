"""What the Fokker-Planck residual and the exact divergence cost, in evaluations of the denoiser.

CPU time on one thread, each ratio of two things timed in turns within one run. The network is the
digits' U-Net that ships, on 64 states at rho = 0.5 in float32; the residual is Hutchinson's, with
the derivative in t and that along a probe by differences, as the lens and the page take it of
networks. Its first probe brings the derivative in t with it; each further one costs less.

python benchmarks/gap.py
"""

import torch
from timing import least

import workbench as wb
from workbench.exact.fokker_planck import score_residual

GOAL, EXACT_GOAL, BATCH, RHO = 8.0, 2.0, 64, 0.5


def show(what: str, figures: tuple[float, float, float], goal: float | None) -> None:
    ours, once, ratio = figures
    verdict = "" if goal is None else f"   (goal {goal:g}){'' if ratio <= goal else '  OVER'}"
    print(f"{what:58}{ours:9.2f}ms{once:9.2f}ms{ratio:7.2f}{verdict}", flush=True)


def residual() -> None:
    data, generator = wb.datasets.digits(), torch.Generator().manual_seed(0)
    net = wb.Neural.from_data(data)
    points = data.points[:BATCH].float()
    noise = torch.randn(points.shape, generator=generator)
    for name, process in (("EDM", wb.EDM()), ("VP", wb.VP())):
        diffusion, t = wb.Diffusion(process, net), process.time_of(RHO)
        c = process(t)
        x = c.alpha * points + c.sigma * noise
        level = net.at(c.alpha, c.sigma)
        for count in (1, 2, 4):
            shape = (count, *points.shape[1:])
            probes = 2.0 * torch.randint(0, 2, shape, generator=generator) - 1
            figures = least(
                lambda probes=probes: score_residual(diffusion, x, t, probes, "time"),  # noqa: B023
                lambda: level.denoised(x),  # noqa: B023
                5,
            )
            words = f"residual of the digits' U-Net, {name}, {count} probe{'s' * (count > 1)}"
            show(words, figures, GOAL if count == 1 else None)


def divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    root = normal(64, 64) / 8
    small = 0.3 * normal(8, 2, 2)
    points = normal(2000, 64)
    weights = torch.full((8,), 1 / 8, dtype=torch.float64)
    laws = {
        "Gaussian, 64 dimensions": wb.Gaussian(normal(64), root @ root.T),
        "Mixture, 8 isotropic components, 2 dimensions": wb.Mixture(
            weights, normal(8, 2), torch.full((8,), 0.1, dtype=torch.float64)
        ),
        "Mixture, 8 full covariances, 2 dimensions": wb.Mixture(
            weights, normal(8, 2), small @ small.mT + 0.05 * torch.eye(2, dtype=torch.float64)
        ),
        "Mixture, 8 isotropic components, 64 dimensions": wb.Mixture(
            weights, normal(8, 64), torch.full((8,), 0.1, dtype=torch.float64)
        ),
        "Empirical, 2000 points, 64 dimensions": wb.Empirical(points),
    }
    for name, law in laws.items():
        level = law.at(1.0, RHO)
        x = normal(1024, law.dim)
        figures = least(lambda: level.divergence(x), lambda: level.denoised(x))  # noqa: B023
        show(f"divergence, {name}", figures, EXACT_GOAL)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'':58}{'ours':>11}{'once':>11}  ratio")
    residual()
    divergence()


if __name__ == "__main__":
    main()
