"""Convolutional networks for small images: a U-Net, and a local circular network."""

from __future__ import annotations

import functools
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.learning.networks.base import Embedding, Network, zeroed
from workbench.params import Param
from workbench.registry import register

#: Channels of one group of a normalisation, at most.
GROUP = 8


def _image(event_shape) -> tuple[int, int, int]:
    """Channels, height and width."""
    shape = tuple(event_shape)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"event_shape was {shape}; a convolutional network takes images (height, width) or "
            "(channels, height, width)."
        )
    return (1, *shape) if len(shape) == 2 else shape


class _Block(nn.Module):
    """Two convolutions with a residual path, shifted and scaled by the embedding."""

    def __init__(self, into: int, out: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.normal, self.renormal = (nn.GroupNorm(max(1, c // GROUP), c) for c in (into, out))
        self.first = nn.Conv2d(into, out, 3, padding=1)
        self.second = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.scales = nn.Linear(width, 2 * out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        here = not torch.is_grad_enabled()  # in place, where no gradient asks for what was before
        hidden = self.first(functional.silu(self.normal(x), here))
        scale, shift = self.scales(embedded)[..., None, None].chunk(2, 1)
        hidden = functional.silu((self.renormal(hidden) * (1 + scale)).add_(shift), here)
        return self.second(self.dropout(hidden)).add_(self.skip(x))


@register
class UNet(Network):
    """A small convolutional U-Net with zero padding, conditioned on noise and class.

    Of places its convolutions know the border alone; with an offset learned for each of the
    ``places`` it learns pictures that are centred a little better.
    """

    def __init__(
        self,
        event_shape,
        classes: int = 0,
        widths: Annotated[
            tuple[int, ...],
            Param("channels at each resolution, each half the last", ge=1, le=512, fewest=1),
        ] = (32, 64),
        middle: Annotated[int, Param("blocks at the lowest resolution", ge=1, le=16)] = 1,
        embed: Annotated[int, Param("features of noise and class", ge=4, le=1024)] = 64,
        wide: Annotated[
            bool, Param("whether the way up has as many channels as the way down")
        ] = False,
        dropout: Annotated[
            float, Param("share of a block's features that a step of training drops", ge=0, lt=1)
        ] = 0.0,
        apart: Annotated[
            float, Param("spread of the features of the classes at the start", ge=0, le=10)
        ] = 0.0,
        places: Annotated[
            bool, Param("whether it learns an offset for each place of the image")
        ] = False,
    ) -> None:
        widths = tuple(widths)
        given = {"wide": wide, "dropout": dropout, "apart": apart, "places": places}
        super().__init__(event_shape, classes, widths=widths, middle=middle, embed=embed, **given)
        channels, height, width = _image(self.event_shape)
        halvings = 2 ** (len(widths) - 1)
        if height % halvings or width % halvings:
            raise ValueError(
                f"widths were {widths}; images of {height} x {width} cannot be halved "
                f"{len(widths) - 1} times."
            )
        self.embedding = Embedding(embed, self.classes, apart=apart)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        block = functools.partial(_Block, width=embed, dropout=dropout)
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        self.places = nn.ParameterList(
            nn.Parameter(torch.zeros(a, height >> i, width >> i))
            for i, (a, _) in enumerate(pairs if places else ())
        )
        self.middle = nn.ModuleList(block(widths[-1], widths[-1]) for _ in range(middle))
        rising = [(2 * b, a) for a, b in reversed(pairs)]
        if wide:
            above = (*widths[1:], widths[-1])
            rising = [(a + b, b) for a, b in reversed(list(zip(above, widths, strict=True)))]
        self.up = nn.ModuleList(block(a, b) for a, b in rising)
        self.normal = nn.GroupNorm(max(1, widths[0] // GROUP), widths[0])
        self.last = zeroed(nn.Conv2d(widths[0], channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # a fifth faster on a processor

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        embedded, kept = self.embedding(noise, labels), []
        hidden = self.first(x.reshape(len(x), *_image(self.event_shape)))
        for index, block in enumerate(self.down):
            if index:
                hidden = functional.avg_pool2d(hidden, 2)
            if self.places:
                hidden = hidden + self.places[index]
            hidden = block(hidden, embedded)
            kept.append(hidden)
        for block in self.middle:
            hidden = block(hidden, embedded)
        for index, block in enumerate(self.up):
            if index:
                hidden = functional.interpolate(hidden, scale_factor=2, mode="nearest")
            hidden = block(torch.cat([hidden, kept.pop()], 1), embedded)
        return self.last(functional.silu(self.normal(hidden))).reshape(x.shape)


class _Pointwise(nn.Module):
    """A residual block within a pixel, shifted and scaled by the embedding."""

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        self.normal = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), zeroed(nn.Linear(width, width))
        self.scales = nn.Linear(embed, 2 * width)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.scales(embedded)[:, None].chunk(2, 2)
        return x + self.second(functional.silu(self.first(self.normal(x)) * (1 + scale) + shift))


@register
class Circular(Network):
    """A local network: each pixel sees the square around it, the image taken as a torus.

    One convolution of ``view`` x ``view`` with circular padding, then residual blocks within each
    pixel: local and equivariant under circular shifts. Its limit, trained to convergence on a
    finite set, is ``wb.Local(images, size=view)``.
    """

    def __init__(
        self,
        event_shape,
        classes: int = 0,
        view: Annotated[int, Param("side of the square that a pixel sees", ge=1, le=31)] = 5,
        width: Annotated[int, Param("features of a pixel", ge=1, le=1024)] = 160,
        blocks: Annotated[int, Param("residual blocks within a pixel", ge=1, le=16)] = 4,
        embed: Annotated[int, Param("features of the noise", ge=4, le=1024)] = 64,
    ) -> None:
        super().__init__(event_shape, classes, view=view, width=width, blocks=blocks, embed=embed)
        channels, height, wide = _image(self.event_shape)
        if view % 2 == 0 or view > min(height, wide):
            raise ValueError(
                f"view was {view}; for images of {height} x {wide} it must be odd and at most "
                f"{min(height, wide)}."
            )
        self.view, self.embedding = view, Embedding(embed, self.classes)
        self.first = nn.Linear(channels * view * view, width)
        self.blocks = nn.ModuleList(_Pointwise(width, embed) for _ in range(blocks))
        self.normal = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, channels))

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        embedded, radius = self.embedding(noise, labels), self.view // 2
        image = x.reshape(len(x), *_image(self.event_shape))
        padded = functional.pad(image, (radius,) * 4, mode="circular")
        hidden = self.first(functional.unfold(padded, self.view).transpose(1, 2))  # (n, pixels, .)
        for block in self.blocks:
            hidden = block(hidden, embedded)
        return self.last(functional.silu(self.normal(hidden))).transpose(1, 2).reshape(x.shape)
