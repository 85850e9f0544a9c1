"""Checkpoints: a network's weights as safetensors, its card as JSON within and beside them.

The card says what is needed to build the network and to believe it: the network and its
parameters, the scalings, the data by hash, the split, the training and its curve. It stands in the
header of the weights' file, so that this file alone is enough and its hash names all of it; the
file ``.json`` beside it holds the same for people, and what differs from run to run: the command,
versions, seconds.

Nothing is unpickled.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench import registry

#: Version of the format; a reader refuses newer ones.
FORMAT = 1

#: First bytes of formats that are often met in its place.
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

#: What a card must hold.
NEEDED = ("network", "event_shape", "classes", "sigma_data", "largest_rho")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text says why and what to do."""


def data_folder() -> Path:
    """What ships beside the code: inside an installed package, or beside it in a checkout."""
    root = Path(__file__).resolve().parents[1]
    return root / "data" if (root / "data").is_dir() else root.parent / "data"


def shipped_folder() -> Path:
    """Where the checkpoints that ship are."""
    return data_folder() / "checkpoints"


@functools.cache
def shipped() -> tuple[str, ...]:
    """The names of the checkpoints that ship."""
    return tuple(sorted(file.stem for file in shipped_folder().glob("*.safetensors")))


def data_hash(points: Tensor) -> str:
    """SHA-256 of the values of a set of points in float32, rounded to five decimals."""
    rounded = (points.double() * 1e5).round().to(torch.int64).contiguous()
    head = json.dumps(list(points.shape)).encode()
    return hashlib.sha256(head + rounded.numpy().tobytes()).hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], **more: Any) -> None:
    """Write a checkpoint and the card beside it; each takes its place at once.

    Args:
        path: the file, ``.safetensors``.
        tensors: weights by name.
        card: what identifies the network, the same whenever it is trained again.
        more: what the card beside it says besides.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    card = {"format": FORMAT, **card}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, {"card": json.dumps(card, sort_keys=True)})
    replace(path, content)
    beside = {**card, "sha256": hashlib.sha256(content).hexdigest(), **more}
    replace(path.with_suffix(".json"), (json.dumps(beside, indent=1) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """Put a file in the place of another, whole or not at all, whatever ends this process."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and what its header says besides.

    Raises:
        CheckpointError: a file that is none, pickles first of all, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    if start.startswith(PICKLES):
        raise CheckpointError(
            f"{path} is a pickle, which could run any program; it is not opened. Convert it where "
            "you trust it: safetensors.torch.save_file(module.state_dict(), 'weights.safetensors')."
        )
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is no safetensors file: {reason}.") from None
    return tensors, said


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the card of a checkpoint.

    Raises:
        CheckpointError: a file that is no safetensors, holds no card or one that is not understood.
    """
    tensors, header = read_tensors(path)
    said = header.get("card")
    try:
        card = json.loads(said) if said else None
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise CheckpointError(
            f"{path} holds no card; a checkpoint's header says under 'card' which network its "
            "weights are of, as workbench train writes it."
        )
    if not isinstance(card.get("format"), int) or card["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has the format {card.get('format')!r}; this workbench reads up to {FORMAT}."
        )
    if lacking := [key for key in NEEDED if key not in card]:
        raise CheckpointError(f"the card of {path} lacks {', '.join(lacking)}.")
    return tensors, card


def is_foreign(path: Path) -> bool:
    """Whether a file is something else than a checkpoint with a card of its own."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), "pt") as file:
            return "card" not in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return True


def network_of(path: Path) -> tuple[torch.nn.Module, dict[str, Any], Tensor]:
    """The network of a checkpoint in float32, its card, and the centre of its data.

    Raises:
        CheckpointError: as :func:`read`; weights that do not match the card, or are not finite.
    """
    tensors, card = read(path)
    said = card["network"]
    name = said.get("name") if isinstance(said, Mapping) else said
    networks = registry.entries("network")
    if name not in networks:
        names = ", ".join(networks)
        raise CheckpointError(
            f"the card of {path} names the network {name!r}, which is not registered; there are "
            f"{names}. A network of a plugin needs --plugin."
        )
    try:
        given = {key: value for key, value in said.items() if key != "name"}
        network = networks[name].target(card["event_shape"], card["classes"], **given)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the card of {path} gives no {name}: {error}") from None
    centre = tensors.pop("centre", torch.zeros(tuple(card["event_shape"])))
    put_weights(network, tensors, str(path), "do not match its card")
    _check_finite({"centre": centre}, str(path))
    return network, card, centre.float()


def put_weights(
    module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str, fault: str = ""
) -> torch.nn.Module:
    """A module with the weights given, in float32, ready to be asked.

    Args:
        where: names their file.
        fault: what is said of weights that do not fit.

    Raises:
        CheckpointError: weights that do not match the module, or are not finite.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    held = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != held:
        apart = sorted(k for k in {*wanted, *held} if wanted.get(k) != held.get(k))
        fault = fault or f"are not those of {type(module).__name__}"
        raise CheckpointError(
            f"the weights of {where} {fault}: {len(apart)} of {len(wanted)} differ, {apart[0]} is "
            f"{held.get(apart[0], 'missing')} and must be {wanted.get(apart[0], 'left out')}."
        )
    _check_finite(tensors, where)
    module.load_state_dict({name: value.float() for name, value in tensors.items()})
    return module.eval().requires_grad_(False)


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    if bad := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(
            f"{where} holds weights that are not finite, in {', '.join(bad[:3])}; the training "
            "that wrote it has diverged."
        )
