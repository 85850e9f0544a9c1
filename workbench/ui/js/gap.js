// The page "Gap": ODE, SDE and truth at one noise level, the residual, and the distances; all panels
// show one level, and what is brushed on one is lit on the others.
const ODE = BLUE, SDE = VERMILION, TRUTH = GREEN, LIT = PURPLE;
const PAIRS = [["ODE–SDE", LIT], ["ODE–truth", ODE], ["SDE–truth", SDE]];

export default { render({ model, el }) {
  let data = null, lit = null, page = null;
  const clear = make("button", { type: "button", textContent: "Clear brush", title: "Escape", disabled: true });
  const text = (name) => page.text(name), redraw = () => page.redraw();

  // What the colours of a map span, legible on all of them.
  function span(g, most, x, y) {
    const said = `0 to ${short(most)}`;
    g.fillStyle = "#fff"; g.strokeStyle = "#000"; g.lineWidth = 2.5;
    g.strokeText(said, x, y); g.fillText(said, x, y);
  }

  // --- planes
  const count = (name) => data.arrays[name].shape[1];
  const place = (name, i) => { const { values } = data.arrays[name], k = 2 * (page.level * count(name) + i); return [values[k], values[k + 1]]; };
  const room = (w, h) => ({ ...square(w, h), reach: data.place.at(-1) });
  const toPixel = (s, [x, y]) => [s.left + (x / s.reach + 1) / 2 * s.side, s.top + (1 - y / s.reach) / 2 * s.side];
  const toPlace = (s, px, py) => [((px - s.left) / s.side * 2 - 1) * s.reach, (1 - (py - s.top) / s.side * 2) * s.reach];
  function dots(g, s, name, color, radius) {
    const chosen = lit && (name === "truth" ? lit.truth : lit.paths);
    g.save(); g.beginPath(); g.rect(s.left, s.top, s.side, s.side); g.clip();
    for (const pass of lit ? [false, true] : [true]) {
      g.fillStyle = lit ? (pass ? LIT : text("--wb-strong")) : color; g.globalAlpha = pass ? .85 : .3;
      for (let i = 0; i < count(name); i++) {
        if (lit && chosen.has(i) !== pass) continue;
        const [px, py] = toPixel(s, place(name, i));
        g.beginPath(); g.arc(px, py, pass && lit ? radius + .6 : radius, 0, 7); g.fill();
      }
    }
    g.restore();
  }
  function plane(name, title, note, color) {
    const one = page.panel(title, note, (g, w, h, self) => {
      const s = room(w, h);
      if (name === "map") {
        const { values, shape: [, rows, columns] } = data.arrays.map, off = page.level * rows * columns;
        let high = 1e-9; for (let k = 0; k < rows * columns; k++) high = Math.max(high, values[off + k] || 0);
        const small = raster(rows, columns, (r, c) => [...shade(values[off + (rows - 1 - r) * columns + c] / high), 255]);
        g.imageSmoothingEnabled = true; g.drawImage(small, s.left, s.top, s.side, s.side);
        dots(g, s, "ode", "#ffffff", 1.3);
        span(g, high, s.left + 5, s.top + s.side - 6);
      } else dots(g, s, name, color, 1.7);
      page.outline(g, s);
      if (self.box) { g.strokeStyle = LIT; g.setLineDash([4, 3]); g.strokeRect(...self.box); g.setLineDash([]); }
    });
    let from = null;
    const at = (event) => { const box = one.canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    one.canvas.addEventListener("pointerdown", (event) => { from = at(event); one.canvas.setPointerCapture(event.pointerId); });
    one.canvas.addEventListener("pointermove", (event) => {
      const [px, py] = at(event), s = room(one.canvas.clientWidth, one.canvas.clientHeight);
      if (!from) return page.hover(event, name === "map" ? mapped(s, px, py) : "");
      one.box = [Math.min(from[0], px), Math.min(from[1], py), Math.abs(px - from[0]), Math.abs(py - from[1])];
      brush(name === "map" ? "ode" : name, s, one.box);
    });
    one.canvas.addEventListener("pointerup", () => { const moved = one.box && one.box[2] + one.box[3] > 4; from = null; one.box = null; if (!moved) lit = null; redraw(); });
  }
  function mapped(s, px, py) {
    const { values, shape: [, rows, columns] } = data.arrays.map, [x, y] = toPlace(s, px, py);
    const c = Math.round((x / s.reach + 1) / 2 * (columns - 1)), r = Math.round((y / s.reach + 1) / 2 * (rows - 1));
    return c < 0 || r < 0 || c >= columns || r >= rows ? "" : `residual ${short(values[(page.level * rows + r) * columns + c])}`;
  }
  function brush(name, s, [x, y, w, h]) {
    const inside = (which) => { const found = new Set(); for (let i = 0; i < count(which); i++) { const [px, py] = toPixel(s, place(which, i)); if (px >= x && px <= x + w && py >= y && py <= y + h) found.add(i); } return found; };
    // ODE and SDE share each start; the truth has samples of its own, so of these what lies in the same place.
    lit = { paths: name === "truth" ? inside("sde") : inside(name), truth: inside("truth") };
    redraw();
  }
  // --- images: a sheet of samples, the chosen one framed
  function sheet(name, title, note) {
    const one = page.panel(title, note, (g, w, h) => {
      const [, n, rows, columns] = data.arrays[name].shape, size = rows * columns, across = Math.max(2, Math.round(Math.sqrt(24 * w / h))), down = Math.max(1, Math.floor(h / (w / across)));
      const cell = Math.min(w / across, h / down), { values } = data.arrays[name], shown = Math.min(n, across * down);
      one.cell = cell; one.across = across; one.shown = shown;
      const small = new OffscreenCanvas(columns, rows), at = small.getContext("2d"), image = new ImageData(columns, rows);
      g.imageSmoothingEnabled = false;
      for (let i = 0; i < shown; i++) {
        const off = (page.level * n + i) * size;
        for (let k = 0; k < size; k++) { const v = Math.round(127.5 * (1 + Math.min(Math.max(values[off + k], -1), 1))); image.data.set([v, v, v, 255], 4 * k); }
        at.putImageData(image, 0, 0);
        const x = (i % across) * cell, y = Math.floor(i / across) * cell;
        g.globalAlpha = lit && name !== "truth" && !lit.paths.has(i) ? .35 : 1;
        g.drawImage(small, x + 1, y + 1, cell - 2, cell - 2); g.globalAlpha = 1;
        if (lit && name !== "truth" && lit.paths.has(i)) { g.strokeStyle = LIT; g.lineWidth = 2; g.strokeRect(x + 1, y + 1, cell - 2, cell - 2); }
      }
    });
    one.canvas.addEventListener("pointerdown", (event) => {
      const box = one.canvas.getBoundingClientRect(), i = Math.floor((event.clientY - box.top) / one.cell) * one.across + Math.floor((event.clientX - box.left) / one.cell);
      if (i < 0 || i >= one.shown || name === "truth") return;
      const paths = new Set(lit?.paths ?? []); if (paths.has(i)) paths.delete(i); else paths.add(i);
      lit = paths.size ? { paths, truth: new Set() } : null; redraw();
    });
  }
  function heat(title, note) {
    page.panel(title, note, (g, w, h) => {
      const { values, shape: [levels, radial] } = data.arrays.spectrum, left = 30, bottom = 26, wide = w - left - 8, high = h - bottom - 4;
      const most = Math.max(...values, 1e-12);
      for (let i = 0; i < levels; i++) for (let k = 0; k < radial; k++) {
        g.fillStyle = `rgb(${shade(values[i * radial + k] / most)})`;
        g.fillRect(left + i * wide / levels, 4 + high - (k + 1) * high / radial, wide / levels + .6, high / radial + .6);
      }
      g.strokeStyle = LIT; g.lineWidth = 2; g.strokeRect(left + page.level * wide / levels, 4, wide / levels, high);
      g.fillStyle = text("--wb-muted"); g.textAlign = "center";
      data.rho.forEach((rho, i) => { if (i % Math.ceil(levels / Math.max(2, Math.floor(wide / 48))) === 0) g.fillText(short(rho), left + (i + .5) * wide / levels, h - 13); });
      g.fillText("ρ [x]", left + wide / 2, h - 2); g.textAlign = "right";
      for (let k = 0; k < radial; k += 2) g.fillText(k, left - 4, 8 + high - (k + .5) * high / radial);
      g.textAlign = "left"; span(g, most, left + 4, 16);
    });
  }

  // --- curves
  function residuals() {
    const logs = data.rho.map(Math.log10);
    const one = page.panel("Residual over ρ", data.arrays.pointwise ? "± 2 se; of what is brushed, dashed" : "± 2 se, by random directions", (g, w, h) => {
      const subset = lit && data.arrays.pointwise ? data.rho.map((_, k) => { const { values, shape: [, L, n] } = data.arrays.pointwise; let sum = 0; for (const i of lit.paths) sum += values[(L + k) * n + i] ** 2; return lit.paths.size ? Math.sqrt(sum / lit.paths.size) : null; }) : null;
      const all = [...data.residual, ...(subset ?? [])].filter((v) => v > 0), high = 1.6 * Math.max(...all, 1e-9), low = Math.max(Math.min(...all, high / 10) / 2, high * 1e-6);
      const a = page.axes(g, w, h, { x: [Math.min(...logs), Math.max(...logs)], y: [low, high], log: true, ticks: decades(logs), label: "ρ [x]; noise left, data right", flip: true });
      page.band(g, a, logs, data.residual, data.residual_se, "#56b4e9"); page.line(g, a, logs, data.residual, ODE);
      if (subset) page.line(g, a, logs, subset, LIT, true);
      page.cursor(g, a, logs[page.level]);
    });
    page.scrubs(one);
  }
  function attributed(name, title, note, label) {
    const c = data.attribution?.[name];
    if (!c) return;
    const byLevel = name === "level", xs = byLevel ? c.at.map(Math.log10) : c.at, axis = byLevel ? data.rho.map(Math.log10) : xs;
    const one = page.panel(title, note, (g, w, h) => {
      const high = 1.15 * Math.max(...c.value.map((v, i) => (v ?? 0) + 2 * (c.se[i] ?? 0)), ...c.high, ...(c.exact ?? [0]), 1e-9), low = byLevel ? 0 : Math.min(0, ...c.value.map((v, i) => (v ?? 0) - 2 * (c.se[i] ?? 0)));
      const pad = byLevel ? 0 : .6, a = page.axes(g, w, h, { x: [Math.min(...axis) - pad, Math.max(...axis) + pad], y: [low, high], ticks: byLevel ? decades(axis) : xs.filter((_, i) => i % Math.ceil(xs.length / Math.min(8, Math.max(2, (w - 60) / 22))) === 0).map((v) => [v, String(v)]), label, flip: byLevel });
      g.fillStyle = text("--wb-strong"); g.globalAlpha = .3;
      const wide = byLevel ? 12 : Math.max(2, a.wide / xs.length - 2);
      xs.forEach((v, i) => g.fillRect(a.X(v) - wide / 2, a.Y(c.high[i]), wide, a.Y(0) - a.Y(c.high[i]))); g.globalAlpha = 1;
      page.band(g, a, xs, c.value, c.se, "#56b4e9");
      if (byLevel) page.line(g, a, xs, c.value, ODE);
      g.fillStyle = ODE; xs.forEach((v, i) => { g.beginPath(); g.arc(a.X(v), a.Y(c.value[i] ?? 0), 3, 0, 7); g.fill(); });
      if (c.exact) page.line(g, a, xs, c.exact, SDE, true);
      if (byLevel) page.cursor(g, a, Math.log10(data.rho[page.level]));
    });
    if (byLevel) page.scrubs(one);
  }
  function distances() {
    const d = data.distances, w2 = d.statistics.w2, two = d.statistics.transport ?? d.statistics.sliced, name = d.statistics.transport ? "points" : "sliced";
    const one = page.panel("W₂ of each pair", `● moments ○ ${name}; | exact; grey: null${d.limit == null ? "" : "; bound"}`, (g, w, h) => {
      const left = 64, right = 12, wide = w - left - right, rows = d.pairs.length + (d.limit == null ? 0 : 1), step = (h - 26) / rows;
      const most = 1.2 * Math.max(...w2.value.map((v, i) => v + 2 * (w2.se[i] ?? 0)), ...w2.high, ...(w2.exact ?? [0]), ...two.value, 1e-9), X = (v) => left + Math.min(v / most, 1.03) * wide;
      g.textBaseline = "middle";
      d.pairs.forEach((pair, i) => {
        const y = (i + .5) * step, color = PAIRS[i][1];
        g.fillStyle = text("--wb-muted"); g.globalAlpha = .3; g.fillRect(left, y - step * .3, X(w2.high[i]) - left, step * .6); g.globalAlpha = 1;
        g.fillStyle = text("--wb-text"); g.textAlign = "right"; g.fillText(pair.replace(" and ", "–"), left - 5, y);
        g.strokeStyle = color; g.globalAlpha = .45; g.lineWidth = 5; g.beginPath();
        if (w2.se[i] != null) { g.moveTo(X(Math.max(0, w2.value[i] - 2 * w2.se[i])), y); g.lineTo(X(w2.value[i] + 2 * w2.se[i]), y); } g.stroke(); g.globalAlpha = 1;
        g.fillStyle = color; g.beginPath(); g.arc(X(w2.value[i]), y, 4, 0, 7); g.fill();
        g.strokeStyle = color; g.lineWidth = 1.5; g.beginPath(); g.arc(X(two.value[i]), y + 7, 3, 0, 7); g.stroke();
        if (w2.exact) { g.strokeStyle = text("--wb-text"); g.lineWidth = 2; g.beginPath(); g.moveTo(X(w2.exact[i]), y - 8); g.lineTo(X(w2.exact[i]), y + 8); g.stroke(); }
      });
      if (d.limit != null) { const y = (rows - .5) * step; g.fillStyle = text("--wb-text"); g.textAlign = "right"; g.fillText("at most", left - 5, y); g.textAlign = "left"; g.strokeStyle = text("--wb-bad"); g.lineWidth = 2; g.beginPath(); g.moveTo(left, y); g.lineTo(X(d.limit), y); g.stroke(); g.fillText(`${short(d.limit)}${d.limit > most ? " →" : ""}`, left + 6, y - 8); }
      g.textBaseline = "alphabetic"; g.fillStyle = text("--wb-muted");
      [0, .5, 1].forEach((s) => { g.textAlign = s === 1 ? "right" : "center"; g.fillText(short(s * most), s === 1 ? w - 3 : left + s * wide, h - 3); });
    });
    const told = (i) => (i < d.pairs.length ? `${d.pairs[i]}\n${Object.entries(d.statistics).map(([key, v]) => `${key} ${short(v.value[i])} ± ${short(v.se[i])}, p ${short(v.p[i])}`).join("\n")}` : "upper bound on ODE–SDE by the residual");
    page.pointed(one, (x, y, w, h) => Math.floor(y / ((h - 26) / (d.pairs.length + (d.limit == null ? 0 : 1)))), told);
  }
  function consequence() {
    const c = data.consequence;
    if (!c) return;
    page.panel(`Closed form: ${data.error}`, "W₂ on the Gaussian with these moments; dots measured here", (g, w, h) => {
      const now = data.distances.statistics.w2, cap = 3 * Math.max(...c.w2.map((row) => row.reduce((b, v, i) => (Math.abs(c.size[i]) <= Math.max(.1, 1.5 * Math.abs(data.size)) && v != null ? Math.max(b, v) : b), 0)), ...now.value, 1e-6) / 2;
      const a = page.axes(g, w, h, { x: [c.size[0], c.size.at(-1)], y: [0, cap], ticks: [-.5, -.25, 0, .25, .5].map((v) => [v, String(v)]), label: "size of the error" });
      g.save(); g.beginPath(); g.rect(a.left, a.top, a.wide, a.high); g.clip();
      c.w2.forEach((row, k) => page.line(g, a, c.size, row, PAIRS[k][1], k > 0));
      g.restore(); page.cursor(g, a, data.size);
      now.value.forEach((v, k) => { g.fillStyle = PAIRS[k][1]; g.beginPath(); g.arc(a.X(data.size), a.Y(Math.min(v, cap)), 4, 0, 7); g.fill(); });
      g.textAlign = "left"; PAIRS.forEach(([said, color], k) => { g.fillStyle = color; g.fillText(said, a.left + 6, a.top + 12 + 13 * k); });
    });
  }
  // Networks by the weight of their penalty, the one on the bench marked; over its logarithm, 0 at the left.
  function penalties() {
    const p = data.penalties, at = p.weights.map((v) => (v > 0 ? Math.log10(v) : Math.log10(p.weights.find((one) => one > 0)) - 1));
    const one = page.panel("Gap by penalty's weight", `squared W₂, 95 % over ${p.over}`, (g, w, h) => {
      const ends = p.square.flatMap((row, k) => row.flatMap((v, i) => [v - p.half[k][i], v + p.half[k][i]])), high = 1.1 * Math.max(...ends, 1e-9), low = Math.min(0, ...ends);
      const a = page.axes(g, w, h, { x: [at[0] - .3, at.at(-1) + .3], y: [low, high], ticks: at.map((v, i) => [v, String(p.weights[i])]), label: "weight of the penalty" });
      if (p.now != null) page.cursor(g, a, at[p.now]);
      p.square.forEach((row, k) => {
        const color = PAIRS[k][1], xs = at.map((v) => v + .07 * (k - 1));
        page.band(g, a, xs, row, p.half[k].map((v) => v / 2), color); page.line(g, a, xs, row, color);
        g.fillStyle = color; row.forEach((v, i) => { g.beginPath(); g.arc(a.X(xs[i]), a.Y(v), 3, 0, 7); g.fill(); });
      });
      g.textAlign = "left"; PAIRS.forEach(([said, color], k) => { g.fillStyle = color; g.fillText(said, a.left + 6, a.top + 12 + 13 * k); });
    });
    one.canvas.addEventListener("pointermove", (event) => page.hover(event, p.said.join("\n")));
  }

  function build(self) {
    page = self; data = self.data; lit = null;
    const eta = data.eta === 1 ? "reverse SDE" : `SDE, η = ${short(data.eta)}`;
    if (data.kind === "plane") {
      plane("map", "Residual", "of the noise prediction, with the ODE");
      plane("ode", "ODE", "probability flow", ODE); plane("sde", "SDE", `${eta}, same noise`, SDE); plane("truth", "Truth", "", TRUTH);
    } else {
      if (data.arrays.spectrum) heat("Residual", "by radial frequency and ρ");
      if (data.arrays.ode.shape.length === 4) { sheet("ode", "ODE", "probability flow"); sheet("sde", "SDE", `${eta}, same noise`); sheet("truth", "Truth", ""); }
    }
    residuals();
    attributed("level", "Gap by noise level", "ODE to a run with noise above ρ only; dashed: exact", "noise stops at ρ [x]");
    distances();
    if (data.consequence) consequence(); else if (data.penalties) penalties(); else if (data.kind === "plane") attributed("mode", "Squared gap by mode", "of falling variance", "principal axis");
    if (data.kind === "image") { attributed("mode", "Squared gap by mode", "of falling variance", "principal axis"); attributed("frequency", "Squared gap by frequency", "", "radial frequency"); }
  }
  clear.addEventListener("click", () => { lit = null; redraw(); });
  return panels({
    model, el, label: "Gap of ODE and SDE", extra: [clear], even: true, build,
    drawn(self) { clear.disabled = !lit; self.root.dataset.lit = lit ? lit.paths.size : 0; },
    keys(event) { if (event.key !== "Escape") return false; lit = null; redraw(); return true; },
  }).end;
} };
