"""Checks of tensors at the edge: numbers, finite, of one dtype, orthonormal."""

from __future__ import annotations

import torch
from torch import Tensor


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_placement(dtype: torch.dtype | None, device=None) -> None:
    """Raise unless real numbers of ``dtype`` can be held on ``device``; None stands for any.

    Raises:
        TypeError: what is not a floating dtype of torch.
        ValueError: a device that is unknown or not there.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"dtype was {dtype!r}; it must be a floating dtype of torch, such as torch.float32 or "
            "torch.float64."
        )
    if device is None:
        return
    try:
        there = torch.empty(0, device=device).device.type != "meta"  # which holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        there = False
    if not there:
        kinds = ["cpu"]
        kinds += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
        raise ValueError(
            f"device was {str(device)!r}; on this machine it may be {' or '.join(kinds)}."
        )


def finite(name: str, value: Tensor) -> Tensor:
    """``value`` itself; ``ValueError`` with a sentence if any element is not finite."""
    there = torch.isfinite(value)
    if not bool(there.all()):
        bad = int((~there).sum())
        raise ValueError(
            f"{name} holds {bad} values that are not finite; remove or replace them first."
        )
    return value


def probabilities(weights: Tensor, count: int, of: str) -> Tensor:
    """``weights`` themselves; ``ValueError`` unless they are ``count``, at least 0 and sum to 1."""
    if weights.shape != (count,):
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}; for {count} {of} it must be ({count},)."
        )
    if bool((weights < 0).any()):
        raise ValueError(f"a weight was {weights.min().item():.4g}; weights must be at least 0.")
    total = weights.double().sum().item()
    if abs(total - 1) > count * 1e3 * torch.finfo(weights.dtype).eps:
        raise ValueError(f"the weights sum to {total:.10g}; they must sum to 1.")
    return weights


def floating(name: str, value, like: Tensor | None = None) -> Tensor:
    """``value`` as a floating tensor, in the dtype and on the device of ``like`` if given."""
    typed = hasattr(value, "dtype")
    try:
        tensor = torch.as_tensor(value, dtype=None if typed or like is None else like.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} was {value!r}; it must be a tensor or numbers.") from error
    if tensor.is_complex():
        raise TypeError(
            f"{name} is {dtype_name(tensor.dtype)}; it must be real: give its real part, or both "
            "parts as coordinates (torch.view_as_real)."
        )
    if like is not None:
        if tensor.dtype.is_floating_point and tensor.dtype != like.dtype and tensor.ndim > 0:
            given, others = dtype_name(tensor.dtype), dtype_name(like.dtype)
            raise TypeError(
                f"{name} is {given} and other arguments are {others}; give them all in one dtype."
            )
        return tensor.to(dtype=like.dtype, device=like.device)
    return tensor if tensor.dtype.is_floating_point else tensor.to(torch.get_default_dtype())


def orthonormal(name: str, columns: Tensor) -> Tensor:
    """``columns`` (..., d, r) in float64; ``ValueError`` unless orthonormal to their rounding."""
    exact = columns.double()
    gram = exact.mT @ exact
    gram.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    error = gram.abs().max().item() if gram.numel() else 0.0
    if error > 1e3 * torch.finfo(columns.dtype).eps:
        raise ValueError(
            f"the columns of {name} are off orthonormal by {error:.2g}; orthonormalise them first, "
            f"e.g. torch.linalg.qr({name}).Q."
        )
    return exact
