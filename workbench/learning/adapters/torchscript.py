"""TorchScript files as denoisers: a program of torch's own language, with a card beside it.

Its tensors are read by torch's own reader, which builds nothing but tensors and the classes of the
program itself; no Python is run. But the program may write files, torch.save being a part of the
language: it is for those whom you trust. :func:`from_torchscript` trusts its caller; a study trusts
nobody, unless the environment says ``WORKBENCH_TORCHSCRIPT=1``, and a page never does.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.denoisers import Neural
from workbench.denoisers.checkpoints import CheckpointError
from workbench.learning.adapters.card import packed, with_card
from workbench.registry import register

#: The variable of the environment that lets studies open such files; the server takes it away.
TRUSTED = "WORKBENCH_TORCHSCRIPT"


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
    module = _loaded(str(path), path)
    return with_card(module, path.with_suffix(".json") if card is None else card, **options)


@register(kind="format", name="torchscript")
def carded(path: Path, label: int | None = None, guidance: float = 0.0) -> Neural | None:
    """A TorchScript file and its card, packed as a zip file; opened where it is trusted."""
    found = packed(path, ".pt")
    if found is None and not _is_program(path):
        return None
    if os.environ.get(TRUSTED) != "1":
        raise CheckpointError(
            "the network is a TorchScript program, which may write files: a page never opens one, "
            f"a study on your own command line does where you set {TRUSTED}=1. ONNX is data and "
            "opens anywhere: torch.onnx.export."
        )
    if found is None:
        return from_torchscript(path, label=label, guidance=guidance)
    content, card = found
    return with_card(_loaded(io.BytesIO(content), path), card, label, guidance)


def _is_program(path: Path) -> bool:
    """Whether a file is TorchScript by its looks: a zip file with constants and code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(one.endswith("/constants.pkl") for one in archive.namelist())


def _loaded(source: str | io.BytesIO, path: Path) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(source, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"{path} is no TorchScript file ({reason}). Write one where you trust the network: "
            "torch.jit.save(torch.jit.script(module), 'network.pt')."
        ) from None
    for weight in module.parameters():
        weight.requires_grad_(False)
    return module
