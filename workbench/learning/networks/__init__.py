"""Networks that are trained here: raw functions F(x, noise, labels) inside EDM's scalings."""

from workbench.learning.networks.base import Network
