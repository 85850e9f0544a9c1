"""How we walk back: one file per family of methods."""

from workbench.sampling.methods.base import Sampler
from workbench.sampling.methods.exponential import DDIM
from workbench.sampling.methods.runge_kutta import RK4, Euler, Heun, Midpoint
from workbench.sampling.methods.stochastic import EDMStochastic, EulerMaruyama, ExponentialSDE

__all__ = [
    "DDIM",
    "RK4",
    "SAMPLERS",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "ExponentialSDE",
    "Heun",
    "Midpoint",
    "Sampler",
]

#: Every sampler by name. A new one is one class and one entry here.
SAMPLERS: dict[str, type[Sampler]] = {
    "Euler": Euler,
    "Heun": Heun,
    "Midpoint": Midpoint,
    "RK4": RK4,
    "DDIM": DDIM,
    "EulerMaruyama": EulerMaruyama,
    "ExponentialSDE": ExponentialSDE,
    "EDMStochastic": EDMStochastic,
}
