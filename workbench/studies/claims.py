"""What stories claim: their numbers computed, and their thumbnails."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.studies.comparison import (
    Comparing,
    compare,
    compare_grids,
    compare_orders,
    compare_paths,
)
from workbench.studies.glance import quantised
from workbench.studies.limits import Report
from workbench.studies.measuring import look
from workbench.studies.run import run
from workbench.studies.spec import Study, StudyError
from workbench.studies.training import Training

if TYPE_CHECKING:
    import xarray

#: Comparisons of the Samplers page that a number may be of, by their names.
COMPARISONS = {
    "errors": lambda study, options: compare(study, options).lens,
    "grids": compare_grids,
    "orders": compare_orders,
    "paths": compare_paths,
}

#: Options of pages beside a study: module and class.
OPTIONS = {
    "gap": ("gapping", "Gapping"),
    "gauge": ("gauging", "Gauging"),
    "seeds": ("seeding", "Seeding"),
    "frequency": ("banded", "Looking"),
}
#: Of a thumbnail: points of a plane, images (in rows of six), frames, curves.
POINTS, IMAGES, FRAMES, CURVES = 140, 18, 20, 6


def computed(
    of: str, study: Mapping[str, Any], options: Mapping[str, Any], at: Mapping[str, Any]
) -> float:
    """A number of a study.

    Args:
        of: ``lens.variable`` of a registered lens (``output.w2_exact``);
            ``errors|grids|orders|paths.variable`` of a comparison of samplers; ``final.norm``, the
            mean Euclidean norm of the final states [x]; ``run.nfe``, evaluations of the denoiser.
        study: entries of the study, in their flat form.
        options: of a comparison, in their flat form (:class:`Comparing`).
        at: by dimension, the coordinate at which a variable is taken: the nearest, of numbers.

    Raises:
        StudyError: values that do not go together, or a number that there is not.
    """
    source, _, name = of.partition(".")
    dataset = _source(source, json.dumps(dict(study)), json.dumps(dict(options)))
    if of == "final.norm":
        flat = dataset["final"].values.reshape(dataset.sizes["sample"], -1).astype(np.float64)
        return float(np.linalg.norm(flat, axis=1).mean())
    if of == "run.nfe":
        return float(dataset.attrs["nfe"])
    if source in ("final", "run"):
        raise StudyError({"of": f"of was {of!r}; of a run there are final.norm and run.nfe."})
    return _taken(dataset, name, at)


@lru_cache(maxsize=4)
def _source(source: str, study: str, options: str) -> xarray.Dataset:
    """What several numbers of a story are taken from."""
    asked = Study.from_flat(json.loads(study))
    if source in ("final", "run"):
        return run(asked.changed({"record.fields": "x", "record.every": 10_000}))
    if source in COMPARISONS:
        return COMPARISONS[source](asked, Comparing.from_flat(json.loads(options)))
    try:
        return look(asked, source)[0]
    except StudyError:
        raise
    except (NotImplementedError, LookupError, ValueError) as error:
        raise StudyError({"of": f"of was {source}: {error.args[0]}"}) from None


def _taken(dataset: xarray.Dataset, name: str, at: Mapping[str, Any]) -> float:
    if name not in dataset:
        names = ", ".join(map(str, dataset.data_vars))
        raise StudyError({"of": f"there is no {name!r}; there are {names}."})
    value = dataset[name]
    for dim, where in at.items():
        if dim not in value.dims:
            raise StudyError({"at": f"{name} has no {dim!r}; it has {', '.join(value.dims)}."})
        labels = value[dim].values
        if isinstance(where, str):
            if where not in labels.tolist():
                raise StudyError({"at": f"{dim} was {where!r}; it is one of {labels.tolist()}."})
            value = value.sel({dim: where})
        elif labels.dtype.kind in "iuf":
            value = value.isel({dim: int(np.abs(labels - where).argmin())})
        else:
            raise StudyError({"at": f"{dim} was {where}; it is one of {labels.tolist()}."})
    if value.size != 1:
        raise StudyError({"at": f"{name} has {', '.join(value.dims)}; say at which of them."})
    return float(value)


def problem(page: str, study: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Why a story's study does not open, e.g. what it names and is not installed; or nothing."""
    try:
        Study.from_flat(dict(study))
        if page in OPTIONS:
            module, name = OPTIONS[page]
            kind = getattr(import_module(f"workbench.studies.{module}"), name)
            kind.from_flat(dict(options))
        elif page == "networks":
            Training().changed(options)
        elif page == "samplers" or options:
            Comparing.from_flat(dict(options))
    except StudyError as error:
        return f"It does not open: {' '.join(error.problems.values())}"
    return ""


def told(
    page: str,
    study: Mapping[str, Any],
    options: Mapping[str, Any],
    picture: str,
    drawn: bool,
    report: Report,
) -> tuple[str, dict[str, Any] | None]:
    """What a gallery says of a story: its :func:`problem`, and its thumbnail if ``drawn``."""
    report("stories", 0.0)
    wrong = problem(page, study, options)
    if wrong or not drawn:
        return wrong, None
    try:
        return "", thumbnail(page, study, options, picture)
    except (ValueError, NotImplementedError):
        return "", None  # said on its page


# ---- thumbnails ----------------------------------------------------------------------------------


def thumbnail(
    page: str, study: Mapping[str, Any], options: Mapping[str, Any], picture: str = "x"
) -> dict[str, Any]:
    """The frames of a story's thumbnail, quantised to bytes.

    Returns:
        ``kind``: "plane" (frames, points, 2), "images" (frames, images, rows, columns) or "curves"
        (curves, points, 2; 255 is up); ``shape``; ``data``, the bytes in base 64.
    """
    asked = Study.from_flat(dict(study))
    if page == "samplers":
        return _curves(compare(asked, Comparing.from_flat(dict(options))).lens)
    from workbench.lenses.portrait import display_scale, half_width

    every = math.ceil(asked.grid.parameters.get("steps", FRAMES) / FRAMES)
    few = {"seeds.count": POINTS, "record.fields": "x,denoised", "record.every": every}
    found = run(asked.changed(few))
    scale = display_scale(found)
    shown = found[picture].values.astype(np.float64)
    if picture == "denoised":
        scale = scale / found["alpha"].values
    shown = shown / scale.reshape(-1, *[1] * (shown.ndim - 1))
    if shown.ndim == 3:
        width = half_width(found)
        return quantised("plane", (shown * [1.0, -1.0] / width + 1) / 2)
    images = shown[:, :IMAGES]
    low, high = np.quantile(images[-1], [0.01, 0.99])
    return quantised("images", (images - low) / max(high - low, 1e-12))


def _curves(lens: xarray.Dataset) -> dict[str, Any]:
    """Error over evaluations, on log axes."""
    curves = []
    for i in range(min(CURVES, lens.sizes["sampler"])):
        one = lens.isel(sampler=i, grid=0)
        nfe, error = one["nfe"].values.astype(float), one["w2"].values
        fine = (nfe > 0) & np.isfinite(error) & (error > 0)
        curves.append((np.log(nfe[fine]), np.log(error[fine])))
    x, y = (np.concatenate(part) for part in zip(*curves, strict=True))
    top = min(y.max(), np.median(y) + 6)
    even = np.linspace(x.min(), x.max(), 32)
    lines = []
    for at, value in curves:
        height = np.interp(even, at, value, left=value[0], right=value[-1])
        across = (np.clip(even, at.min(), at.max()) - x.min()) / (x.max() - x.min())
        lines.append(np.stack([across, 1 - (height - y.min()) / (top - y.min())], -1))
    return quantised("curves", 0.08 + 0.84 * np.stack(lines))
