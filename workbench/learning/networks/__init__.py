"""Networks that are trained here: raw functions F(x, noise, labels) inside EDM's scalings."""

from workbench.learning.networks.base import Network
from workbench.registry import View

#: Every network by name.
NETWORKS = View("network")
