"""The gap of ODE and SDE as the browser draws it: one block of numbers, and what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.studies.penalties import finding, repeats
from workbench.views.panels import beside, block, plain

if TYPE_CHECKING:
    import xarray as xr

    from workbench.studies.gapping import Seen


def packed(seen: Seen) -> bytes:
    """A header of JSON behind its length, and the arrays as float32; what ``gap.js`` reads."""
    dataset = seen.dataset
    header: dict[str, Any] = {
        **{name: dataset.attrs[name] for name in ("kind", "error", "size", "eta")},
        **{name: plain(dataset[name].values) for name in ("rho", "t", "residual", "residual_se")},
        "distances": _distances(seen.gap, seen.bound),
    }
    if "place" in dataset.coords:
        header["place"] = plain(dataset["place"].values)
    if "consequence" in dataset:
        header["consequence"] = {
            "size": plain(dataset["size"].values),
            "w2": [plain(row) for row in dataset["consequence"].values.T],
        }
    if seen.attribution is not None:
        header["attribution"] = {
            name: _curve(seen.attribution, name)
            for name in ("level", "mode", "frequency")
            if name in seen.attribution
        }
    if seen.penalties is not None:
        header["penalties"] = _by_weight(seen.penalties, dataset.attrs["weight"])
    return block(header, dataset, ("ode", "sde", "truth", "map", "pointwise", "spectrum"))


def _curve(dataset: xr.Dataset, name: str) -> dict[str, list]:
    dim = dataset[name].dims[0]
    return {"at": plain(dataset[dim].values)} | beside(dataset, name)


def _by_weight(found: xr.Dataset, weight: float | None) -> dict[str, Any]:
    """Squared distances of each pair with half their 95 % intervals; which weight is shown."""
    weights = found["weight"].values.tolist()
    half = found["t"] * found["square_se"]
    return {
        "weights": weights,
        "square": [plain(row) for row in found["square"].values.T],
        "half": [plain(row) for row in half.values.T],
        "over": repeats(found),
        "now": weights.index(weight) if weight in weights else None,
        "said": finding(found),
    }


def _distances(gap: xr.Dataset, bound: xr.Dataset | None) -> dict[str, Any]:
    found: dict[str, Any] = {"pairs": gap["pair"].values.tolist()}
    found["statistics"] = {
        name: beside(gap, name) | {"p": plain(gap["p"].sel(statistic=name).values)}
        for name in ("w2", "sliced", "transport", "energy")
        if name in gap
    }
    found["step_error"] = plain(gap["step_error"].values)
    if bound is not None:
        found["limit"] = plain([bound["limit"]])[0]
    return found
