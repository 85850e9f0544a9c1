"""Closed forms: what a sampler must give, known without sampling."""

from workbench.exact.law import law, w2

__all__ = ["law", "w2"]
