"""The index of a report: one page that says how each notebook went."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.studies.report import Outcome

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent);
  --soft: color-mix(in srgb, currentColor 66%, transparent);
  --good: light-dark(#00695c, #4db6ac); --bad: light-dark(#b3261e, #ff8a80); }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 28px 18px 60px; max-width: 980px; line-height: 1.5;
  font-family: system-ui, sans-serif; background: light-dark(#fff, #16181c);
  color: light-dark(#1b1d22, #e6e7ea); }}
h1 {{ font-size: 1.5rem; margin: 0; }}
h2 {{ font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }}
p {{ margin: 0; }}
a {{ color: inherit; }}
.lead {{ color: var(--soft); margin: 2px 0 22px; }}
article {{ display: grid; grid-template-columns: 240px minmax(0, 1fr); gap: 20px; padding: 20px 0;
  border-top: 1px solid var(--line); }}
.figure {{ background: #fff; border: 1px solid var(--line); border-radius: 6px; overflow: hidden;
  aspect-ratio: 16 / 10; position: relative; display: grid; place-items: center;
  align-self: start; color: #666; font-size: .85rem; }}
.figure img {{ position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }}
.head {{ display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; }}
.status {{ font-weight: 600; }}
.ok .status {{ color: var(--good); }}
.failed .status {{ color: var(--bad); }}
.facts {{ color: var(--soft); font-size: .9rem; font-variant-numeric: tabular-nums; }}
dl {{ display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 8px 0; font-size: .9rem; }}
dl div {{ display: flex; gap: 6px; min-width: 0; }}
dt {{ color: var(--soft); }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
.wrong {{ color: var(--bad); margin: 8px 0; overflow-wrap: anywhere; }}
pre {{ margin: 8px 0; padding: 10px 12px; border: 1px solid var(--line); border-radius: 6px;
  font-size: .8rem; line-height: 1.45; overflow: auto; max-height: 22em; }}
details {{ margin: 6px 0; font-size: .9rem; }}
summary {{ cursor: pointer; }}
.links {{ display: flex; gap: 16px; font-size: .95rem; margin-top: 8px; }}
@media (max-width: 640px) {{ article {{ grid-template-columns: minmax(0, 1fr); gap: 12px; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{articles}
</body>
</html>
"""


def index_page(outcomes: Sequence[Outcome], shown: Collection[str] = ()) -> str:
    """The page of ``outcomes``; those named in ``shown`` have a page of their own to link to."""
    failed = sum(not outcome.ok for outcome in outcomes)
    count = f"{len(outcomes)} notebook{'s' * (len(outcomes) != 1)}"
    lead = f"{count}: {failed} failed." if failed else f"{count}: all well."
    # What failed stands first.
    ordered = sorted(outcomes, key=lambda outcome: outcome.ok)
    articles = "\n".join(_article(outcome, outcome.name in shown) for outcome in ordered)
    return PAGE.format(title="Notebooks", lead=lead, articles=articles)


def _article(outcome: Outcome, linked: bool) -> str:
    title, name = escape(outcome.title), escape(outcome.name)
    figure = "no figure"
    if outcome.figure:
        figure = f'<img src="{escape(outcome.figure)}" alt="First figure of {title}">'
    if linked:
        title = f'<a href="{name}.html">{title}</a>'
    rows = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in outcome.parameters.items()
    )
    status = "ok" if outcome.ok else "failed"
    links = (
        f'<p class="links"><a href="{name}.html">Page</a><a href="{name}.ipynb">Notebook</a></p>'
        if linked
        else ""
    )
    return f"""<article class="{status}">
<div class="figure">{figure}</div>
<div>
<div class="head"><h2>{title}</h2><span class="status">{status}</span>
<span class="facts">{outcome.seconds:.1f} s</span></div>
{f"<dl>{rows}</dl>" if rows else '<p class="facts">default parameters</p>'}
{"" if outcome.ok else _failure(outcome)}
{links}
</div>
</article>"""


def _failure(outcome: Outcome) -> str:
    where = f"{escape(outcome.cell)}: " if outcome.cell else ""
    parts = [f'<p class="wrong">{where}{escape(outcome.error)}</p>']
    if outcome.source:
        parts.append(f"<pre>{escape(outcome.source)}</pre>")
    if outcome.traceback:
        told = escape(outcome.traceback)
        parts.append(f"<details><summary>Traceback</summary><pre>{told}</pre></details>")
    return "\n".join(parts)
