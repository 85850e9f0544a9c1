r"""Flow-matching models as denoisers, whichever way their time runs.

Here a path goes from data at 0 to noise at 1, :math:`x_t = \alpha x_0 + \sigma\epsilon`, with the
velocity :math:`\dot\alpha x_0 + \dot\sigma\epsilon`. Others begin with the noise (the library
flow_matching: :math:`s = 1 - t`, the velocity of the opposite sign), count time in thousands, or
answer with minus the velocity, or with the denoised state.

Sources: Lipman et al. 2023, arXiv:2210.02747; Lipman et al. 2024, arXiv:2412.06264.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from workbench.denoisers import Neural
from workbench.denoisers.guard import guard
from workbench.processes import Cosine, RectifiedFlow

Path = Literal["linear", "cosine"]


class _Turned(torch.nn.Module):
    """A model whose time runs from noise to data, or in other units, as module(x, t)."""

    def __init__(self, model: Callable, forward: bool, scale: float, sign: float, name: str):
        super().__init__()
        self.model, self.turned, self.scale = model, not forward, scale
        self.sign, self.name = sign, name

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        time = self.scale * (1 - t if self.turned else t)
        given = {} if condition is None else {self.name: condition}
        return self.sign * self.model(x, time, **given)


def from_flow(
    model: Callable[..., Tensor],
    event_shape=None,
    data_at: Literal[0, 1] = 1,
    path: Path = "linear",
    answers: Literal["velocity", "minus velocity", "denoised"] = "velocity",
    time_scale: float = 1.0,
    condition: int | Tensor | None = None,
    unconditional: int | Tensor | None = None,
    guidance: float = 0.0,
    keyword: str = "label",
    points: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Neural:
    """A flow-matching model as a denoiser.

    Args:
        model: called as ``model(x, time)``, of a conditional one with the keyword ``keyword``.
        event_shape: of one sample.
        data_at: at which end of its time the data are; 1 in the library flow_matching.
        path: ``linear``, x = (1 - t) x0 + t eps (its CondOTScheduler), or ``cosine``.
        answers: with the derivative of the state in its own time, minus that, or the data.
        time_scale: its time at the end: 1, or 1000.
        condition, unconditional, guidance: as of :class:`workbench.Neural`.
        keyword: by which it takes a condition.
        points: a few data as in its training: the network is tried on them.
        dtype: of a model without parameters.

    Raises:
        ValueError: a word that is none of these.
        MismatchError: a direction or a sign that contradicts the weights.
    """
    for name, value, known in (
        ("data_at", data_at, (0, 1)),
        ("path", path, get_args(Path)),
        ("answers", answers, ("velocity", "minus velocity", "denoised")),
    ):
        if value not in known:
            raise ValueError(f"{name} was {value!r}; it must be one of {known}.")
    sign = 1.0 if answers != "minus velocity" else -1.0
    if answers != "denoised" and data_at == 1:
        sign = -sign
    predicts = "denoised" if answers == "denoised" else "velocity"
    process = RectifiedFlow() if path == "linear" else Cosine(offset=0.0)
    net = Neural(
        _Turned(model, data_at == 0, time_scale, sign, keyword),
        predicts,
        process,
        event_shape,
        dtype=dtype,
        condition=condition,
        unconditional=unconditional,
        guidance=guidance,
    )
    if points is not None:
        guard(net, points).check()
    return net
