"""Measurements: functions from a diffusion or a trajectory to an ``xarray.Dataset``."""

from workbench.lenses.base import Lens, Subject
from workbench.lenses.distances import Flow
from workbench.lenses.emergence import Emergence
from workbench.lenses.output import Output
from workbench.lenses.teleport import Teleportation

__all__ = ["LENSES", "Emergence", "Flow", "Lens", "Output", "Subject", "Teleportation"]

#: What a study can have measured, by name. A new one is one class and one entry here.
LENSES: dict[str, type[Lens]] = {
    "flow": Flow,
    "emergence": Emergence,
    "teleportation": Teleportation,
    "output": Output,
}
