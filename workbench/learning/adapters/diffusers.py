r"""Pipelines and models of diffusers as denoisers.

The scheduler's configuration says what the network's answer means; its grid, its clipping and its
sampler are left behind. What differs from one to the next:

===========================  ==========================  ===========================================
scheduler                    time that the network sees  answer
===========================  ==========================  ===========================================
with a table of              index into it               ``epsilon``; ``sample``; ``v_prediction``
``alphas_cumprod``                                       :math:`v = \alpha\epsilon - \sigma x_0`
flow matching                its t times 1000            :math:`\epsilon - x_0`; a shift moves the
                                                         grid alone
score SDE, VE                :math:`\sigma`              the score
consistency                  :math:`250\ln\sigma`        F of :math:`f = c_{skip}x + c_{out}F`
===========================  ==========================  ===========================================

A network that answers with twice the channels has learnt a variance as well, which is left out.
Weights are read from safetensors alone.
"""

from __future__ import annotations

import json
import math
import re
import types
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.denoisers import Neural
from workbench.denoisers.checkpoints import CheckpointError
from workbench.denoisers.guard import guard
from workbench.learning.adapters.card import put_weights
from workbench.params import one_line, shown
from workbench.processes import EDM, Cosine, RectifiedFlow
from workbench.registry import register

#: What a table's prediction types are here.
TYPES = {"epsilon": "noise", "sample": "denoised", "v_prediction": "velocity"}


class _Adapted(torch.nn.Module):
    """A model of diffusers as module(x, t) or module(x, t, label)."""

    def __init__(self, model: torch.nn.Module, time: float, scale: float, halved: bool) -> None:
        super().__init__()
        self.model, self.time, self.scale, self.halved = model, time, scale, halved

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        given = {} if label is None else {"class_labels": label}
        answer = self.model(x, self.time * t, return_dict=False, **given)[0]
        return self.scale * (answer.chunk(2, 1)[0] if self.halved else answer)


def from_diffusers(
    source: Any,
    scheduler: Any = None,
    label: int | None = None,
    guidance: float = 0.0,
    points: Tensor | None = None,
) -> Neural:
    """The network of a pipeline as a denoiser.

    Args:
        source: a pipeline, the folder of one that ``save_pretrained`` wrote, or a model. Of a
            folder no code is run: classes of diffusers are made from its JSON and safetensors.
        scheduler: of a model alone, the scheduler it was trained with.
        label: the class of a class-conditional model.
        guidance: strength of classifier-free guidance, where the model has a class for none.
        points: a few data (N, channels, height, width) as in its training: the network is tried on
            them, see :func:`workbench.denoisers.guard.guard`.

    Raises:
        ImportError: diffusers is not installed.
        CheckpointError: no folder of diffusers, pickled weights, or a scheduler, a prediction type
            or a model that is not understood.
        ValueError: a class that the model does not know.
        MismatchError: a configuration that contradicts the weights.
    """
    if isinstance(source, str | Path):
        source = _of_folder(Path(source))
    model = getattr(source, "unet", None) or getattr(source, "transformer", None) or source
    scheduler = scheduler or getattr(source, "scheduler", None)
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise CheckpointError(
            f"{type(source).__name__} has no unet or transformer; give a pipeline or a model."
        )
    if scheduler is None:
        raise CheckpointError(
            "a model alone does not say what it predicts; give the scheduler it was trained with: "
            "scheduler=DDPMScheduler(...)."
        )
    if getattr(source, "vae", None) is not None:
        raise CheckpointError(
            f"{type(source).__name__} works in the latents of a VAE; give its model and scheduler, "
            "and work in latents: from_diffusers(pipeline.unet, pipeline.scheduler). "
            "workbench.learning.adapters.latents.Latents(pipeline.vae) leads to images and back."
        )
    model = model.eval().requires_grad_(False)
    condition, none = _classes(model, label)
    channels, size = model.config["in_channels"], model.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    halved = (model.config.get("out_channels") or channels) == 2 * channels
    if type(scheduler).__name__.startswith("CMStochastic"):
        return _consistency(model, scheduler, (channels, height, width), condition)
    predicts, process, time, scale, times = _meaning(scheduler)
    net = Neural(
        _Adapted(model, time, scale, halved),
        predicts,
        process,
        (channels, height, width),
        times=times,
        condition=condition,
        unconditional=none,
        guidance=guidance,
    )
    if points is not None:
        guard(net, points).check()
    if scheduler.config.get("clip_sample"):
        bound = scheduler.config.get("clip_sample_range", 1.0)
        net.notes += (
            f"The scheduler of this network clips its denoised states to ±{bound:g}; here they are "
            "not clipped.",
        )
    return net


class _Consistency(torch.nn.Module):
    """The consistency function of a raw network at states of alpha = 1."""

    def __init__(self, model: torch.nn.Module, least: float, spread: float) -> None:
        super().__init__()
        self.model, self.least, self.spread = model, least, spread

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1)
        square, above = self.spread**2, level - self.least
        total = (level.square() + square).sqrt()
        given = {} if label is None else {"class_labels": label}
        answer = self.model(x / total, 250 * sigma.log(), return_dict=False, **given)[0]
        return square / (above.square() + square) * x + above * self.spread / total * answer


def _consistency(model, scheduler, event_shape, condition: int | None) -> Neural:
    """Source: Song et al. 2023, arXiv:2303.01469, equation 5."""
    config = scheduler.config
    process = EDM(sigma_min=config["sigma_min"], sigma_max=config["sigma_max"])
    module = _Consistency(model, config["sigma_min"], config["sigma_data"])
    net = Neural(module, "denoised", process, event_shape, condition=condition)
    net.notes += (
        "This is a consistency function: it answers with the end of the probability flow, one of "
        "the data, and not with their mean. One step draws samples; a score is not to be had.",
    )
    return net


#: Name of the file of weights of a part: a variant (fp16), a shard.
WEIGHTS = re.compile(r"diffusion_pytorch_model(\.\w+)?(-\d+-of-\d+)?\.safetensors")

#: Most bytes of a packed pipeline, unpacked.
LARGEST = 2**33


@register(kind="format", name="diffusers")
def packed(path: Path, label: int | None = None, guidance: float = 0.0) -> Neural | None:
    """A pipeline of diffusers: its folder, packed as a zip file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        indices = [one for one in names if one.rpartition("/")[2] == "model_index.json"]
        if not indices:
            return None
        if sum(one.file_size for one in archive.infolist()) > LARGEST:
            raise CheckpointError(f"{path} unpacks to more than {LARGEST / 1e9:.0f} GB.")
        root = min(indices, key=len).removesuffix("model_index.json")
        inside = {one.removeprefix(root) for one in names if one.startswith(root)}
        source = _pipeline(str(path), inside, lambda name: archive.read(root + name))
    return from_diffusers(source, label=label, guidance=guidance)


def _of_folder(folder: Path) -> Any:
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} is no pipeline of diffusers: it holds no model_index.json. Give the folder "
            "that pipeline.save_pretrained(...) wrote."
        )
    names = {one.relative_to(folder).as_posix() for one in folder.glob("*/*")}
    return _pipeline(str(folder), names, lambda name: (folder / name).read_bytes())


def _pipeline(where: str, names: Collection[str], read: Callable[[str], bytes]) -> Any:
    """Model and scheduler of a pipeline, made from their JSON and weights; none of its code is run.

    Args:
        where: it is, for what is said of it.
        names: of its files.
        read: the content of one.
    """
    index = _json(where, "model_index.json", read)
    said = {name: one for name, one in index.items() if isinstance(one, list) and len(one) == 2}
    parts = types.SimpleNamespace(vae=said.get("vae", [None])[0])
    for name in ("unet", "transformer"):
        if name in said:
            model = _made(where, name, said[name], "ModelMixin", "config.json", read)
            setattr(parts, name, put_weights(model, _weights(where, name, names, read), where))
    if "scheduler" in said:
        kind, config = "SchedulerMixin", "scheduler_config.json"
        parts.scheduler = _made(where, "scheduler", said["scheduler"], kind, config, read)
    return parts


def _json(where: str, name: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        content = json.loads(read(name))
    except (OSError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: {name} cannot be read ({one_line(str(error), 200)})."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: {name} must hold a JSON object, as in {{...}}.")
    return content


def _made(
    where: str, part: str, said: list, base: str, config: str, read: Callable[[str], bytes]
) -> Any:
    """A part, of a class of diffusers itself and by its configuration."""
    import diffusers

    library, name = said
    kind = getattr(diffusers, str(name), None) if library == "diffusers" else None
    if not (isinstance(kind, type) and issubclass(kind, getattr(diffusers, base))):
        raise CheckpointError(
            f"{where}: its {part} is {shown(name)} of {shown(library)}, and classes of diffusers "
            "alone are made. Make the model where you trust it: from_diffusers(model, scheduler)."
        )
    given = _json(where, f"{part}/{config}", read)
    try:
        return kind.from_config(given)
    except Exception as error:  # whatever a class says to what it does not take
        raise CheckpointError(
            f"{where}: its {part} cannot be made, {name} says of its configuration: "
            f"{one_line(str(error), 200)}."
        ) from None


def _weights(
    where: str, part: str, names: Collection[str], read: Callable[[str], bytes]
) -> dict[str, Tensor]:
    """The weights of a part: in full precision if they are there so, all their shards."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    shards: dict[str, list[str]] = {}
    for name in sorted(names):
        if match := WEIGHTS.fullmatch(name.removeprefix(f"{part}/")):
            shards.setdefault(match[1] or "", []).append(name)
    if not shards:
        raise CheckpointError(
            f"{where} cannot be loaded: its {part} has no weights that are safetensors. They are "
            "read from safetensors alone; write them anew where you trust them: "
            "pipeline.save_pretrained(folder)."
        )
    tensors: dict[str, Tensor] = {}
    for name in shards[min(shards)]:
        try:
            tensors |= load(read(name))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{where}: {name} is no safetensors file: {error}.") from None
    return tensors


def _classes(model: torch.nn.Module, label: int | None) -> tuple[int | None, int | None]:
    """The class that is asked for, and the one that stands for none."""
    config = model.config
    transformer = config.get("num_embeds_ada_norm")
    count = config.get("num_class_embeds") or transformer or 0
    if not count:
        if label is not None:
            raise ValueError(f"label was {label!r}; this model knows no classes: leave it out.")
        return None, None
    if label is None and not transformer:
        raise ValueError(f"this model is class-conditional; give it a label, 0 to {count - 1}.")
    label = count if label is None else label  # of a DiT: the one behind the last stands for none
    if not 0 <= label < count + bool(transformer):
        raise ValueError(f"label was {label!r}; it must be 0 to {count - 1}.")
    return label, count if transformer else None


def _meaning(scheduler: Any) -> tuple[str, Any, float, float, Tensor | None]:
    """What is predicted, under which process, factors of time and answer, times of a table."""
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("FlowMatch"):
        return "velocity", RectifiedFlow(), float(config["num_train_timesteps"]), 1.0, None
    if name.startswith("ScoreSdeVe"):
        process = EDM(sigma_min=config["sigma_min"], sigma_max=config["sigma_max"])
        return "score", process, 1.0, 1.0, None
    table, kind = getattr(scheduler, "alphas_cumprod", None), config.get("prediction_type")
    if table is None or name.startswith("EDM"):
        raise CheckpointError(
            f"the scheduler {name} is not understood; networks of schedulers with a table of "
            "alphas_cumprod, of flow matching and of the VE score SDE are. Wrap others: "
            "wb.Neural(lambda x, t: ..., predicts=..., trained_under=...)."
        )
    if kind not in TYPES:
        raise CheckpointError(
            f"prediction_type was {kind!r}; it must be one of {', '.join(map(repr, TYPES))}."
        )
    # Any variance-preserving process has the same alpha and sigma at the same rho; of this one the
    # velocity is pi / 2 times v.
    process = Cosine(offset=0.0)
    kept = table.double().cpu()
    times = process.time_of(((1 - kept) / kept).sqrt())
    scale = 0.5 * math.pi if kind == "v_prediction" else 1.0
    return TYPES[kind], process, 1.0, scale, times
