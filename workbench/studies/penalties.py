"""Networks by the weight of their Fokker-Planck penalty: the gap of ODE, SDE and truth of each.

What :func:`squared_gaps` finds of many networks, over several seeds of sampling and of training, is
kept in a small file that ships (``python benchmarks/penalties.py`` makes it again); the page "Gap"
and its notebook show it.

Source of the experiment: Deveney et al. 2023, arXiv:2311.15996.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workbench.denoisers import checkpoints
from workbench.diffusion import Diffusion
from workbench.lenses.base import Subject
from workbench.lenses.gap import PAIRS, Family, truth_samples
from workbench.lenses.two_sample import STATISTICS
from workbench.sampling import Grid
from workbench.trajectory import sample

#: Weights of the penalty; steps of both samplers; mixed sets whose mean distance is taken off.
WEIGHTS, STEPS, MIXED = (0.0, 0.1, 1.0, 10.0), 48, 9

#: Trainings over which an interval is taken.
ENOUGH = 3

LABELS = [f"{a} and {b}" for a, b in PAIRS]


def squared_gaps(diffusion: Diffusion, data, n: int, seed: int, steps: int = STEPS) -> list[float]:
    """Squared sliced W2 [x^2] of each of :data:`PAIRS`, times the dimension; unbiased.

    Args:
        diffusion: whose ODE and SDE are sampled.
        data: of the truth.
        n: samples of each law.
        seed: which ``3 n`` of the draws.
        steps: of the second-order multistep method.
    """
    grid = Grid.log_snr(diffusion.process, steps, final="stop")
    sets, first = {}, 3 * n * seed
    for k, (name, eta) in enumerate((("ODE", 0.0), ("SDE", 1.0))):
        seeds = range(first + k * n, first + (k + 1) * n)
        sets[name] = sample(diffusion, Family(eta=eta), grid, seeds).final.flatten(1).double()
    truth = truth_samples(Subject(diffusion, data=data), grid.t[-1], n, first)
    sets["truth"] = truth.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    parted = torch.zeros(1 + MIXED, 2 * n, dtype=torch.bool)
    parted[0, :n] = True
    for row in parted[1:]:
        row[torch.randperm(2 * n, generator=generator)[:n]] = True
    squares = []
    for a, b in PAIRS:
        values, _ = STATISTICS["sliced"][0](torch.cat([sets[a], sets[b]]), parted)
        squares.append((values[0] - values[1:].mean()).item())
    return squares


def file() -> Path:
    """Where what ships is."""
    return checkpoints.shipped_folder().parent / "penalties.json"


@functools.cache
def penalties(data: str) -> xr.Dataset | None:
    """What ships of the networks of a data set; None where nothing does.

    Returns:
        ``each`` (weight, training, sampling, pair), squared sliced W2 of single seeds;
        ``square`` (weight, pair), their mean, with ``square_se``: over trainings where there are
        at least three, else over the seeds of sampling; ``t``, the two-sided 95 % quantile of
        Student that goes with it; ``residual`` (weight, training), of the noise prediction at
        rho = 0.2.
    """
    if not file().exists():
        return None
    held = json.loads(file().read_text(encoding="utf-8"))
    rows = [row for row in held["networks"] if row["data"] == data]
    weights = [w for w in WEIGHTS if any(row["weight"] == w for row in rows)]
    trainings = sorted({row["training"] for row in rows})
    there = {(row["weight"], row["training"]): row for row in rows}
    whole = [k for k in trainings if all((w, k) in there for w in weights)]
    if len(weights) < 2 or not whole:
        return None
    each = np.array([[there[w, k]["squares"] for k in whole] for w in weights])
    residual = np.array([[there[w, k]["residual"] for k in whole] for w in weights])
    units = _repeated(each)
    count = units.shape[1]
    from scipy.special import stdtrit

    square = "squared sliced W2, times the dimension"
    return xr.Dataset(
        {
            "each": (("weight", "training", "sampling", "pair"), each, {"units": "x^2"}),
            "square": (("weight", "pair"), units.mean(1), {"units": "x^2", "long_name": square}),
            "square_se": (("weight", "pair"), units.std(1, ddof=1) / math.sqrt(count)),
            "t": float(stdtrit(count - 1, 0.975)),
            "residual": (("weight", "training"), residual, {"units": "1"}),
        },
        {"weight": weights, "training": whole, "pair": LABELS},
        {"samples": held["samples"], "steps": held["steps"], "data": data},
    )


def _repeated(each: np.ndarray) -> np.ndarray:
    """What the interval is over (weight, repeats, ...) of values (weight, training, sampling)."""
    return each.mean(2) if each.shape[1] >= ENOUGH else each.mean(1)


def repeats(found: xr.Dataset) -> str:
    """Over what the intervals are, in words."""
    trainings, seeds = found.sizes["training"], found.sizes["sampling"]
    if trainings >= ENOUGH:
        return f"{trainings} trainings"
    return f"{seeds} seeds of sampling" + (f", {trainings} trainings" if trainings > 1 else "")


def finding(found: xr.Dataset) -> list[str]:
    """What the numbers say of the published trends: the gap falls with the weight, the SDE pays."""
    said = []
    for pair, published in ((0, -1), (1, 0), (2, 1)):
        values = found["square"].values[:, pair]
        half = float(found["t"]) * found["square_se"].values[:, pair]
        steps = np.sign(np.diff(values))
        trend = "changes without order"
        if (steps < 0).all():
            trend = "falls with every step of the weight"
        elif (steps > 0).all():
            trend = "rises with every step of the weight"
        change = _difference(found, pair)
        sure = "" if abs(change[0]) > change[1] else ", no more than its interval"
        numbers = ", ".join(f"{v:.4f} ± {h:.4f}" for v, h in zip(values, half, strict=True))
        weights = ", ".join(f"{weight:g}" for weight in found["weight"].values)
        text = f"{LABELS[pair]}: {trend}, {numbers} at weight {weights}"
        text += f"; from first to last {change[0]:+.2g} ± {change[1]:.2g}{sure}."
        agrees = published == 0 or (np.sign(change[0]) == published and abs(change[0]) > change[1])
        monotone = (steps == published).all()
        if published and agrees:
            text += " As published." if monotone else " As published, though not step by step."
        elif published and monotone:
            text += " The published direction, but not beyond the interval."
        elif published:
            text += " The published trend is not found."
        said.append(text)
    head = f"{found.attrs['data']}, squared sliced W₂ with 95 % intervals over {repeats(found)}"
    return [f"{head}: {said[0]}", *said[1:]]


def _difference(found: xr.Dataset, pair: int) -> tuple[float, float]:
    """Last weight less the first, seed by seed of the same draws, and half its 95 % interval."""
    each = found["each"].values[..., pair]
    units = _repeated(each[-1:] - each[:1])[0]
    error = units.std(ddof=1) / math.sqrt(len(units))
    return float(units.mean()), float(found["t"]) * float(error)


def trend(found: xr.Dataset) -> str:
    """The finding in a few words, for the line above a picture."""
    words = []
    for name, pair, published in (("gap", 0, -1), ("SDE's distance to the truth", 2, 1)):
        apart, half = _difference(found, pair)
        if abs(apart) <= half:
            words.append(f"the {name} does not change beyond its interval")
        else:
            word = "falls" if apart < 0 else "rises"
            words.append(
                f"the {name} {word}" + ("" if np.sign(apart) == published else ", not as published")
            )
    last = f"{found['weight'].values[-1]:g}"
    return f"from penalty's weight 0 to {last} {words[0]} and {words[1]}"
