"""What to keep of a run, and when: a value, not a callback.

Recording never changes a run: the state at a node and, where the sampler evaluates it there anyway,
the denoised state are copied into buffers made beforehand. Where a method does not evaluate the
denoiser at a recorded node, it is evaluated once more for the record; those are not counted in NFE.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workbench.sampling.grid import Grid, Node

__all__ = ["FIELDS", "Record", "Recorder"]

#: What can be recorded, with its meaning.
FIELDS = {
    "x": "state x_t",
    "denoised": "posterior mean E[x0 | x_t]",
    "noise": "noise prediction E[eps | x_t]",
    "score": "gradient of the log-density",
    "velocity": "probability-flow velocity dx/dt",
}


class Record:
    """Fields to keep at every ``every``-th node; the first and the last node are always kept.

    Args:
        fields: names from ``x denoised noise score velocity``.
        every: keep each ``every``-th node, at least 1.

    Raises:
        ValueError: an unknown field, none at all, or ``every`` below 1.
    """

    def __init__(self, fields: Sequence[str] = ("x",), every: int = 1) -> None:
        names = (fields,) if isinstance(fields, str) else tuple(dict.fromkeys(fields))
        for name in names:
            if name not in FIELDS:
                raise ValueError(
                    f"record field was {name!r}; it must be one of {', '.join(FIELDS)}."
                )
        if not names:
            raise ValueError(f"record fields were empty; name at least one of {', '.join(FIELDS)}.")
        if isinstance(every, bool) or int(every) != every or every < 1:
            raise ValueError(f"record every was {every!r}; it must be a whole number, at least 1.")
        self.fields, self.every = names, int(every)

    def indices(self, grid: Grid) -> list[int]:
        """Indices of the nodes that are kept."""
        kept = list(range(0, grid.steps + 1, self.every))
        return kept if kept[-1] == grid.steps else [*kept, grid.steps]

    def __eq__(self, other) -> bool:
        return isinstance(other, Record) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"Record({list(self.fields)}, every={self.every})"


class Recorder:
    """The buffers of one run, filled node by node."""

    def __init__(self, record: Record, diffusion, grid: Grid, like: Tensor) -> None:
        self.kept = record.indices(grid)
        self._slots = {index: slot for slot, index in enumerate(self.kept)}
        self._denoiser, self._process = diffusion.core, diffusion.process
        derived = [name for name in record.fields if name in ("noise", "score", "velocity")]
        if derived and grid.sigma[-1] == 0.0:
            raise ValueError(
                f"{derived[0]} cannot be recorded at sigma = 0, where this grid ends; use "
                'final="stop" or record x and denoised only.'
            )
        self.needs_denoised = record.fields != ("x",)
        shape = (len(self.kept), *like.shape)
        self.buffers = {name: like.new_empty(shape) for name in record.fields}
        self._states = self.buffers["x"].unbind() if "x" in self.buffers else None

    def wants(self, index: int) -> bool:
        return index in self._slots

    def room(self, index: int) -> Tensor | None:
        """Where the state at node ``index`` may be written at once, if it is kept."""
        slot = self._slots.get(index)
        return None if slot is None or self._states is None else self._states[slot]

    def keep(self, index: int, node: Node, x: Tensor, denoised: Tensor | None) -> None:
        """Store node ``index``; ``denoised`` is D(x) there, or None to have it evaluated."""
        slot, (t, alpha, sigma) = self._slots[index], node
        if self.needs_denoised and denoised is None:
            denoised = self._denoiser.denoise(x, alpha, sigma)
        for name, buffer in self.buffers.items():
            if name == "x":
                if x is not self._states[slot]:  # it may be there already
                    self._states[slot].copy_(x)
                continue
            out = buffer[slot]
            if name == "denoised":
                out.copy_(denoised)
            else:
                noise = (x - alpha * denoised).div_(sigma)
                if name == "score":
                    noise.mul_(-1.0 / sigma)
                elif name == "velocity":
                    c = self._process(t)
                    if isinstance(alpha, Tensor):
                        c = c.map(lambda v: v.to(x))
                    noise.mul_(c.d_sigma).add_(c.d_alpha * denoised)
                out.copy_(noise)
