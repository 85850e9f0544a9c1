"""How we walk back: one file per family of methods."""

from workbench.sampling.methods.base import Sampler
from workbench.sampling.methods.exponential import DDIM
from workbench.sampling.methods.runge_kutta import Euler, Heun
from workbench.sampling.methods.stochastic import EulerMaruyama

__all__ = ["DDIM", "SAMPLERS", "Euler", "EulerMaruyama", "Heun", "Sampler"]

#: Every sampler by name. A new one is one class and one entry here.
SAMPLERS: dict[str, type[Sampler]] = {
    "Euler": Euler,
    "Heun": Heun,
    "DDIM": DDIM,
    "EulerMaruyama": EulerMaruyama,
}
