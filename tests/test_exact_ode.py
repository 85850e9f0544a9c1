"""The integrator against scipy's, and one sample against its neighbours."""

import math

import pytest
import torch
from helpers import normals, relative
from scipy.integrate import solve_ivp

from workbench.exact.ode import integrate


def pendulum(y, t):
    """A driven pendulum: no two samples are alike in pace."""
    return torch.stack([y[:, 1], -y[:, 2] * y[:, 0].sin() + t.cos(), torch.zeros_like(t)], 1)


def swings(generator, n=3) -> torch.Tensor:
    pace = 10 ** (2 * torch.rand(n, generator=generator, dtype=torch.float64))
    return torch.cat([normals(generator, n, 2), pace[:, None]], 1)


@pytest.mark.parametrize(("start", "end"), [(0.3, 4.0), (2.0, -1.0)])
def test_the_integrator_is_scipys_dop853(generator, start, end):
    y = swings(generator)
    ours, asked = integrate(pendulum, y, start, end, 1e-11, 1e-13)
    most = 0
    for i, one in enumerate(y):
        solved = solve_ivp(
            lambda t, s: (s[1], -s[2] * math.sin(s[0]) + math.cos(t), 0.0),
            (start, end),
            one.numpy(),
            "DOP853",
            rtol=1e-12,
            atol=1e-14,
        )
        torch.testing.assert_close(ours[i], torch.from_numpy(solved.y[:, -1]), rtol=1e-7, atol=1e-7)
        most += solved.nfev
    assert asked < most  # at ten times their tolerance, less work than theirs


def test_there_and_back(generator):
    y = swings(generator)
    there, _ = integrate(pendulum, y, 0.0, 2.0, 1e-12, 1e-13)
    back, _ = integrate(pendulum, there, 2.0, 0.0, 1e-12, 1e-13)
    torch.testing.assert_close(back, y, rtol=1e-9, atol=1e-7)


def test_a_sample_does_not_depend_on_its_neighbours(generator):
    """Springs that harden, of unlike pace: rounding is all that another batch changes."""

    def spring(y, t):
        return torch.stack([y[:, 1], -y[:, 2] * y[:, 0] ** 3 + t, torch.zeros_like(t)], 1)

    y = swings(generator)
    together, asked = integrate(spring, y, 0.0, 2.0)
    apart = [integrate(spring, one[None], 0.0, 2.0) for one in y]
    assert relative(together, torch.cat([state for state, _ in apart])) < 1e-12
    assert asked == sum(count for _, count in apart)


def test_many_still_elements_do_not_hide_one(generator):
    """With groups, the error of the one is the same however many others there are."""

    def field(y, t):
        moving = (20 * t).cos()[:, None] * y[:, -1:]
        return torch.cat([torch.zeros_like(y[:, :-1]), moving], 1)

    truth = math.exp(math.sin(20.0) / 20)
    for others in (1, 1000):
        y, _ = integrate(field, torch.ones(1, others + 1).double(), 0.0, 1.0, groups=(others, 1))
        assert y[0, -1].item() == pytest.approx(truth, rel=1e-9)


def test_a_singular_field_is_an_error_with_a_sentence():
    y = torch.ones(1, 1).double()
    with pytest.raises((ValueError, RuntimeError), match=r"at t = 1|rounding at t = (1|0\.99)"):
        integrate(lambda y, t: y * y, y, 0.0, 2.0)
    with pytest.raises(ValueError, match=r"rtol was 1e-20"):
        integrate(lambda y, t: y, y, 0.0, 1.0, rtol=1e-20)
    with pytest.raises(ValueError, match=r"not finite at t = 0"):
        integrate(lambda y, t: y / t[:, None], y, 0.0, 1.0)
