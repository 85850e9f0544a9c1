"""Checks of tensors at the edge: numbers, finite, of one dtype, orthonormal."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dtype_name", "finite", "floating", "orthonormal"]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finite(name: str, value: Tensor) -> Tensor:
    """``value`` itself; ``ValueError`` with a sentence if any element is not finite."""
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} values that are not finite; remove or replace them first."
        )
    return value


def floating(name: str, value, like: Tensor | None = None) -> Tensor:
    """``value`` as a floating tensor, in the dtype and on the device of ``like`` if given."""
    typed = hasattr(value, "dtype")
    try:
        tensor = torch.as_tensor(value, dtype=None if typed or like is None else like.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} was {value!r}; it must be a tensor or numbers.") from error
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
