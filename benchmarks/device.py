"""The workbench on a card: the same numbers as on the CPU, no waiting, and how near its limits.

1. Every denoiser, process and sampler, once on the CPU and once on the device, from the same seeds:
   the same to rounding; the noise itself to the last bit.
2. Host synchronisations in the loop, counted by torch's sync debug mode: none for a linear sampler.
3. A mixture of a million particles, a Gaussian of 3072 dimensions and a data set of 50 000 points,
   each beside the loop one writes by hand, and beside what the device's memory bandwidth and matrix
   products allow, measured in the same run.

Needs torch, numpy, scipy and xarray; at most five minutes. The results go, with the name of the
card and the date, to ``benchmarks/results/``.

    python benchmarks/device.py                          the first card
    python benchmarks/device.py --device cpu --small     a rehearsal without one; writes nothing
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from byhand import heun_by_hand

import workbench as wb
from workbench.sampling import NOISES, walk
from workbench.sampling.plan import planned

RESULTS = Path(__file__).parent / "results"
SHAPE = (1, 4, 4)  # of one sample in the comparisons
STEPS, COUNT = 8, 6
#: Largest difference between device and CPU, relative to the largest value, of whole runs.
ALLOWED = {torch.float64: 1e-9, torch.float32: 2e-3}
BUDGET = 300.0  # seconds


def normals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---- what is compared ------------------------------------------------------------------------


class Network(torch.nn.Module):
    """A small network of noise: smooth, and the same on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(0.2 * normals(16, 16, seed=9))

    def forward(self, x: Tensor, t) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.weight).reshape(x.shape)


def denoisers() -> dict[str, wb.Denoiser]:
    """One or more of every registered kind, float64, on the CPU."""
    d, k = math.prod(SHAPE), 5
    mean, root = normals(d, seed=1), normals(d, d, seed=2) / 4
    means = normals(k, *SHAPE, seed=3)
    weights = torch.full((k,), 1 / k, dtype=torch.float64)
    roots = normals(k, d, d, seed=4) / 4
    variances = 0.1 + normals(k, d, seed=5).square()
    gaussian = wb.Gaussian(mean.reshape(SHAPE), root @ root.T)
    mixture = wb.Mixture(weights, means, torch.full((k,), 0.1, dtype=torch.float64))
    classes = wb.Conditional([gaussian, mixture])
    made = {
        "Gaussian": gaussian,
        "Gaussian, diagonal": wb.Gaussian(mean.reshape(SHAPE), variances[0].reshape(SHAPE)),
        "Mixture": mixture,
        "Mixture, diagonal": wb.Mixture(weights, means, variances),
        "Mixture, full": wb.Mixture(weights, means, roots @ roots.mT),
        "Empirical": wb.Empirical(normals(40, *SHAPE, seed=6)),
        "Local": wb.Local(normals(12, *SHAPE, seed=10), 3),
        "Conditional": classes,
        "Guided": wb.Guided(classes, 1, 2.0),
        "Perturbed": wb.Perturbed(mixture, scale=0.05),
        "Spliced": wb.Spliced(gaussian, mixture, 1.0),
        "Neural": wb.Neural(Network(), "noise", wb.VP(), SHAPE, dtype=torch.float64),
    }
    missing = set(wb.DENOISERS) - {name.split(",")[0] for name in made}
    if missing:
        raise SystemExit(
            f"no example of {', '.join(sorted(missing))} here; add one to denoisers()."
        )
    return made


def diffusions() -> dict[str, wb.Diffusion]:
    """One of every registered process, of a mixture."""
    law, basis = denoisers()["Mixture"], wb.DCT(SHAPE)
    made = {name: wb.Diffusion(kind(), law) for name, kind in wb.PROCESSES.items()}
    condition = normals(*SHAPE, seed=7)
    made |= {n: wb.Diffusion(kind(), law, condition) for n, kind in wb.AFFINE.items()}
    spectrum = (0.5 + normals(*SHAPE, seed=8).square(),)
    for name, kind in wb.SPECTRAL.items():
        own = spectrum if name in ("EqualSNR", "ShortestPath") else ()
        made[name] = wb.Diffusion(kind(*own, basis=basis), law)
    return made


def samplers() -> dict[str, wb.Sampler]:
    """Every registered sampler."""
    small = {"DPMOT": {"points": 16, "rounds": 20}}
    return {name: kind(**small.get(name, {})) for name, kind in wb.SAMPLERS.items()}


def compare(device: str, dtype: torch.dtype, small: bool) -> dict[str, float]:
    """The largest relative difference between device and CPU, by what was asked."""
    found: dict[str, float] = {}
    vp = wb.VP()
    grid = wb.Grid.log_snr(vp, STEPS)

    def both(what: str, diffusion: wb.Diffusion, ask: Callable) -> None:
        here, there = (ask(diffusion.to(dtype, at)) for at in ("cpu", device))
        scale = here.double().abs().max().item() or 1.0
        found[what] = (there.cpu().double() - here.double()).abs().max().item() / scale

    def run(sampler: wb.Sampler, nodes: wb.Grid) -> Callable:
        def final(diffusion: wb.Diffusion) -> Tensor:
            x = None if diffusion.process.has_prior else start.to(diffusion.dtype)
            return wb.sample(diffusion, sampler, nodes, range(COUNT), x=x).final

        return final

    start = normals(COUNT, *SHAPE, seed=11)
    for name, denoiser in denoisers().items():
        diffusion = wb.Diffusion(vp, denoiser)
        both(f"denoiser {name}: a run", diffusion, run(wb.Heun(), grid))
        for what in ("denoised", "score", "jacobian", "divergence")[: 2 if small else 4]:

            def ask(diffusion: wb.Diffusion, what: str = what) -> Tensor:
                return getattr(diffusion, what)(start.to(diffusion.dtype).to(diffusion.device), 0.4)

            both(f"denoiser {name}: {what}", diffusion, ask)
    for name, diffusion in diffusions().items():
        process = diffusion.process
        nodes = wb.Grid.uniform(process, STEPS)
        both(f"process {name}: Heun", diffusion, run(wb.Heun(), nodes))
        both(f"process {name}: EulerMaruyama", diffusion, run(wb.EulerMaruyama(), nodes))
    plain = wb.Diffusion(vp, denoisers()["Mixture"])
    blurred = diffusions()["HeatDissipation"]
    for name, sampler in samplers().items():
        if name == "InverseHeat":
            nodes = wb.Grid.uniform(blurred.process, STEPS)
            both(f"sampler {name}", blurred, run(sampler, nodes))
        else:
            both(f"sampler {name}", plain, run(sampler, grid))
    return found


def same_noise(device: str) -> dict[str, bool]:
    """Whether the noise on the device is the CPU's to the last bit, by kind of source."""
    seeds, shape, same = range(1 << 40, (1 << 40) + 500), (7, 3), {}
    for name, kind in NOISES.items():
        here, there = (kind(seeds, torch.Size(shape), device=at) for at in ("cpu", device))
        draws = [torch.equal(here.start(), there.start().cpu())]
        for draw, interval in ((0, (0.9, 0.7)), (1, None), (2, (0.7, 0.1))):
            one, other = (source.step(draw, interval) for source in (here, there))
            draws.append(torch.equal(one, other.cpu()))
        same[name] = all(draws)
    return same


def synchronisations(device: str) -> dict[str, int] | None:
    """How often the host waits for the device within the loop, by denoiser; None without a card."""
    if not device.startswith("cuda"):
        return None
    counts = {}
    grid = wb.Grid.log_snr(wb.VP(), STEPS)
    for name, denoiser in denoisers().items():
        for sampler in (wb.Heun(), wb.DPMSolverPP(2, sde=True)):
            diffusion = wb.Diffusion(wb.VP(), denoiser.to(torch.float32, device))
            source = NOISES["fresh"](range(COUNT), SHAPE, torch.float32, device)
            x = source.start()
            bound = planned(diffusion, sampler, grid, x, True).bound
            walk(bound, diffusion.core, x, source)  # once: what is made at the first call
            source.step(0)
            torch.cuda.synchronize()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    walk(bound, diffusion.core, x, source)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            waits = [w for w in caught if "synchroniz" in str(w.message).lower()]
            counts[f"{name}, {sampler!r}"] = len(waits)
    return counts


# ---- time ------------------------------------------------------------------------------------


def seconds(device: str, call: Callable, repeats: int = 5) -> float:
    """Median seconds of a call, the device idle before and after."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    call()
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def limits(device: str, small: bool) -> dict[str, float]:
    """Bytes a second of a copy, float32 operations a second of a matrix product."""
    numbers, side = (1 << 22, 512) if small else (1 << 28, 8192)
    one, other = (torch.zeros(numbers, device=device) for _ in range(2))
    copy = 2 * one.nbytes / seconds(device, lambda: other.copy_(one))
    a, b = (torch.ones(side, side, device=device) for _ in range(2))
    product = 2 * side**3 / seconds(device, lambda: a @ b)
    return {"bytes per second": copy, "operations per second": product}


def mixture_case(device: str, small: bool) -> tuple:
    n, steps, k, v = (2000 if small else 1_000_000), (8 if small else 64), 8, 0.01
    means = (2 * normals(k, 2, seed=20)).float().to(device)
    weights = torch.full((k,), 1 / k, device=device)
    law = wb.Mixture(weights, means, torch.full((k,), v, device=device))
    squares = means.square().sum(1)

    def usual(x: Tensor, a: float, s: float) -> Tensor:
        level = a * a * v + s * s
        share = torch.softmax((x @ means.T) * (a / level) - squares * (a * a / (2 * level)), -1)
        return x * (a * v / level) + (share @ means) * (s * s / level)

    # An evaluation reads the state and writes it, and reads and writes the responsibilities.
    bytes_ = 2 * steps * n * 4 * 2 * (2 + k)
    return f"mixture, {n:,} particles, {steps} steps", law, usual, (n, 2), steps, bytes_, 0.0


def gaussian_case(device: str, small: bool) -> tuple:
    d, n, steps = (64, 32, 8) if small else (3072, 256, 50)
    variances = 10.0 ** torch.linspace(1, -3, d, dtype=torch.float64)
    basis = torch.linalg.qr(normals(d, d, seed=21)).Q
    cov = ((basis * variances) @ basis.T).float().to(device)
    law = wb.Gaussian(torch.zeros(d, device=device), cov)
    axes, spectrum = basis.float().to(device), variances.float().to(device)

    def usual(x: Tensor, a: float, s: float) -> Tensor:
        return ((x @ axes) * (a * spectrum / (a * a * spectrum + s * s))) @ axes.T

    operations = 2 * steps * 2 * 2 * n * d * d
    return (
        f"Gaussian, d = {d}, {n} samples, {steps} steps",
        law,
        usual,
        (n, d),
        steps,
        0,
        operations,
    )


def empirical_case(device: str, small: bool) -> tuple:
    points, d, n, steps = (500, 16, 16, 8) if small else (50_000, 3072, 64, 18)
    data = normals(points, d, seed=22).float().to(device)
    law, squares = wb.Empirical(data), data.square().sum(1)

    def usual(x: Tensor, a: float, s: float) -> Tensor:
        logits = (x @ data.T) * (a / (s * s)) - squares * (a * a / (2 * s * s))
        return torch.softmax(logits, -1) @ data

    operations = 2 * steps * 2 * 2 * n * points * d
    name = f"empirical, N = {points:,}, d = {d}, {n} samples, {steps} steps"
    return name, law, usual, (n, d), steps, 0, operations


def timed(device: str, small: bool, limit: dict[str, float]) -> list[dict]:
    """Each case: ours, by hand, and the time its least traffic or its products would take."""
    rows, process = [], wb.VP()
    for case in (mixture_case, gaussian_case, empirical_case):
        name, law, usual, shape, steps, bytes_, operations = case(device, small)
        grid, diffusion = wb.Grid.karras(process, steps), wb.Diffusion(process, law)
        x = normals(*shape, seed=23).float().to(device)
        call = lambda d=diffusion, g=grid, x=x: wb.sample(d, wb.Heun(), g, range(len(x)), x=x)  # noqa: E731
        hand = lambda u=usual, g=grid, x=x: heun_by_hand(u, g, x)  # noqa: E731
        repeats = 3 if small else 5
        ours, theirs = seconds(device, call, repeats), seconds(device, hand, repeats)
        least = bytes_ / limit["bytes per second"] + operations / limit["operations per second"]
        apart = (call().final - hand()).abs().flatten(1).amax(1).median().item()
        rows.append(
            {
                "case": name,
                "ours": ours,
                "by hand": theirs,
                "ratio": ours / theirs,
                "limit": least,
                "share of the limit": least / ours,
                "median difference": apart,
            }
        )
    return rows


# ---- the report ------------------------------------------------------------------------------


def card(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda", help="as torch names it")
    parser.add_argument("--small", action="store_true", help="a rehearsal: small, writes nothing")
    given = parser.parse_args(arguments)
    device, small, began = given.device, given.small, time.perf_counter()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        print(
            f"device was {device} and torch finds none such here; run this where there is one, or "
            "rehearse it with --device cpu --small.",
            file=sys.stderr,
        )
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    made = {
        "card": card(device),
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "workbench": wb.__version__,
    }
    print("  ".join(f"{key} {value}" for key, value in made.items()), flush=True)
    failures = []
    for dtype, allowed in list(ALLOWED.items())[small:]:
        found, name = compare(device, dtype, small), str(dtype).removeprefix("torch.")
        worst = max(found, key=found.get)
        made[f"difference to the CPU, {name}"] = found
        failures += [
            f"{name}, {what}: {value:.2g} off, allowed are {allowed:.2g}"
            for what, value in found.items()
            if not value <= allowed
        ]
        print(f"{len(found)} comparisons in {name}: at most {found[worst]:.2g} off ({worst})")
    made["noise is the CPU's to the last bit"] = same_noise(device)
    failures += [
        f"noise {name} is not the CPU's"
        for name, same in made["noise is the CPU's to the last bit"].items()
        if not same
    ]
    made["synchronisations in the loop"] = waits = synchronisations(device)
    if waits is not None:
        failures += [f"{name}: the host waited {n} times" for name, n in waits.items() if n]
        print(f"synchronisations in the loop: {sum(waits.values())}")
    limit = made["limits"] = limits(device, small)
    print("  ".join(f"{value / 1e9:.4g} G{key}" for key, value in limit.items()), flush=True)
    made["times [s]"] = []
    if time.perf_counter() - began < BUDGET / 2:
        made["times [s]"] = timed(device, small, limit)
    for row in made["times [s]"]:
        print(
            f"{row['case']:56}{1e3 * row['ours']:10.2f}ms{1e3 * row['by hand']:10.2f}ms"
            f"{row['ratio']:7.2f}   {row['share of the limit']:.0%} of the limit"
        )
    made["seconds"] = round(time.perf_counter() - began, 1)
    made["failures"] = failures
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if not small:
        RESULTS.mkdir(exist_ok=True)
        name = made["card"].lower().replace(" ", "-").replace("/", "-")
        file = RESULTS / f"{made['date']}-{name}.json"
        file.write_text(json.dumps(made, indent=1) + "\n")
        print(f"written to {file}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
