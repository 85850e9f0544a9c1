r"""Networks of EDM and EDM2: weights as safetensors, and a card that says their scalings.

The published files are pickles, which are not opened: convert them where you trust them,

.. code-block:: python

    safetensors.torch.save_file(net.model.state_dict(), "edm.safetensors")

and write beside it ``edm.json``:
``{"preconditioner": "EDMPrecond", "sigma_data": 0.5, "label_dim": 0, "event_shape": [3, 32, 32]}``.

====================  ============================================  ================================
preconditioner        :math:`D = c_{skip} x + c_{out} F`            noise condition
====================  ============================================  ================================
EDMPrecond, Precond   EDM's scalings                                :math:`\tfrac14\ln\sigma`
VPPrecond             :math:`x - \sigma F(x/\sqrt{\sigma^2+1})`     :math:`999\,t(\sigma)`
VEPrecond             :math:`x + \sigma F(x)`                       :math:`\ln(\sigma/2)`
====================  ============================================  ================================

with :math:`t(\sigma) = (\sqrt{\beta_{min}^2 + 2\beta_d\ln(1+\sigma^2)} - \beta_{min})/\beta_d`.

Source: Karras et al. 2022, arXiv:2206.00364, table 1; Karras et al. 2024, arXiv:2312.02696.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.denoisers import Neural
from workbench.denoisers.checkpoints import CheckpointError
from workbench.denoisers.precondition import edm_preconditioning
from workbench.learning.adapters.card import load_weights, read_card, with_card

PRECONDITIONERS = ("EDMPrecond", "Precond", "VPPrecond", "VEPrecond")

#: What a card may say.
KEYS = {"preconditioner", "sigma_data", "label_dim", "event_shape", "sigma_min", "sigma_max",
        "beta_d", "beta_min"}  # fmt: skip


class _Preconditioned(torch.nn.Module):
    """The denoised state of a raw network at states of alpha = 1 and noise levels sigma."""

    def __init__(self, model: torch.nn.Module, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.kind = model, card["preconditioner"]
        self.sigma_data, self.classes = card.get("sigma_data", 0.5), card.get("label_dim", 0)
        self.beta_d, self.beta_min = card.get("beta_d", 19.9), card.get("beta_min", 0.1)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        level = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        ones = torch.ones_like(level)
        if self.kind == "VPPrecond":
            square = self.beta_min**2 + 2 * self.beta_d * level.square().log1p()
            time = (square.sqrt() - self.beta_min) / self.beta_d
            skip, out = ones, -level
            into, noise = (level.square() + 1).rsqrt(), 999 * time
        elif self.kind == "VEPrecond":
            skip, out, into, noise = ones, level, ones, (0.5 * level).log()
        else:
            skip, out, into, noise, _ = edm_preconditioning(level, self.sigma_data)
        classes = None
        if self.classes:  # the one behind the last is none of them
            label = torch.full((len(x),), self.classes) if label is None else label
            classes = functional.one_hot(label.long(), self.classes + 1)[:, :-1].to(x)
        answer = self.model(into * x, noise.flatten(), class_labels=classes)
        return skip * x + out * answer


def from_edm(
    model: torch.nn.Module,
    weights: str | Path,
    card: str | Path | Mapping[str, Any] | None = None,
    label: int | None = None,
    guidance: float = 0.0,
    points: Tensor | None = None,
) -> Neural:
    """A network of EDM or EDM2 as a denoiser.

    Args:
        model: the raw network, ``net.model`` (of EDM2 ``net.unet``), with any weights; called as
            ``model(x, noise, class_labels=...)`` with one-hot classes (n, label_dim) or None.
        weights: its weights as safetensors.
        card: the card or its file; None: the JSON file of the same name beside the weights.
        label: the class asked for; None: none, zeros.
        guidance: strength of guidance towards it.
        points: a few data as in its training: the network is tried on them.

    Raises:
        CheckpointError: a pickle; weights that do not match; a card that is not understood.
        ValueError: a class that it does not know.
        MismatchError: a card that contradicts the weights.
    """
    card = Path(weights).with_suffix(".json") if card is None else card
    said = dict(card) if isinstance(card, Mapping) else read_card(card)
    if said.get("preconditioner") not in PRECONDITIONERS:
        raise CheckpointError(
            f"the card's preconditioner was {said.get('preconditioner')!r}; it must be one of "
            f"{', '.join(PRECONDITIONERS)}."
        )
    if "event_shape" not in said or (unknown := sorted(said.keys() - KEYS)):
        what = "lacks event_shape" if "event_shape" not in said else f"says {unknown[0]!r}"
        raise CheckpointError(f"the card {what}; it may say {', '.join(sorted(KEYS))}.")
    levels = {"sigma_min": said.get("sigma_min", 0.002), "sigma_max": said.get("sigma_max", 80.0)}
    meaning = {"predicts": "denoised", "process": {"name": "EDM", **levels}}
    meaning |= {"event_shape": said["event_shape"], "classes": said.get("label_dim", 0)}
    module = _Preconditioned(load_weights(model, weights), said).eval()
    return with_card(module, meaning, label, guidance, points)
