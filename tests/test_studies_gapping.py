"""What the page "Gap" shows: networks by their penalty, an error in closed form, its numbers."""

import hashlib
import json

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from workbench.denoisers import checkpoints
from workbench.studies import gapping, penalties
from workbench.studies.gapping import Gapping, gap_of, network_of, weighted
from workbench.studies.spec import StudyError
from workbench.views.gap import packed
from workbench.views.panels import header_of

PENALISED = ("circles", "checkerboard", "ring")


@pytest.fixture
def small(monkeypatch):
    for about in (gapping.PLANE, gapping.NETWORK):
        for key, value in {"samples": 32, "steps": 12, "levels": 5, "rows": 7}.items():
            monkeypatch.setitem(about, key, value)


def study(data: str, denoiser: str, **more) -> wb.Study:
    return wb.Study.from_flat({"data": data, "denoiser": denoiser, "device": "cpu", **more})


def test_every_weight_has_its_network():
    for data in PENALISED:
        for weight in ("matching", "0", "0.1", "1", "10"):
            made = weighted(study(data, "Neural"), weight)
            assert network_of(made) == (0.0 if weight == "matching" else float(weight))
            name = made.denoiser.parameters["checkpoint"]
            name = data if name == "matching" else name
            card = checkpoints.network_of(checkpoints.shipped_folder() / f"{name}.safetensors")[1]
            penalised = [one["weight"] for one in card["regularisers"]]
            assert card["data"]["name"] == data
            assert penalised == ([] if weight in ("matching", "0") else [float(weight)])
    assert network_of(study("circles", "Neural", **{"denoiser.checkpoint": "ring"})) is None
    with pytest.raises(StudyError, match="no network digits_fokker_planck_1 ships"):
        weighted(study("digits", "Neural"), "1")
    with pytest.raises(StudyError, match="Gaussian is no network"):
        weighted(study("digits", "Gaussian"), "1")


def test_what_is_kept_of_the_networks_was_measured_on_those_that_ship():
    rows = json.loads(penalties.file().read_text())["networks"]
    folder = checkpoints.shipped_folder()
    measured = {row["data"] for row in rows}
    assert measured >= {"circles", "checkerboard"}
    for data in measured:
        found = penalties.penalties(data)
        assert found["weight"].values.tolist() == list(penalties.WEIGHTS)
        assert found.sizes["sampling"] == 5 and (found["square_se"] > 0).all()
        residual = found["residual"].mean("training").values
        assert residual[-1] < residual[0] and len(penalties.finding(found)) == 3
        for row in rows:
            if row["data"] == data and row["training"] == 0:
                plain = data if row["weight"] == 0 else f"{data}_fokker_planck_{row['weight']:g}"
                content = (folder / f"{plain}.safetensors").read_bytes()
                assert hashlib.sha256(content).hexdigest() == row["sha256"], plain
    assert penalties.penalties("digits") is None
    # Anew, with fewer samples: as far from the truth as is kept.
    data = wb.datasets.circles(size=20_000, seed=1)
    net = wb.Neural.load(folder / "circles_fokker_planck_10.safetensors", data=data)
    _, flow, noisy = penalties.squared_gaps(wb.Diffusion(wb.EDM(), net), data, 2048, 0, 16)
    kept = penalties.penalties("circles")["each"].sel(weight=10, training=0).mean("sampling")
    assert 0.4 < flow / float(kept[1]) < 2.5 and 0.4 < noisy / float(kept[2]) < 2.5


def test_the_finding_follows_the_numbers():
    """Of made-up numbers: as published, and not."""

    def said(*squares) -> list[str]:
        each = np.array(squares, float).T[:, None, None, :] + 0.01 * np.arange(5)[:, None]
        return penalties.finding(
            xr.Dataset(
                {
                    "each": (("weight", "training", "sampling", "pair"), each),
                    "square": (("weight", "pair"), each.mean((1, 2))),
                    "square_se": (("weight", "pair"), np.full((4, 3), 0.01)),
                    "t": 2.776,
                },
                {"weight": list(penalties.WEIGHTS), "training": [0]},
                {"data": "circles"},
            )
        )

    found = said([4, 3, 2, 1], [2, 1, 2, 3], [1, 2, 3, 4])
    assert "ODE and SDE: falls with every step" in found[0] and found[0].endswith("As published.")
    assert "from first to last +1 ± 0" in found[1] and "ublished" not in found[1]
    assert "rises with every step" in found[2] and found[2].endswith("As published.")
    found = said([1, 3, 2, 1], [2, 1, 2, 3], [1, 0.5, 3, 4])
    assert found[0].endswith("no more than its interval. The published trend is not found.")
    assert found[2].endswith("As published, though not step by step.")


def test_an_error_on_purpose_has_the_gap_of_its_closed_form(small):
    asked = (study("gaussian", "Gaussian"), Gapping(error="scale", size=0.1))
    seen = gap_of(asked)
    closed = seen.dataset["consequence"].sel(size=0.1, method="nearest")
    np.testing.assert_allclose(closed, seen.gap["w2_exact"], rtol=1e-9)
    assert float(seen.bound["w2"]) <= float(seen.bound["limit"]) and seen.penalties is None
    head = header_of(packed(seen))
    assert head["consequence"]["size"] == seen.dataset["size"].values.tolist()
    assert head["arrays"]["map"]["shape"] == [5, 7, 7] and "penalties" not in head


def test_a_network_stands_beside_those_of_other_weights(small):
    seen = gap_of((study("circles", "Neural"), Gapping(weight="10", eta=0.5)))
    head = header_of(packed(seen))["penalties"]
    assert head["weights"] == [0, 0.1, 1, 10] and head["now"] == 3
    assert np.shape(head["square"]) == np.shape(head["half"]) == (3, 4)
    assert penalties.trend(seen.penalties) in seen.facts
    assert np.isfinite(seen.dataset["map"]).all() and (seen.dataset["residual_se"] > 0).all()
