"""Cards: what a network is, as JSON beside its weights, for formats that do not say it.

.. code-block:: json

    {"predicts": "noise", "process": {"name": "VP", "beta_max": 20.0}, "event_shape": [1, 28, 28]}

A study names such a network by its file; both are kept as one zip file.

``predicts`` and ``process`` as of :class:`workbench.Neural`; ``sigma_data`` and ``centre`` (a
number) of EDM's scalings; ``times`` of discrete ones, as times of the process; ``classes``, the
number of classes of a third argument, of which the one behind the last stands for none.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench import registry
from workbench.denoisers import Neural
from workbench.denoisers.checkpoints import CheckpointError, put_weights, read_tensors
from workbench.denoisers.guard import guard
from workbench.processes import Process

#: Most bytes of a network that is packed with its card.
LARGEST = 2**32

#: What a card may say.
KEYS = {"predicts", "process", "event_shape", "sigma_data", "centre", "times", "whole", "classes"}


def read_card(path: str | Path) -> dict[str, Any]:
    """A card of a JSON file.

    Raises:
        CheckpointError: no JSON object.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the card {path} cannot be read: {error.strerror or error}. A card is a JSON file "
            "beside the weights that says what the network predicts, under which process."
        ) from None
    return _said(content, f"the card {path}")


def _said(content: bytes, where: str) -> dict[str, Any]:
    try:
        card = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is no JSON: {error}.") from None
    if not isinstance(card, dict):
        raise CheckpointError(f"{where} must be a JSON object, as in {{...}}.")
    return card


def packed(path: Path, suffix: str) -> tuple[bytes, dict[str, Any]] | None:
    """The network of a zip file that holds one and its card, and the card.

    Returns:
        None for another file: not a zip file of one file with this suffix and one of JSON.

    Raises:
        CheckpointError: a card that is no JSON object; a network that is too large, or damaged.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {Path(one.filename).suffix: one for one in archive.infolist()}
            if len(archive.infolist()) != 2 or parts.keys() != {suffix, ".json"}:
                return None
            if sum(one.file_size for one in parts.values()) > LARGEST:
                raise CheckpointError(f"{path} unpacks to more than {LARGEST / 1e9:.0f} GB.")
            card, content = archive.read(parts[".json"]), archive.read(parts[suffix])
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be unpacked: {error}.") from None
    return content, _said(card, f"the card in {path}")


def load_weights(module: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    """A module with the weights of a safetensors file, ready to be asked.

    Raises:
        CheckpointError: no safetensors; weights that do not match the module, or are not finite.
    """
    tensors, _ = read_tensors(Path(path))
    return put_weights(module, tensors, str(path))


def from_card(
    module: torch.nn.Module,
    weights: str | Path,
    card: str | Path | Mapping[str, Any] | None = None,
    **options: Any,
) -> Neural:
    """A module with weights of safetensors, as its card describes it.

    Args:
        module: of the architecture, with any weights.
        weights: the safetensors file.
        card: the card or its file; None: the JSON file of the same name beside the weights.
        options: of :func:`with_card`.

    Raises:
        CheckpointError: weights or a card that cannot be used.
    """
    card = Path(weights).with_suffix(".json") if card is None else card
    return with_card(load_weights(module, weights), card, **options)


def with_card(
    module: Callable[..., Tensor],
    card: str | Path | Mapping[str, Any],
    label: int | None = None,
    guidance: float = 0.0,
    points: Tensor | None = None,
) -> Neural:
    """A network as its card describes it.

    Args:
        module: called as ``module(x, t)``, of a network with classes ``module(x, t, label)``.
        card: the card, or its file.
        label: the class asked for; None: none.
        guidance: strength of guidance towards it.
        points: a few data as in its training: the network is tried on them.

    Raises:
        CheckpointError: a card that is not understood.
        ValueError: a class that it does not know.
        MismatchError: a card that contradicts the weights.
    """
    said = dict(card) if isinstance(card, Mapping) else read_card(card)
    if lacking := [key for key in ("predicts", "process", "event_shape") if key not in said]:
        raise CheckpointError(f"the card lacks {', '.join(lacking)}.")
    if unknown := sorted(said.keys() - KEYS):
        raise CheckpointError(
            f"the card says {unknown[0]!r}, which is not known; it may say "
            f"{', '.join(sorted(KEYS))}."
        )
    classes = said.get("classes", 0)
    if label is not None and not 0 <= label < classes:
        needed = f"0 to {classes - 1}" if classes else "left out: it knows no classes"
        raise ValueError(f"label was {label!r}; for this network it must be {needed}.")
    try:
        net = Neural(
            module,
            said["predicts"],
            _process(said["process"]),
            said["event_shape"],
            sigma_data=said.get("sigma_data", 0.5),
            centre=said.get("centre"),
            times=said.get("times"),
            whole=said.get("whole", False),
            condition=(classes if label is None else label) if classes else None,
            unconditional=classes or None,
            guidance=guidance,
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the card does not describe this network: {error}") from None
    if points is not None:
        guard(net, points).check()
    return net


def _process(said: Any) -> Process:
    given = {"name": said} if isinstance(said, str) else dict(said)
    name, known = given.pop("name", None), registry.entries("process")
    if name not in known:
        raise CheckpointError(
            f"the card names the process {name!r}; it must be one of {', '.join(known)}."
        )
    return known[name].target(**given)
