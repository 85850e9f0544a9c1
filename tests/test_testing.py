"""Everything registered passes the conformance kit; broken things do not, and are told why."""

from dataclasses import dataclass

import pytest
import torch

import workbench as wb
from workbench.sampling import Combine, Evaluate
from workbench.sampling.methods.base import Sampler
from workbench.testing import ConformanceError, check_denoiser, check_process, check_sampler


@pytest.mark.parametrize("name", wb.PROCESSES)
def test_every_process(name):
    check_process(wb.PROCESSES[name]())


@pytest.mark.parametrize("data", wb.DATASETS)
@pytest.mark.parametrize("name", wb.DENOISERS)
def test_every_denoiser(name, data):
    check_denoiser(wb.DENOISERS[name].from_data(wb.DATASETS[data]()))


@pytest.mark.parametrize("name", wb.SAMPLERS)
def test_every_sampler(name):
    check_sampler(wb.SAMPLERS[name]())


@pytest.mark.parametrize(
    "sampler",
    [wb.Euler(axis="t"), wb.Heun(axis="t"), wb.DDIM(eta=1.0), wb.EulerMaruyama(eta=2.0)],
    ids=repr,
)
def test_other_parameters(sampler):
    check_sampler(sampler)


def broken_laws(error) -> set[str]:
    return {law.name for law in error.value.report.laws if not law.holds}


def test_a_wrong_derivative_is_found():
    """A factor of two in d_sigma, the kind of slip that ships for years."""

    @dataclass(frozen=True)
    class Wrong(wb.VP):
        def at(self, t):
            c = super().at(t)
            return type(c)(**{**vars(c), "d_sigma": 2 * c.d_sigma})

    with pytest.raises(ConformanceError, match="BROKEN d_sigma") as error:
        check_process(Wrong())
    assert "d_sigma is the derivative of sigma" in broken_laws(error)


def test_a_denoiser_that_ignores_alpha_is_found():
    class Wrong(wb.Gaussian):
        def _denoise(self, x, alpha, sigma):
            return super()._denoise(x, 1.0, sigma)

    with pytest.raises(ConformanceError) as error:
        check_denoiser(Wrong(torch.zeros(2).double(), 1.0))
    assert {"D(cx, c alpha, c sigma) = D(x, alpha, sigma)"} <= broken_laws(error)


def test_a_biased_score_is_found():
    """A score 5 % too large obeys homogeneity, but not Tweedie."""

    class Wrong(wb.Gaussian):
        def _denoise(self, x, alpha, sigma):
            kept = super()._denoise(x, alpha, sigma)
            return kept + 0.05 * alpha * (alpha * kept - x) / (alpha + sigma) ** 2

    with pytest.raises(ConformanceError) as error:
        check_denoiser(Wrong(torch.zeros(2).double(), 1.0))
    assert "Tweedie: score = gradient of the log-density [1/sigma]" in broken_laws(error)


def test_a_sampler_of_lower_order_is_found():
    """Heun's rows with one wrong symbol: converges, but at order one."""

    @dataclass(frozen=True)
    class Wrong(Sampler):
        """Says 2."""

        order = 2
        stochastic = False

        def evaluations(self, a, b):
            return 2

        def rows(self, process, a, b):
            half = b.sigma / a.sigma
            mid = (Evaluate("D", "x", a), Combine("y", {"x": half, "D": b.alpha - a.alpha * half}))
            return (*mid, Evaluate("D", "y", b), Combine("x", {"y": 1.0}))

    with pytest.raises(ConformanceError) as error:
        check_sampler(Wrong())
    assert broken_laws(error) == {"order 2 (shortfall)"}


def test_a_wrong_count_of_evaluations_is_found():
    @dataclass(frozen=True)
    class Wrong(wb.Heun):
        def evaluations(self, a, b):
            return 1

    with pytest.raises(ConformanceError, match="nfe"):
        check_sampler(Wrong())


def test_the_report_reads_law_by_law():
    text = str(check_process(wb.EDM()))
    assert text.splitlines()[0] == repr(wb.EDM())
    assert "ok     rho = sigma / alpha" in text
