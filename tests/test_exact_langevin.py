"""The stationary variance of a Langevin corrector against its recursion."""

import pytest
import torch
from helpers import log_uniform

from workbench.exact.langevin import langevin_variance


def test_langevin_settles_there(generator):
    """The recursion v -> (1 - e/l)^2 v + 2 e, iterated."""
    level = torch.tensor([log_uniform(generator, 0.1, 3) for _ in range(4)]).double()
    step = 0.3 * level.min().item()
    v = torch.zeros(4).double()
    for _ in range(3000):
        v = (1 - step / level) ** 2 * v + 2 * step
    torch.testing.assert_close(langevin_variance(level, step), v, rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="the corrector diverges"):
        langevin_variance(level, 2 * level.min().item())
