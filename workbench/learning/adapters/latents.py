r"""Latent models: states are latents, and a VAE leads to images and back.

.. math:: z = (E(x) - \text{shift})\,\text{scale},\qquad x = D(z/\text{scale} + \text{shift})

A network without them is asked for data of another size: a factor is seen by the guard as a shift
of the noise level, and a missing shift as a wrong mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.denoisers.checkpoints import CheckpointError


class Latents:
    """The latents of a VAE of diffusers.

    Args:
        vae: a pipeline's ``vae``: with ``encode``, ``decode`` and a ``config``.

    Attributes:
        scale, shift: of its configuration; 1 and 0 where it says none.

    Raises:
        CheckpointError: something that has no encoder and decoder.
    """

    def __init__(self, vae: Any) -> None:
        if not all(callable(getattr(vae, name, None)) for name in ("encode", "decode")):
            raise CheckpointError(
                f"{type(vae).__name__} has no encode and decode; give the pipeline's vae."
            )
        self.vae = vae.eval().requires_grad_(False)
        self.scale = float(vae.config.get("scaling_factor") or 1.0)
        self.shift = float(vae.config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (n, channels, height, width) of images, at the mean of the encoder's law."""
        found = self.vae.encode(images)
        law = getattr(found, "latent_dist", None)
        return ((law.mode() if law is not None else found.latents) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents."""
        return self.vae.decode(latents / self.scale + self.shift).sample
