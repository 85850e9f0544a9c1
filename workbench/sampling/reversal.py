r"""Gradients through a sampler in memory that does not grow with its steps.

Reverse-mode differentiation needs the states of all steps. An inversion that is exact recomputes
each from the one after it: only the last states are kept, and going back, one step at a time, its
states are rebuilt, its rows are run once more with a graph of their own, and the graph is dropped.

.. math:: \bar s_k = \Bigl(\frac{\partial S_k}{\partial s_k}\Bigr)^{\!\top}\bar s_{k+1},\qquad
          \bar\theta \mathrel{+}= \Bigl(\frac{\partial S_k}{\partial\theta}\Bigr)^{\!\top}
          \bar s_{k+1},\qquad s_k = S_k^{-1}(s_{k+1}) .

It costs a run for the states and a run with its graph for the gradients.

Sources: Gomez et al. 2017 (RevNet), arXiv:1707.04585; Kidger et al. 2021 (reversible Heun),
arXiv:2105.13493; Chen et al. 2024 (invertible diffusion models), arXiv:2403.17006.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.diffusion import Diffusion
from workbench.sampling.grid import Grid
from workbench.sampling.loop import walk
from workbench.sampling.methods.inversion import Inversion, checked_run
from workbench.sampling.program import Program, Step


def reversible(
    model: Diffusion | torch.nn.Module,
    inversion: Inversion,
    grid: Grid,
    x: Tensor,
    parameters: Iterable[Tensor] | None = None,
) -> Tensor:
    """The final states of ``inversion`` as a sampler, differentiable in constant memory.

    Args:
        model: a diffusion; or any object with ``denoise(x, alpha, sigma)``, for a process with one
            alpha and sigma. It must give the same answer when asked again (no dropout).
        inversion: an exact one. Rounding of the states rebuilt is enlarged by its ``stability``:
            with BDIA(gamma=1) it stays small over hundreds of steps, with EDICT over a hundred.
        grid: the nodes.
        x: states (n, *event) at ``grid.t[0]``.
        parameters: tensors with respect to which there shall be gradients; None: those of the
            modules that the model is or holds.

    Returns:
        Final states (n, *event), with gradients with respect to ``x`` and the parameters.

    Raises:
        ValueError: an inversion that is not exact; a grid of another process; wrong shapes. In the
            backward pass: a tensor that asks for a gradient and is not among the parameters.
        TypeError: something of the wrong kind, or ``x`` of another dtype than the diffusion.
    """
    if not isinstance(inversion, Inversion):
        hint = f"; call it first: {inversion.__name__}()" if isinstance(inversion, type) else ""
        raise TypeError(f"inversion was {inversion!r}; it must be an Inversion{hint}.")
    if not inversion.exact:
        raise ValueError(
            f"{inversion!r} does not undo its steps exactly, so states cannot be rebuilt from the "
            "last; take BDIA(gamma=1), BELM or EDICT."
        )
    whole = isinstance(model, Diffusion)
    if whole:
        checked_run(model, grid, x.detach())
    elif not callable(getattr(model, "denoise", None)):
        raise TypeError(
            f"model was {model!r}; it must be a Diffusion or have a denoise(x, alpha, sigma)."
        )
    found = _parameters(model.denoiser if whole else model) if parameters is None else parameters
    wanted = [p for p in dict.fromkeys(found) if p.requires_grad]
    process, asked = (model.process, model.core) if whole else (None, model)
    u = model.to_core(x, grid.t[0]) if whole else x
    final = _Rebuilt.apply(_Plan(inversion, process, grid, asked, u), u, *wanted)
    return model.from_core(final, grid.t[-1]) if whole else final


def _parameters(holder: object) -> Iterator[Tensor]:
    """The parameters of a module, or of the modules an object holds."""
    if isinstance(holder, torch.nn.Module):
        yield from holder.parameters()
        return
    for value in vars(holder).values() if hasattr(holder, "__dict__") else ():
        if isinstance(value, torch.nn.Module):
            yield from value.parameters()
        elif isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
            yield value
        elif callable(getattr(value, "denoise", None)):
            yield from _parameters(value)


class _Plan:
    """The parts of a run, and how each is walked."""

    def __init__(self, inversion: Inversion, process, grid: Grid, model, x: Tensor) -> None:
        def part(which: int) -> Program:
            return inversion.part(process, grid, lambda nodes: inversion.forth(nodes)[which]).to(x)

        def undoing(nodes) -> tuple[Step, ...]:
            inner = nodes[: len(nodes) - (nodes[-1].sigma == 0)]
            return inversion.back(inner)[1] if len(inner) > 1 else ()

        self.opening, self.middle, self.closing = part(0), part(1), part(2)
        self.undoing = inversion.part(process, grid, undoing).to(x)
        self.model, self.states = model, inversion.states

    def walk(self, program: Program, states: dict[str, Tensor]) -> dict[str, Tensor]:
        """The states behind ``program``, from those before it."""
        held = dict(states)
        walk(program, self.model, states["x"], None, registers=held, gradients=True)
        return {name: held[name] for name in self.states if name in held}


class _Rebuilt(torch.autograd.Function):
    """A run whose backward pass rebuilds its states."""

    @staticmethod
    def forward(ctx, plan: _Plan, x: Tensor, *parameters: Tensor) -> Tensor:
        states = plan.walk(plan.middle, plan.walk(plan.opening, {"x": x}))
        final = plan.walk(plan.closing, states)["x"]
        ctx.plan, ctx.names, ctx.parameters = plan, list(states), parameters
        ctx.save_for_backward(x, *states.values(), *parameters)  # these to notice their change
        return final

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        plan, (x, *kept) = ctx.plan, ctx.saved_tensors
        states = dict(zip(ctx.names, kept, strict=False))
        pull = _Pull(plan, ctx.parameters, {"x": grad})
        pull.through(plan.closing, states)
        pairs = zip(reversed(plan.middle.steps), plan.undoing.steps, strict=True)
        for step, undoing in pairs:
            states = plan.walk(Program((undoing,)), states)
            pull.through(Program((step,)), states)
        pull.through(plan.opening, {"x": x})
        return None, pull.grads.get("x"), *pull.parameter_grads


class _Pull:
    """Gradients with respect to the states and parameters, pulled back step by step."""

    def __init__(self, plan: _Plan, parameters: Sequence[Tensor], grads: dict) -> None:
        self.plan, self.parameters, self.grads = plan, parameters, grads
        self.parameter_grads: list[Tensor | None] = [None] * len(parameters)
        self._looked = False

    def through(self, program: Program, states: dict[str, Tensor]) -> None:
        """Replace the gradients behind ``program`` by those before it, at ``states``."""
        if not program.steps:
            return
        leaves = {name: value.detach().requires_grad_() for name, value in states.items()}
        with torch.enable_grad():
            made = self.plan.walk(program, leaves)
        if not self._looked:
            _look_for_others(made, [*leaves.values(), *self.parameters])
            self._looked = True
        reached = {k: g for k, g in self.grads.items() if made[k].requires_grad}
        found = torch.autograd.grad(
            [made[name] for name in reached],
            [*leaves.values(), *self.parameters],
            list(reached.values()),
            allow_unused=True,
        )
        pairs = zip(leaves, found, strict=False)
        self.grads = {name: grad for name, grad in pairs if grad is not None}
        for i, grad in enumerate(found[len(leaves) :]):
            if grad is not None:
                old = self.parameter_grads[i]
                self.parameter_grads[i] = grad if old is None else old + grad


def _look_for_others(made: dict[str, Tensor], known: list[Tensor]) -> None:
    """Raise for a leaf that asks for a gradient it would not get."""
    ours = {id(tensor) for tensor in known}
    seen = {tensor.grad_fn for tensor in known}
    todo = [value.grad_fn for value in made.values()]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in ours:
            raise ValueError(
                f"the model uses a tensor of shape {tuple(leaf.shape)} that asks for a gradient "
                "and is not among the parameters; give all of them: "
                "reversible(..., parameters=[...])."
            )
        todo.extend(following for following, _ in node.next_functions)
