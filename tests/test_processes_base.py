"""What holds for every process: floats and tensors, dtypes, the range of t and rho; the kit."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from helpers import PROCESSES, log_uniform, random_process, uniform

import workbench as wb
from workbench import processes
from workbench.testing import ConformanceError, check_process


@pytest.mark.parametrize("name", PROCESSES)
def test_floats_and_tensors_agree(name, generator):
    process = random_process(name, generator)
    times = [[uniform(generator, 0.01, 0.99) * process.t_max for _ in range(3)] for _ in range(2)]
    many = process(torch.tensor(times, dtype=torch.float64))
    for i in range(2):
        for j in range(3):
            one = process(times[i][j])
            for field in fields(one):
                got, value = getattr(many, field.name), getattr(one, field.name)
                assert got.shape == (2, 3)
                assert got[i, j].item() == pytest.approx(value, rel=1e-14, abs=0)
            assert many.log_snr[i, j].item() == pytest.approx(one.log_snr, rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("name", PROCESSES)
def test_tensors_keep_their_dtype_but_are_computed_in_float64(name, dtype):
    process = PROCESSES[name]
    t = torch.tensor([0.37 * process.t_max, process.t_max]).to(dtype)
    truth = process(t.double())
    kept = dtype if dtype.is_floating_point else torch.float64
    for field in fields(truth):
        got = getattr(process(t), field.name)
        assert got.dtype == kept
        assert torch.equal(got, getattr(truth, field.name).to(kept)), field.name
    levels = torch.tensor([1.5, 2.5]).to(dtype)
    assert torch.equal(process.time_of(levels), process.time_of(levels.double()).to(kept))


def test_the_end_of_the_range_survives_rounding_to_float32(generator):
    """A time rounded up in float32 is taken for the end; in float64 it is a mistake."""
    rounded = torch.tensor([uniform(generator, 50, 100)], dtype=torch.float32)
    process = wb.EDM(sigma_max=rounded.item() * (1 - 1e-8))
    assert process(rounded.double() * (1 - 1e-8)).sigma.item() == process.sigma_max
    assert torch.equal(process(rounded).sigma, rounded)
    with pytest.raises(ValueError, match="t was"):
        process(rounded.double())


def test_a_time_off_the_end_by_rounding_is_the_end():
    """Not a hair beyond it, where alpha would be negative."""
    c = wb.RectifiedFlow()(1 + 5e-13)
    assert (c.alpha, c.sigma) == (0.0, 1.0)


def test_a_level_off_the_least_by_rounding_is_the_least():
    process = processes.VE(sigma_min=0.3)
    assert process.time_of(0.3 * (1 - 5e-13)) == 0.0
    assert process.time_of(torch.tensor([0.3 * (1 - 5e-8)])).tolist() == [0.0]


@pytest.mark.parametrize("name", PROCESSES)
def test_times_and_levels_outside_the_range_are_refused(name, generator):
    process = PROCESSES[name]
    beyond = process.t_max * (1 + log_uniform(generator, 1e-9, 1.0))
    inside = 0.5 * process.t_max
    for bad in (-1e-9, beyond, math.nan, -math.inf):
        for t in (bad, torch.tensor([inside, bad], dtype=torch.float64)):
            with pytest.raises(ValueError) as caught:
                process(t)
            sentence = str(caught.value)
            assert f"t was {bad:g}" in sentence and repr(process) in sentence
            assert f"t from 0 to {process.t_max:g}" in sentence
    levels = [-1e-9, math.nan]
    least, largest = process(0.0).rho, process(process.t_max).rho
    if least > 0:
        levels.append(0.99 * least)
    if largest < math.inf:
        levels.append(1.01 * largest)
    for bad in levels:
        with pytest.raises(ValueError) as caught:
            process.time_of(bad)
        assert f"rho was {bad:g}" in str(caught.value)
        assert f"rho from {least:g} to {largest:g}" in str(caught.value)


@pytest.mark.parametrize("bad", ["soon", None, [0.1, 0.2], np.array([0.1, 0.2]), [0.1, [0.2]]])
def test_what_is_not_a_number_or_a_tensor_is_refused(bad):
    with pytest.raises(TypeError, match=r"t was .* must be a number or a tensor"):
        wb.VP()(bad)


def test_numbers_of_any_kind_are_times():
    process, truth = wb.VP(), wb.VP()(1.0)
    for t in (1, np.float64(1.0), np.float32(1.0), np.array(1.0)):
        assert process(t) == truth


# ---- the conformance kit -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_with_other_parameters_pass_the_kit(name, generator):
    check_process(random_process(name, generator))


#: What is done to VP's coefficients, and the law that says so.
SLIPS = {
    "half a drift": (lambda c, t: {"f": 0.5 * c.f}, "f = d_alpha / alpha"),
    "alpha's slope": (lambda c, t: {"d_alpha": 1.001 * c.d_alpha}, "d_alpha is the derivative"),
    "sigma's slope, a billionth": (
        lambda c, t: {"d_sigma": (1 + 1e-9) * c.d_sigma},
        "d_sigma is the derivative of sigma",
    ),
    "g for g2": (lambda c, t: {"g2": c.g2.sqrt()}, "g2 = sigma^2 d(log rho^2)/dt"),
    "rho squared": (lambda c, t: {"rho": c.rho.square()}, "rho = sigma / alpha"),
    "nan at the end": (lambda c, t: {"g2": c.g2 + 0 / (1 - t)}, "nothing is nan"),
    "infinite drift": (lambda c, t: {"f": c.f - 1 / (1 - t)}, "only at alpha = 0"),
    "a negative alpha": (lambda c, t: {"alpha": c.alpha - 0.2}, "alpha is finite and non-negative"),
    "a jump": (lambda c, t: {"sigma": c.sigma + (t > 0)}, "sigma is continuous at both ends"),
    "rho upside down": (lambda c, t: {"rho": 1 / c.rho}, "rho increases with t"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_named_with_its_amount_and_place(slip):
    change, law = SLIPS[slip]

    @dataclass(frozen=True)
    class Wrong(processes.VP):
        def at(self, t):
            c = super().at(t)
            return replace(c, **change(c, t))

    with pytest.raises(ConformanceError) as caught:
        check_process(Wrong())
    broken = [found for found in caught.value.report.laws if not found.holds]
    assert any(law in found.name for found in broken), str(caught.value)
    assert all(found.deviation > found.allowed or math.isnan(found.deviation) for found in broken)
    assert all(found.where for found in broken)


def test_a_wrong_inverse_is_found():
    @dataclass(frozen=True)
    class Wrong(processes.Cosine):
        def inverse(self, rho):
            return super().inverse(rho) * (1 + 1e-9)

    with pytest.raises(ConformanceError, match=r"BROKEN time_of\(rho\(t\)\) = t: off by 1e-09"):
        check_process(Wrong())


def test_an_inverse_that_cancels_is_found():
    """1 - phi/k is right in exact arithmetic; at small rho nothing is left of it."""

    @dataclass(frozen=True)
    class Wrong(processes.Cosine):
        def inverse(self, rho):
            alpha = 1 / torch.hypot(torch.ones_like(rho), rho)
            return 1 - torch.asin(alpha * math.sin(self._k)) / self._k

    with pytest.raises(ConformanceError, match=r"BROKEN rho\(time_of\(rho\)\) = rho"):
        check_process(Wrong())


def test_levels_below_the_least_that_are_given_a_time_are_found():
    @dataclass(frozen=True)
    class Wrong(processes.VE):
        def time_of(self, rho):
            return self.inverse(torch.as_tensor(rho, dtype=torch.float64)).clamp(0, 1)

    with pytest.raises(ConformanceError, match="BROKEN time_of at the ends of rho"):
        check_process(Wrong())


def test_arithmetic_in_float32_is_found():
    @dataclass(frozen=True)
    class Wrong(processes.VP):
        def __call__(self, t):
            c = super().__call__(t)
            single = isinstance(t, torch.Tensor) and t.dtype == torch.float32
            return c.map(lambda v: v * (1 + 1e-7)) if single else c

    with pytest.raises(ConformanceError, match="BROKEN float32 times give the float64 results"):
        check_process(Wrong())
