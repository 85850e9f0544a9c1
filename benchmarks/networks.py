"""The networks that ship, in numbers: what each has learnt, how fast it draws.

    python benchmarks/networks.py [part ...]

The parts: losses, classes, twin, local, gaussian, speed, processes; all of them without one.
"""

import argparse
import functools
import json
import math
import time

import numpy as np
import torch

import workbench as wb
from workbench.denoisers.checkpoints import network_of, shipped_folder
from workbench.denoisers.precondition import edm_denoised
from workbench.learning.training import draws, split
from workbench.studies.run import made
from workbench.studies.training import Training

#: Draws of the noise over which a loss is averaged, beside the one of the card.
DRAWS = 200


def net_of(name: str, label: int | None = None) -> wb.Neural:
    return wb.Neural.load(shipped_folder() / f"{name}.safetensors", label)


def card_of(name: str) -> dict:
    return json.loads((shipped_folder() / f"{name}.json").read_text())


@functools.cache
def parts_of(name: str):
    """The data of a network, and the places of those trained on and of the others."""
    training = Training.load(shipped_folder() / f"{name}.yaml")
    data = made(training.data)
    return data, *split(len(data.points), training.training)


def losses() -> None:
    """Per pixel on held-out digits: of the card's draw of the noise, and of many others."""
    network, card, centre = network_of(shipped_folder() / "digits.safetensors")
    data, _, left = parts_of("digits")
    points, labels = data.points[left].float(), data.labels[left]

    def loss(rho: float, noise: torch.Tensor) -> torch.Tensor:
        call = functools.partial(network, labels=labels)
        levels = torch.full((len(points), 1, 1), rho)
        denoised = edm_denoised(call, points + rho * noise, levels, card["sigma_data"], centre)
        return (denoised - points).square().mean((1, 2))

    print(
        f"digits: {card['data']['trained_on']} trained on, {len(points)} held out; loss per pixel"
    )
    print(f"{'rho':>6}{'card':>10}{'mean':>10}{'± digits':>10}{'one draw ±':>12}")
    for index, rho in enumerate(card["settings"]["levels"]):
        one = loss(rho, draws(points.shape, index)).mean().item()
        generator = torch.Generator().manual_seed(1000 + index)
        many = torch.stack(
            [loss(rho, torch.randn(points.shape, generator=generator)) for _ in range(DRAWS)]
        )
        error = many.mean(0).std().item() / math.sqrt(len(points))
        spread = many.mean(1).std().item()
        print(f"{rho:6.1f}{one:10.5f}{many.mean().item():10.5f}{error:10.5f}{spread:12.5f}")
    print(f"trained in {card_of('digits')['cpu_seconds']:.0f} CPU seconds")


def classes(each: int = 100) -> None:
    """Digits drawn of each class, by a support vector machine trained on real ones."""
    from sklearn.svm import SVC

    data, _, left = parts_of("digits")
    seen = parts_of("digits")[1]
    judge = SVC(C=10.0).fit(data.points[seen].flatten(1).numpy(), data.labels[seen].numpy())
    real = judge.score(data.points[left].flatten(1).numpy(), data.labels[left].numpy())
    process, right = wb.EDM(), 0
    grid = wb.Grid.karras(process, 30)
    for label in range(10):
        diffusion = wb.Diffusion(process, net_of("digits", label))
        drawn = wb.sample(diffusion, wb.DPMSolverPP(2), grid, range(each)).final
        right += int((judge.predict(drawn.flatten(1).numpy()) == label).sum())
    print(
        f"of {10 * each} digits drawn by class in 30 steps of DPM-Solver++(2M), {right} are right: "
        f"{right / (10 * each):.1%}; of the real ones held out {real:.1%}"
    )


def twin() -> None:
    """The over-trained twin beside the network, at sigma 0.2."""
    for name in ("training", "held_out"):
        one, other = (
            card["curve"][name][-1][card["curve"]["rho"].index(0.2)]
            for card in (card_of("digits"), card_of("digits_memorised"))
        )
        print(f"loss at sigma 0.2, {name:9}: {one:.5f}; of the twin {other:.5f}, {other / one:.2f}")


def local() -> None:
    """R² of the local network with the exact local denoiser of its own training set and view.

    One less the squared error over the variance of the target: about its mean over all pixels, and,
    as the lens follows has it, about that of each pixel.
    """
    net = net_of("digits_local")
    data, seen, _ = parts_of("digits_local")
    points, view = data.points[seen].double(), card_of("digits_local")["network"]["view"]
    exact = wb.Local(points, size=view)
    print(f"{len(points)} images, view {view}, 4 draws of the noise; "
          f"trained in {card_of('digits_local')['cpu_seconds']:.0f} CPU seconds")  # fmt: skip
    for index, rho in enumerate((0.2, 0.4, 0.7, 1.2, 2.0)):
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(4, *points.shape, generator=generator, dtype=torch.float64)
        noised = (points + rho * noise).flatten(0, 1)
        target = exact.denoise(noised, 1.0, rho)
        answer = net.denoise(noised.float(), 1.0, rho).double()
        miss = (answer - target).square().mean().item()
        spreads = (target.var(correction=0), target.var(0, correction=0).mean())
        shares = [1 - miss / one.item() for one in spreads]
        print(f"rho {rho:4.1f}: R² {shares[0]:.4f}; about the mean of each pixel {shares[1]:.4f}")


def gaussian() -> None:
    """Share of the score that the Gaussian with the moments of the training set explains."""
    net = net_of("digits")
    data, seen, _ = parts_of("digits")
    law = wb.Gaussian.from_data(wb.Data("seen", data.points[seen].double()))
    for rho in (2.0, 5.0, 10.0, 20.0, 40.0):
        noise = torch.randn(256, 8, 8, generator=torch.Generator().manual_seed(0)).double()
        noised = data.points[seen][:256].double() + rho * noise
        score, simple = (
            (one.denoise(noised.to(kind), 1.0, rho).double() - noised) / rho**2
            for one, kind in ((net, torch.float32), (law, torch.float64))
        )
        share = 1 - (score - simple).square().sum().item() / score.square().sum().item()
        print(f"rho {rho:4.0f}: explained variance by the Gaussian {share:.5f}")


def speed() -> None:
    """CPU seconds of 256 digits in 18 steps of Heun, the least of three."""
    process = wb.EDM()
    diffusion = wb.Diffusion(process, net_of("digits"))
    grid, spent = wb.Grid.karras(process, 18), []
    for _ in range(3):
        began = time.process_time()
        wb.sample(diffusion, wb.Heun(), grid, range(256))
        spent.append(time.process_time() - began)
    print(f"256 digits in 18 steps of Heun: {min(spent):.2f} CPU seconds, one thread")


def processes() -> None:
    """One network under three processes from the same noise: how far apart its digits are.

    From rho 30 to 0.05, on times that are even in their square root under each process: grids that
    differ, so that nothing but the flow itself is common to the three.
    """
    net = net_of("digits").to(torch.float64)
    start = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = torch.tensor([30.0, 0.05], dtype=torch.float64)
    counts = (24, 48, 96)
    for sampler in (wb.Euler(), wb.Heun()):
        apart = []
        for steps in counts:
            finals = []
            for process in (wb.VP(), wb.EDM(), wb.RectifiedFlow()):
                first, last = process.time_of(ends).sqrt().tolist()
                grid = wb.Grid.times(process, np.linspace(first, last, steps + 1) ** 2)
                length = np.hypot(grid.alpha[0], grid.sigma[0])
                diffusion = wb.Diffusion(process, net)
                run = wb.sample(diffusion, sampler, grid, range(8), x=length * start)
                finals.append(run.final / grid.alpha[-1])
            apart.append(max((one - finals[0]).square().mean().sqrt() for one in finals[1:]))
        orders = np.log2(np.array(apart[:-1]) / np.array(apart[1:]))
        print(
            f"{type(sampler).__name__}: RMS [x] of the largest difference at {counts} steps "
            f"{', '.join(f'{one:.4f}' for one in apart)}; orders "
            f"{', '.join(f'{one:.2f}' for one in orders)}"
        )


PARTS = {one.__name__: one for one in (losses, classes, twin, local, gaussian, speed, processes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], default=[])
    chosen = parser.parse_args().part or PARTS
    torch.set_num_threads(1)
    for name in chosen:
        print(f"-- {name}: {PARTS[name].__doc__.partition(chr(10))[0]}")
        PARTS[name]()


if __name__ == "__main__":
    main()
