"""How data becomes noise: alpha, sigma and their derivatives, in closed form."""

from workbench.processes.base import Coefficients, Process
from workbench.processes.scalar import EDM, VP, RectifiedFlow

__all__ = ["EDM", "PROCESSES", "VP", "Coefficients", "Process", "RectifiedFlow"]

#: Every process by name. A new one is one class and one entry here.
PROCESSES: dict[str, type[Process]] = {
    "VP": VP,
    "EDM": EDM,
    "RectifiedFlow": RectifiedFlow,
}
