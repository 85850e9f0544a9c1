"""ONNX files as denoisers, run by onnxruntime; with a card beside them.

A graph is data: its operators write nothing, and tensors that lie in other files are refused. The
answer carries no gradient: what needs derivatives of the denoiser is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.denoisers import Neural
from workbench.denoisers.checkpoints import CheckpointError
from workbench.learning.adapters.card import packed, with_card
from workbench.registry import register

#: Element types of ONNX as torch's.
TYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64,
         "tensor(float16)": torch.float16}  # fmt: skip


NO_DERIVATIVES = "an ONNX graph gives no derivatives; what needs them takes the network in torch."


class _Session(torch.nn.Module):
    """A graph as module(x, t) or module(x, t, label), its inputs by their order."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session, self.names = session, [one.name for one in session.get_inputs()]
        self.kinds = [TYPES.get(one.type, torch.int64) for one in session.get_inputs()]

    def __deepcopy__(self, memo: dict) -> _Session:
        return self  # it has no state, and the library cannot copy it

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or t.requires_grad):
            raise NotImplementedError(NO_DERIVATIVES)
        values = [x, t] if label is None else [x, t, label]
        try:
            fed = {
                name: value.detach().to("cpu", kind).numpy()
                for name, kind, value in zip(self.names, self.kinds, values, strict=True)
            }
        except RuntimeError:  # numbers that are followed through what they are used in
            raise NotImplementedError(NO_DERIVATIVES) from None
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
    path = Path(path)
    onnxruntime = _library()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    module = _loaded(onnxruntime, content, path)
    return with_card(module, path.with_suffix(".json") if card is None else card, **options)


@register(kind="format", name="onnx")
def carded(path: Path, label: int | None = None, guidance: float = 0.0) -> Neural | None:
    """An ONNX file and its card, packed as a zip file or beside each other."""
    if path.suffix == ".onnx":
        return from_onnx(path, label=label, guidance=guidance)
    if (found := packed(path, ".onnx")) is None:
        return None
    content, card = found
    return with_card(_loaded(_library(), content, path), card, label, guidance)


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(
            "ONNX files are run by onnxruntime, which is not installed: pip install onnxruntime."
        ) from None
    return onnxruntime


def _loaded(onnxruntime: Any, content: bytes, path: Path) -> _Session:
    if b"location" in content:  # the key that any tensor of another file has
        raise CheckpointError(
            f"{path} has tensors that lie in other files, which are not read; write them into it: "
            "onnx.save(model, 'network.onnx', save_as_external_data=False)."
        )
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.load_model_format", "ONNX")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of the library's own many kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is no ONNX file that can be run: {reason}.") from None
    inputs = session.get_inputs()
    if len(inputs) not in (2, 3):
        raise CheckpointError(
            f"{path} has {len(inputs)} inputs; it must take states, times and perhaps a label."
        )
    return _Session(session)
