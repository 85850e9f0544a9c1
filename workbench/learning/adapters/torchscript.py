"""TorchScript files as denoisers: a program of torch's own language, with a card beside it.

Its tensors are read by torch's own reader, which builds nothing but tensors and the classes of the
program itself; no Python is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.denoisers import Neural
from workbench.denoisers.checkpoints import CheckpointError
from workbench.learning.adapters.card import with_card

__all__ = ["from_torchscript"]


def from_torchscript(
    path: str | Path, card: str | Path | Mapping[str, Any] | None = None, **options: Any
) -> Neural:
    """A TorchScript file as a denoiser.

    Args:
        path: the file that ``torch.jit.save`` wrote.
        card: see :mod:`workbench.learning.adapters.card`; None: the JSON file of the same name.
        options: of :func:`workbench.learning.adapters.card.with_card`.

    Raises:
        CheckpointError: a file that is none, or a card that cannot be used.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"{path} is no TorchScript file ({reason}). Write one where you trust the network: "
            "torch.jit.save(torch.jit.script(module), 'network.pt')."
        ) from None
    for weight in module.parameters():
        weight.requires_grad_(False)
    return with_card(module, path.with_suffix(".json") if card is None else card, **options)
