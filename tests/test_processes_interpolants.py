"""The paths' closed forms against 40-digit arithmetic, and both ends, where formulas break."""

import math
from dataclasses import fields

import mpmath
import numpy as np
import pytest
import torch
from helpers import log_uniform, uniform

from workbench.params import declared
from workbench.processes.interpolants import (
    PATHS,
    EncoderDecoder,
    Linear,
    Mirror,
    Trigonometric,
)

mpmath.mp.dps = 40

GAMMAS = {
    "none": lambda t: mpmath.mpf(0),
    "brownian": lambda t: mpmath.sqrt(t * (1 - t)),
    "quadratic": lambda t: t * (1 - t),
    "sine-squared": lambda t: mpmath.sin(mpmath.pi * t) ** 2,
}
#: The largest scale a trigonometric path may have.
MOST = {"none": 1e6, "brownian": 4.0, "quadratic": 16.0, "sine-squared": 1.0}
CASES = [(name, gamma) for name, kind in PATHS.items() for gamma in declared(kind)["gamma"].choices]


def make(name: str, gamma: str, generator):
    most = MOST[gamma] if name == "Trigonometric" else 5.0
    return PATHS[name](gamma, uniform(generator, 0.1, 1.0) * most)


def exact(path):
    """a(t), b(t) and gamma(t) of a path in 40 digits, written down on their own."""
    shape, k = GAMMAS[path.gamma], mpmath.sqrt(mpmath.mpf(path.scale))

    def gamma(t):
        return k * shape(t)

    def root(t):
        return mpmath.sqrt(1 - gamma(t) ** 2)

    half = mpmath.pi / 2
    a, b = {
        "Linear": (lambda t: 1 - t, lambda t: t),
        "Trigonometric": (
            lambda t: root(t) * mpmath.cos(half * t),
            lambda t: root(t) * mpmath.sin(half * t),
        ),
        "EncoderDecoder": (
            lambda t: mpmath.cos(mpmath.pi * t) ** 2 if t <= 0.5 else mpmath.mpf(0),
            lambda t: mpmath.cos(mpmath.pi * t) ** 2 if t > 0.5 else mpmath.mpf(0),
        ),
        "Mirror": (lambda t: mpmath.mpf(0), lambda t: mpmath.mpf(1)),
    }[type(path).__name__]
    return a, b, gamma


def times(generator) -> list[float]:
    """Times near both ends, about the middle, and between."""
    near = [log_uniform(generator, 1e-7, 1e-3) for _ in range(4)]
    middle = [0.5 + sign * log_uniform(generator, 1e-9, 1e-3) for sign in (-1, 1)]
    return [
        *near,
        *middle,
        *(uniform(generator, 0.01, 0.99) for _ in range(4)),
        *(1 - u for u in near),
    ]


@pytest.mark.parametrize(("name", "gamma"), CASES)
def test_coefficients_and_derivatives_equal_those_of_40_digits(name, gamma, generator):
    path = make(name, gamma, generator)
    a, b, g = exact(path)
    for t in times(generator):
        at, c = mpmath.mpf(t), path(t)
        truth = {"a": a(at), "b": b(at), "gamma": g(at)}
        truth |= {f"d_{key}": mpmath.diff(f, at) for key, f in (("a", a), ("b", b), ("gamma", g))}
        truth |= {"gamma2": g(at) ** 2, "d_gamma2": mpmath.diff(lambda u: g(u) ** 2, at)}
        truth |= {"gamma_d_gamma": truth["d_gamma2"] / 2}
        for key, value in truth.items():
            # Values, never negative, keep their relative accuracy down to zero; slopes cross it.
            absolute = 0.0 if key in ("a", "b", "gamma", "gamma2") else 1e-13
            got = getattr(c, key)
            assert isinstance(got, float)
            assert got == pytest.approx(float(value), rel=2e-13, abs=absolute), (key, t)


@pytest.mark.parametrize(("name", "gamma"), CASES)
def test_both_ends_are_the_densities_themselves(name, gamma, generator):
    """At t = 0 the source, at t = 1 the target and no remainder (a mirror: twice the target)."""
    path = make(name, gamma, generator)
    for t, weights in ((0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))):
        c = path(t)
        assert (c.a, c.b) == ((0.0, 1.0) if name == "Mirror" else weights)
        assert c.gamma == 0.0 and c.gamma2 == 0.0
        finite = [c.d_a, c.d_b, c.gamma_d_gamma, c.d_gamma2]
        assert all(map(math.isfinite, finite))
        if gamma == "brownian":
            assert c.d_gamma == (math.inf if t == 0 else -math.inf)
            assert c.gamma_d_gamma == pytest.approx((0.5 - t) * path.scale, rel=1e-15)
        else:
            assert math.isfinite(c.d_gamma)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_trigonometric_path_keeps_unit_variance(gamma, generator):
    path = make("Trigonometric", gamma, generator)
    c = path(torch.rand(1000, generator=generator, dtype=torch.float64))
    total = c.a.square() + c.b.square() + c.gamma2
    assert (total - 1).abs().max() < 1e-15
    rate = c.a * c.d_a + c.b * c.d_b + c.gamma_d_gamma
    assert rate.abs().max() < 1e-14


@pytest.mark.parametrize("gamma", ["brownian", "quadratic", "sine-squared"])
def test_a_trigonometric_path_through_pure_noise_has_its_slopes_from_the_left(gamma, generator):
    path = Trigonometric(gamma, MOST[gamma])
    middle, before, after = path(0.5), path(0.5 - 1e-9), path(0.5 + 1e-9)
    assert (middle.a, middle.b, middle.gamma) == (0.0, 0.0, 1.0)
    for key in ("d_a", "d_b"):
        assert getattr(middle, key) == pytest.approx(getattr(before, key), rel=1e-7)
        assert getattr(after, key) == pytest.approx(-getattr(before, key), rel=1e-7)
    assert any("t = 0.5" in note for note in path.notes)
    assert Trigonometric(gamma, 0.5 * MOST[gamma]).notes == ()


def test_an_encoder_decoder_is_pure_noise_in_the_middle():
    c = EncoderDecoder()(0.5)
    assert (c.a, c.b, c.gamma, c.d_a, c.d_b, c.gamma_d_gamma) == (0, 0, 1, 0, 0, 0)


@pytest.mark.parametrize(("name", "gamma"), CASES)
def test_floats_and_tensors_agree_in_every_dtype(name, gamma, generator):
    path = make(name, gamma, generator)
    t = torch.tensor([[0.0, uniform(generator, 0, 0.5)], [uniform(generator, 0.5, 1), 1.0]])
    for dtype in (torch.float64, torch.float32, torch.float16):
        given = t.to(dtype)
        many, double = path(given), path(given.double())
        for field in fields(many):
            got, truth = getattr(many, field.name), getattr(double, field.name)
            assert got.shape == (2, 2) and got.dtype == dtype
            assert torch.equal(got, truth.to(dtype))
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                one = getattr(path(given[i, j].item()), field.name)
                assert truth[i, j].item() == pytest.approx(one, rel=1e-15, abs=1e-300)


def test_times_that_rounding_carries_past_the_end_are_the_end():
    """A sum of a thousand steps of 0.001."""
    assert Linear()(sum([0.001] * 1000) + 1e-13) == Linear()(1.0)


@pytest.mark.parametrize("bad", [-1e-9, 1.01, math.nan, -math.inf])
def test_times_outside_are_refused(bad):
    for t in (bad, torch.tensor([0.5, bad], dtype=torch.float64)):
        with pytest.raises(ValueError) as caught:
            Linear()(t)
        sentence = str(caught.value)
        assert (
            f"t was {bad:g}" in sentence and "0 (the source density) to 1 (the target)" in sentence
        )


@pytest.mark.parametrize("bad", ["soon", None, [0.1, 0.2], np.array([0.1, 0.2])])
def test_what_is_not_a_number_or_a_tensor_is_refused(bad):
    with pytest.raises(TypeError, match=r"t was .* must be a number or a tensor"):
        Linear()(bad)


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: Linear("white"), ["Linear: gamma was 'white'", "'none', 'brownian'"]),
        (lambda: Linear(scale=0.0), ["Linear: scale was 0.0", "greater than 0"]),
        (lambda: Mirror("none"), ["Mirror: gamma was 'none'", "'brownian'"]),
        (lambda: EncoderDecoder("none"), ["EncoderDecoder: gamma was 'none'", "'sine-squared'"]),
        (
            lambda: Trigonometric("brownian", 9.0),
            ["scale was 9.0", "gamma reaches 1.5", "With 'brownian' scale is at most 4."],
        ),
        (lambda: Trigonometric("sine-squared", 1.1), ["scale is at most 1."]),
    ],
)
def test_parameters_out_of_range_are_named(make, pieces):
    with pytest.raises(ValueError) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)


def test_every_path_has_a_default_and_says_what_to_know():
    for name, kind in PATHS.items():
        assert kind.__name__ == name and repr(kind()).startswith(f"{name}(gamma=")
    assert "source is not used" in Mirror().notes[0]
    assert Linear().notes == EncoderDecoder().notes == ()
