r"""Formulas in a text as HTML that any browser draws offline, each symbol with what it means.

A small part of LaTeX between dollar signs: names of Greek letters, ``_`` and ``^``, ``\sqrt{}``,
``\log``, ``\mathrm{}``. Everything else stands as it is written.
"""

from __future__ import annotations

import re
from html import escape

#: What a symbol means, wherever it stands.
SYMBOLS = {
    "ρ": "noise level in units of the data, ρ = σ/α",
    "α": "factor of the data in the noised state x = α x₀ + σ ε",
    "σ": "standard deviation of the noise in x = α x₀ + σ ε",
    "t": "process time; it grows towards noise",
    "x": "noised state, x = α x₀ + σ ε",
    "v": "variance of the data per coordinate",
    "λ": "variance of a mode: an eigenvalue of the data's covariance",
    "p": "density of the noised state",
    "D": "denoised state: the posterior mean E[x₀ | x]",
    "W": "Wasserstein distance",
    "η": "0 is the probability flow, 1 the reverse SDE",
}

#: Characters by their names in LaTeX.
GREEK = {
    **{"alpha": "α", "beta": "β", "epsilon": "ε", "eta": "η", "lambda": "λ", "mu": "μ", "rho": "ρ"},
    **{"sigma": "σ", "tau": "τ", "times": "×", "cdot": "·", "le": "≤", "ge": "≥", "infty": "∞"},
}

PIECE = re.compile(r"\\([A-Za-z]+)|([_^])|(\{)|(\})|(\s+)|(.)", re.S)


def formulas(text: str) -> str:
    """``text`` with each ``$formula$`` as HTML."""
    return re.sub(r"\$([^$]+)\$", lambda found: formula(found[1]), text)


def formula(source: str) -> str:
    """A formula as HTML: letters slanted, indices lowered, each known symbol with its meaning."""
    tokens = PIECE.findall(source)
    html, rest = _row(tokens, 0)
    assert rest == len(tokens)
    return f'<span style="white-space:nowrap;font-family:var(--wb-math,serif)">{html}</span>'


def _row(tokens: list, at: int) -> tuple[str, int]:
    """HTML of the tokens up to a closing brace, and where that is."""
    parts = []
    while at < len(tokens) and not tokens[at][3]:
        _, script, *_ = tokens[at]
        if script:
            inner, at = _one(tokens, at + 1)
            tag = "sub" if script == "_" else "sup"
            parts.append(f'<{tag} style="line-height:0">{inner}</{tag}>')
        else:
            inner, at = _one(tokens, at)
            parts.append(inner)
    return "".join(parts), at


def _one(tokens: list, at: int) -> tuple[str, int]:
    """HTML of one token or one group, and what comes after it."""
    if at >= len(tokens):
        return "", at
    name, _, opens, _, space, character = tokens[at]
    if opens:
        inner, at = _row(tokens, at + 1)
        return inner, at + 1
    if name == "sqrt":
        inner, at = _one(tokens, at + 1)
        return f'√<span style="border-top:1px solid currentColor">{inner}</span>', at
    if name in ("mathrm", "text"):
        inner, at = _one(tokens, at + 1)
        return re.sub(r"</?i[^>]*>", "", inner), at
    if name:
        return (_symbol(GREEK[name]) if name in GREEK else f"{escape(name)} "), at + 1
    if space:
        return "", at + 1
    if character.isalpha():
        return _symbol(character), at + 1
    spaced = {"=": " = ", "+": " + ", "-": " − ", "<": " &lt; ", ">": " &gt; ", "|": " | "}
    return spaced.get(character, escape(character)), at + 1


def _symbol(letter: str) -> str:
    if not letter.isalpha():
        return f" {letter} "
    meaning = SYMBOLS.get(letter)
    told = f' title="{escape(meaning, quote=True)}" data-symbol="{letter}"' if meaning else ""
    return f"<i{told}>{letter}</i>"
