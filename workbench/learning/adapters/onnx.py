"""ONNX files as denoisers, run by onnxruntime; with a card beside them.

The answer carries no gradient: what needs derivatives of the denoiser is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.denoisers import Neural
from workbench.denoisers.checkpoints import CheckpointError
from workbench.learning.adapters.card import with_card

__all__ = ["from_onnx"]

#: Element types of ONNX as torch's.
TYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64,
         "tensor(float16)": torch.float16}  # fmt: skip


class _Session(torch.nn.Module):
    """A graph as module(x, t) or module(x, t, label), its inputs by their order."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session, self.names = session, [one.name for one in session.get_inputs()]
        self.kinds = [TYPES.get(one.type, torch.int64) for one in session.get_inputs()]

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise NotImplementedError(
                "an ONNX graph gives no derivatives; what needs them takes the network in torch."
            )
        values = [x, t] if label is None else [x, t, label]
        fed = {
            name: value.detach().to("cpu", kind).numpy()
            for name, kind, value in zip(self.names, self.kinds, values, strict=True)
        }
        return torch.from_numpy(self.session.run(None, fed)[0]).to(x)


def from_onnx(
    path: str | Path, card: str | Path | Mapping[str, Any] | None = None, **options: Any
) -> Neural:
    """An ONNX file as a denoiser.

    Args:
        path: of the graph, whose inputs are states, times and, with classes, a label of each.
        card: see :mod:`workbench.learning.adapters.card`; None: the JSON file of the same name.
        options: of :func:`workbench.learning.adapters.card.with_card`.

    Raises:
        ImportError: onnxruntime is not installed.
        CheckpointError: a file that is none, or a card that cannot be used.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(
            "ONNX files are run by onnxruntime, which is not installed: pip install onnxruntime."
        ) from None
    path = Path(path)
    try:
        options_of_session = onnxruntime.SessionOptions()
        options_of_session.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(path), options_of_session, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of the library's own many kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is no ONNX file that can be run: {reason}.") from None
    inputs = session.get_inputs()
    if len(inputs) not in (2, 3):
        raise CheckpointError(
            f"{path} has {len(inputs)} inputs; it must take states, times and perhaps a label."
        )
    return with_card(_Session(session), path.with_suffix(".json") if card is None else card,
                     **options)  # fmt: skip
