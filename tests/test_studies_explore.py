"""A study with what is shown of it."""

import sys

import numpy as np
import pytest

import workbench as wb
from workbench.lenses.distances import refined_flow, to_flow
from workbench.lenses.portrait import half_width, portrait
from workbench.studies import Study, StudyError, explore
from workbench.studies.explore import (
    COMING,
    MOST_NUMBERS,
    PORTRAYED,
    refined,
)

SMALL = {"seeds": {"count": 9}, "device": "cpu", "grid": {"name": "log_snr", "steps": 5}}


def test_everything_shown_is_what_the_library_gives_by_hand():
    study = Study(
        data="gaussian", denoiser="Gaussian", record={"fields": ["score"], "every": 2}, **SMALL
    )
    shown, steps = None, []
    shown = explore(study, lambda stage, fraction: steps.append((stage, fraction)))
    fields = {"fields": ["x", "denoised", "score"], "every": 2}
    whole = wb.run(Study(data="gaussian", denoiser="Gaussian", record=fields, **SMALL))
    for name in ("x", "denoised", "score", "final"):
        assert np.array_equal(shown.run[name].values, whole[name].values)
    assert shown.run.attrs["study"] == whole.attrs["study"] == shown.study.to_json()
    diffusion = shown.setup.diffusion
    assert shown.flow.identical(to_flow(diffusion, shown.run)) and shown.reason == ""
    assert shown.portrait.identical(portrait(diffusion, shown.run, half_width(shown.run)))
    assert shown.notes == ()
    assert shown.title == "Heun, 5 steps on a log_snr grid, VP; gaussian as Gaussian"
    fractions = [fraction for _, fraction in steps]
    assert fractions == sorted(fractions) and fractions[0] == 0.0 and fractions[-1] == 1.0
    stages = list(dict.fromkeys(stage for stage, _ in steps))
    assert stages == ["preparing", "sampling", "exact flow", "phase portrait"]


def test_without_a_closed_form_the_flow_is_refined_and_said_so():
    shown = explore(Study(**SMALL))
    assert shown.flow.attrs["converged"] and shown.reason == ""
    assert shown.flow.identical(refined_flow(shown.setup.diffusion, shown.run, 9))
    assert shown.notes == (shown.flow.attrs["note"],) and shown.portrait is not None


def test_the_flow_of_a_network_may_come_after_its_run(monkeypatch):
    """Of a law it is there at once, unless it has very many nodes and no closed form."""
    study = Study(data="circles", denoiser="Neural", **SMALL)
    soon, whole = explore(study, soon=True), explore(study)
    assert soon.pending and soon.flow is None and soon.notes[-1] == soon.reason == COMING
    assert soon.portrait["flow"].identical(whole.portrait["flow"])
    assert not soon.portrait["log_density"].size
    shares: list[float] = []
    late = refined(study, soon.run, lambda stage, share: shares.append(share))
    assert late.flow.identical(whole.flow) and late.notes(soon.run) == whole.notes
    assert np.array_equal(late.density, whole.portrait["log_density"])
    assert shares == sorted(shares) and shares[0] == 0.0 and len(shares) > 10
    assert not explore(Study(**SMALL), soon=True).pending
    monkeypatch.setattr(sys.modules["workbench.studies.explore"], "MANY", 6)
    long = explore(Study(**SMALL), soon=True)
    assert long.pending and long.portrait["log_density"].size, "its density is known"
    assert not explore(Study(**SMALL)).pending
    gaussian = Study(data="gaussian", denoiser="Gaussian", **SMALL)
    assert not explore(gaussian, soon=True).pending


def test_a_long_run_is_portrayed_at_some_of_its_nodes():
    grid = {"name": "log_snr", "steps": 400}
    shown = explore(Study(data="ring", **SMALL | {"grid": grid, "seeds": {"count": 2}}))
    steps = shown.portrait["step"].values
    assert len(steps) <= PORTRAYED and shown.run.sizes["time"] == 401
    assert steps[:2].tolist() == [0, 1] and steps[-2:].tolist() == [399, 400]
    # Spread over log rho: no gap that is much wider than an even share.
    gaps = -np.diff(np.log(shown.portrait["rho"].values))
    assert (gaps > 0).all() and gaps.max() < 3 * gaps.sum() / PORTRAYED


def test_a_stochastic_run_is_noted_and_images_have_no_portrait():
    sampler = {"name": "DDIM", "eta": 0.5}
    shown = explore(Study(data="digits", denoiser="Gaussian", sampler=sampler, **SMALL))
    assert shown.portrait is None and shown.flow is not None
    assert "fresh noise" in shown.notes[-1] and "has rank 61" in shown.notes[0]
    assert shown.title.startswith("DDIM (eta 0.5), 5 steps")


def test_what_report_raises_stops_it():
    def stop(stage, fraction):
        if stage == "exact flow":
            raise InterruptedError("no longer wanted")

    with pytest.raises(InterruptedError, match="no longer wanted"):
        explore(Study(**SMALL), stop)


def test_more_numbers_than_can_be_looked_at_are_refused_before_the_run():
    """At the count named in the sentence it would run; one more is too many."""
    grid = {"name": "log_snr", "steps": 999}
    with pytest.raises(StudyError) as caught:
        explore(Study(data="digits", grid=grid, seeds={"count": 100_000}))
    most = MOST_NUMBERS // (1000 * 64 * 2)
    assert caught.value.problems["seeds.count"] == (
        f"seeds.count was 100000; with 1000 recorded times it must be at most {most} here. "
        "Larger runs: workbench run study.yaml."
    )

    class Allowed(Exception):
        pass

    def stop(stage, fraction):
        if stage == "sampling":
            raise Allowed

    with pytest.raises(Allowed):
        explore(Study(data="digits", grid=grid, seeds={"count": most}), stop)
    with pytest.raises(StudyError):
        explore(Study(data="digits", grid=grid, seeds={"count": most + 1}), stop)
