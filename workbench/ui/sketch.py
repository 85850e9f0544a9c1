"""Points that are drawn by hand: a pad to spray on, and an array of what was drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import param

from workbench.ui.buttons import LOOKS
from workbench.ui.component import Component

#: Half the side of the pad [x], and fewest and most points of a data set.
HALF, FEWEST, MOST = 2.2, 10, 20_000


class Sketch(Component):
    """A pad to draw points on, with the mouse, a finger or the keys.

    Attributes:
        points: places that were drawn, in [-1, 1]², right and up, one after the other: x0, y0, ...
        sent: how often they were handed over.
        note: a sentence beneath the pad.
    """

    points = param.List([])
    sent = param.Integer(0)
    note = param.String("")

    _stylesheets: ClassVar[list[str]] = [LOOKS]
    _esm = """export default { render({ model, el }) {
      const { make, send } = workbench;
      const SIDE = 300, SPRAY = 0.03, EACH = 6;
      const style = make("style", { textContent: `
        .pad { font: 13px/1.4 var(--wb-font); color: var(--wb-text); max-width: 420px; }
        canvas { width: 100%; max-width: ${SIDE}px; aspect-ratio: 1; display: block;
          touch-action: none; cursor: crosshair; border: 1px solid var(--wb-strong);
          border-radius: 6px; background: var(--wb-surface); margin: 4px 0 6px; }
        canvas:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
        button { height: 28px; margin: 0 8px 6px 0; }` });
      const pad = make("canvas", { width: 2 * SIDE, height: 2 * SIDE, tabIndex: 0,
        role: "application",
        ariaLabel: "Pad: drag to spray points; arrow keys move the brush, Space sprays" });
      const said = make("p");
      const use = make("button", { type: "button", textContent: "Train on these" });
      const clear = make("button", { type: "button", textContent: "Clear" });
      let points = [], brush = [0, 0], seed = 1;
      const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
      const normal = () => Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
      const draw = () => {
        const g = pad.getContext("2d"), look = getComputedStyle(el);
        g.clearRect(0, 0, pad.width, pad.height);
        g.fillStyle = look.getPropertyValue("--wb-accent") || "#0072b2";
        for (let i = 0; i < points.length; i += 2)
          g.fillRect((points[i] + 1) * SIDE - 2, (1 - points[i + 1]) * SIDE - 2, 4, 4);
        if (pad.matches(":focus-visible")) {
          g.strokeStyle = g.fillStyle;
          g.beginPath();
          g.arc((brush[0] + 1) * SIDE, (1 - brush[1]) * SIDE, 12, 0, 7);
          g.stroke();
        }
        said.textContent = model.get("note") || (points.length
          ? `${points.length / 2} points.` : "Drag on the pad: each move sprays a few points.");
      };
      const spray = () => {
        if (points.length < 40000)
          for (let i = 0; i < EACH; i++)
            points.push(...brush.map((v) => Math.max(-1, Math.min(1, v + SPRAY * normal()))));
        draw();
      };
      const at = (event) => {
        const box = pad.getBoundingClientRect();
        brush = [2 * (event.clientX - box.left) / box.width - 1,
          1 - 2 * (event.clientY - box.top) / box.height];
      };
      pad.addEventListener("pointerdown", (e) => {
        pad.setPointerCapture(e.pointerId);
        at(e);
        spray();
      });
      pad.addEventListener("pointermove", (e) => { if (e.buttons) { at(e); spray(); } });
      pad.addEventListener("keydown", (e) => {
        const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1],
          ArrowDown: [0, -1] }[e.key];
        if (by) brush = brush.map((v, i) => Math.max(-1, Math.min(1, v + 0.05 * by[i])));
        else if (e.key !== " ") return;
        e.preventDefault();
        e.stopPropagation();
        if (e.key === " ") spray(); else draw();
      });
      pad.addEventListener("focus", draw);
      pad.addEventListener("blur", draw);
      clear.addEventListener("click", () => { points = []; draw(); });
      use.addEventListener("click", () => {
        const places = points.map((v) => Math.round(v * 1e4) / 1e4);
        send(model, { points: places, sent: model.get("sent") + 1 });
      });
      model.on("change:note", draw);
      el.append(style, make("div", { className: "pad" }, pad, use, clear, said));
      draw();
    } }"""

    def __init__(self, on_points: Callable[[bytes], None], **params: Any) -> None:
        super().__init__(**params)
        self._on_points = on_points
        self.param.watch(lambda _: self._on_sent(), "sent")

    def _on_sent(self) -> None:
        try:
            content = points_of(self.points)
        except ValueError as error:
            self.note = str(error)
            return
        self.note = ""
        self._on_points(content)


def points_of(flat: list) -> bytes:
    """An .npy file of points (n, 2) that were drawn on a pad.

    Args:
        flat: x0, y0, x1, y1, ... in [-1, 1].

    Raises:
        ValueError: too few, too many, or what are no points.
    """
    try:
        points = np.array(flat, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise ValueError("what was drawn are no points; draw them anew.") from None
    if not FEWEST <= len(points) <= MOST or not np.isfinite(points).all():
        raise ValueError(f"{len(points)} points were drawn; {FEWEST} to {MOST} are needed.")
    file = io.BytesIO()
    np.save(file, np.clip(points, -1, 1) * HALF)
    return file.getvalue()
