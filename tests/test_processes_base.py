"""What holds for every process: floats and tensors, dtypes, the range of t and rho."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from helpers import PROCESSES, log_uniform, random_process, uniform

import workbench as wb


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
                assert got[i, j].item() == pytest.approx(value, rel=1e-15, abs=0)
            assert many.log_snr[i, j].item() == pytest.approx(one.log_snr, rel=1e-14, abs=1e-15)


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
    levels = torch.tensor([0.5, 1.5], dtype=dtype)
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
    largest = process(process.t_max).rho
    if largest < math.inf:
        levels.append(1.01 * largest)
    for bad in levels:
        with pytest.raises(ValueError) as caught:
            process.time_of(bad)
        assert f"rho was {bad:g}" in str(caught.value)
        assert f"rho from 0 to {largest:g}" in str(caught.value)


@pytest.mark.parametrize("bad", ["soon", None, [0.1, 0.2], np.array([0.1, 0.2]), [0.1, [0.2]]])
def test_what_is_not_a_number_or_a_tensor_is_refused(bad):
    with pytest.raises(TypeError, match=r"t was .* must be a number or a tensor"):
        wb.VP()(bad)


def test_numbers_of_any_kind_are_times():
    process, truth = wb.VP(), wb.VP()(1.0)
    for t in (1, np.float64(1.0), np.float32(1.0), np.array(1.0)):
        assert process(t) == truth
