// The page "Gap": ODE, SDE and truth at one noise level, the residual, and the distances; all panels
// show one level, and what is brushed on one is lit on the others.
const CSS = `:host { display: block; height: 100%; }
.wb-player { position: absolute; inset: 0; display: flex; flex-direction: column; outline: none; font: 12px/1.35 var(--wb-font); color: var(--wb-text); background: var(--wb-surface); }
.wb-player:focus-visible { box-shadow: inset 0 0 0 2px var(--wb-accent); }
.scrub { flex: none; display: flex; align-items: center; gap: 8px; padding: 5px 10px; border-bottom: 1px solid var(--wb-line); }
.scrub input { flex: 1 1 0; min-width: 60px; accent-color: var(--wb-accent); }
.scrub output { flex: none; min-width: 10.5em; font-variant-numeric: tabular-nums; }
.scrub button { font: inherit; height: 26px; padding: 0 10px; border: 1px solid var(--wb-line); border-radius: 5px; background: var(--wb-surface); color: var(--wb-text); cursor: pointer; }
.scrub button:hover { background: var(--wb-hover); } .scrub button[disabled] { opacity: .5; cursor: default; }
:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
.panels { flex: 1 1 0; min-height: 0; display: grid; gap: 1px; background: var(--wb-line); }
figure { margin: 0; min-width: 0; min-height: 0; display: flex; flex-direction: column; background: var(--wb-surface); overflow: hidden; }
figcaption { flex: none; padding: 3px 8px 0; font-weight: 600; font-size: 11.5px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
figcaption small { font-weight: 400; color: var(--wb-muted); }
canvas { flex: 1 1 0; min-height: 0; width: 100%; touch-action: none; cursor: crosshair; }
.tip { position: absolute; z-index: 5; pointer-events: none; padding: 3px 7px; border-radius: 5px; font-size: 11px; white-space: pre; background: var(--wb-text); color: var(--wb-surface); }
.tip[hidden] { display: none; }
.wait { position: absolute; inset: 0; display: grid; place-content: center; color: var(--wb-muted); } .wait[hidden] { display: none; }`;
const ODE = "#0072b2", SDE = "#d55e00", TRUTH = "#009e73", LIT = "#cc79a7";
// Viridis, eleven stops.
const STOPS = [[68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140], [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37]];
const shade = (v) => { const f = Math.min(Math.max(v, 0), 1) * 10, i = Math.min(Math.floor(f), 9), w = f - i; return STOPS[i].map((c, k) => Math.round(c + w * (STOPS[i + 1][k] - c))); };
const short = (v) => (v == null || !Number.isFinite(v) ? "–" : Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toExponential(1) : String(Number(v.toPrecision(3))));
const PAIRS = [["ODE–SDE", LIT], ["ODE–truth", ODE], ["SDE–truth", SDE]];

function unpack(view) {
  const length = view.getUint32(0, true), head = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + 4, length));
  const data = JSON.parse(head), start = view.byteOffset + 4 + length;
  const whole = new Float32Array(view.buffer.slice(start, view.byteOffset + view.byteLength));
  for (const one of Object.values(data.arrays)) one.values = whole.subarray(one.at, one.at + one.shape.reduce((a, b) => a * b, 1));
  return data;
}

export default { render({ model, el }) {
  const make = (tag, props = {}, ...inside) => { const one = Object.assign(document.createElement(tag), props); one.append(...inside); return one; };
  const root = make("div", { className: "wb-player", tabIndex: 0 });
  root.setAttribute("role", "group"); root.setAttribute("aria-label", "Gap of ODE and SDE");
  const play = make("button", { type: "button", className: "wb-play", textContent: "Play" });
  const range = make("input", { type: "range", min: 0, max: 1, step: 1, value: 0 }), told = make("output");
  range.setAttribute("aria-label", "Noise level");
  const clear = make("button", { type: "button", textContent: "Clear brush", title: "Escape" });
  const tip = make("div", { className: "tip", hidden: true }), wait = make("div", { className: "wait", textContent: "ODE, SDE and truth are being sampled …" });
  const grid = make("div", { className: "panels wb-stage" });
  root.append(make("div", { className: "scrub wb-bar wb-time" }, play, range, told, clear), grid, tip, wait);
  el.append(make("style", { textContent: CSS }), root);

  let data = null, level = 0, lit = null, timer = 0, panels = [];
  const text = (name) => getComputedStyle(root).getPropertyValue(name).trim() || "#888";

  // --- panels: each a caption and a canvas; `draw(g, w, h)` in CSS pixels
  function panel(title, note, draw, label) {
    const caption = make("figcaption", {}, title, " ", make("small", { textContent: note }));
    caption.title = `${title} ${note}`;
    const canvas = make("canvas"); canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", label ?? `${title} ${note}`);
    const one = { canvas, draw, caption, figure: make("figure", {}, caption, canvas) };
    grid.append(one.figure); panels.push(one);
    return one;
  }
  function paint(one) {
    const { canvas } = one, w = canvas.clientWidth, h = canvas.clientHeight, ratio = devicePixelRatio || 1;
    if (!w || !h) return;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio); }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0); g.clearRect(0, 0, w, h);
    g.font = "10.5px system-ui, sans-serif"; g.lineWidth = 1.5;
    one.draw(g, w, h, one);
  }
  function redraw() {
    if (!data) return;
    range.value = level;
    told.textContent = `ρ = ${short(data.rho[level])}   t = ${short(data.t[level])}`;
    range.setAttribute("aria-valuetext", told.textContent);
    clear.disabled = !lit;
    for (const one of panels) paint(one);
    root.dataset.drawn = level; root.dataset.lit = lit ? [...lit.paths].length : 0;
  }
  function layout() {
    const box = grid.getBoundingClientRect(), n = panels.length;
    if (!n || !box.width) return;
    let best = 1, most = -1;
    for (let columns = 1; columns <= n; columns++) {
      const rows = Math.ceil(n / columns), w = box.width / columns, h = box.height / rows - 20, side = Math.min(w, 1.25 * h);
      if (side > most + 2) { most = side; best = columns; }
    }
    panels.forEach((one, i) => { one.figure.style.gridColumn = i === n - 1 && n % best ? `span ${best - n % best + 1}` : ""; });
    grid.style.gridTemplate = `repeat(${Math.ceil(n / best)}, minmax(0, 1fr)) / repeat(${best}, minmax(0, 1fr))`;
    requestAnimationFrame(redraw);
  }
  function scrub(to) { level = Math.min(Math.max(to, 0), data.rho.length - 1); model.set("level", level); model.save_changes(); redraw(); }

  // --- planes
  const count = (name) => data.arrays[name].shape[1];
  const place = (name, i) => { const { values } = data.arrays[name], k = 2 * (level * count(name) + i); return [values[k], values[k + 1]]; };
  const square = (w, h) => { const side = Math.max(20, Math.min(w, h) - 6), reach = data.place.at(-1); return { side, left: (w - side) / 2, top: (h - side) / 2, reach }; };
  const toPixel = (s, [x, y]) => [s.left + (x / s.reach + 1) / 2 * s.side, s.top + (1 - y / s.reach) / 2 * s.side];
  const toPlace = (s, px, py) => [((px - s.left) / s.side * 2 - 1) * s.reach, (1 - (py - s.top) / s.side * 2) * s.reach];
  function frame(g, s) { g.strokeStyle = text("--wb-line"); g.lineWidth = 1; g.strokeRect(s.left + .5, s.top + .5, s.side - 1, s.side - 1); }
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
    const one = panel(title, note, (g, w, h, self) => {
      const s = square(w, h);
      if (name === "map") {
        const { values, shape: [, rows, columns] } = data.arrays.map, image = new ImageData(columns, rows), off = level * rows * columns;
        let high = 1e-9; for (let k = 0; k < rows * columns; k++) high = Math.max(high, values[off + k] || 0);
        for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
          const [red, green, blue] = shade(values[off + (rows - 1 - r) * columns + c] / high);
          image.data.set([red, green, blue, 255], 4 * (r * columns + c));
        }
        const small = new OffscreenCanvas(columns, rows); small.getContext("2d").putImageData(image, 0, 0);
        g.imageSmoothingEnabled = true; g.drawImage(small, s.left, s.top, s.side, s.side);
        dots(g, s, "ode", "#ffffff", 1.3);
        g.fillStyle = "#fff"; g.strokeStyle = "#000"; g.lineWidth = 2.5;
        const said = `0 to ${short(high)}`; g.strokeText(said, s.left + 5, s.top + s.side - 6); g.fillText(said, s.left + 5, s.top + s.side - 6);
      } else dots(g, s, name, color, 1.7);
      frame(g, s);
      if (self.box) { g.strokeStyle = LIT; g.setLineDash([4, 3]); g.strokeRect(...self.box); g.setLineDash([]); }
    });
    let from = null;
    const at = (event) => { const box = one.canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    one.canvas.addEventListener("pointerdown", (event) => { from = at(event); one.canvas.setPointerCapture(event.pointerId); });
    one.canvas.addEventListener("pointermove", (event) => {
      const [px, py] = at(event), s = square(one.canvas.clientWidth, one.canvas.clientHeight);
      if (!from) return hover(event, name === "map" ? mapped(s, px, py) : "");
      one.box = [Math.min(from[0], px), Math.min(from[1], py), Math.abs(px - from[0]), Math.abs(py - from[1])];
      brush(name === "map" ? "ode" : name, s, one.box);
    });
    one.canvas.addEventListener("pointerup", () => { const moved = one.box && one.box[2] + one.box[3] > 4; from = null; one.box = null; if (!moved) lit = null; redraw(); });
    one.canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
  function mapped(s, px, py) {
    const { values, shape: [, rows, columns] } = data.arrays.map, [x, y] = toPlace(s, px, py);
    const c = Math.round((x / s.reach + 1) / 2 * (columns - 1)), r = Math.round((y / s.reach + 1) / 2 * (rows - 1));
    return c < 0 || r < 0 || c >= columns || r >= rows ? "" : `residual ${short(values[(level * rows + r) * columns + c])}`;
  }
  function brush(name, s, [x, y, w, h]) {
    const inside = (which) => { const found = new Set(); for (let i = 0; i < count(which); i++) { const [px, py] = toPixel(s, place(which, i)); if (px >= x && px <= x + w && py >= y && py <= y + h) found.add(i); } return found; };
    // ODE and SDE share each start; the truth has samples of its own, so of these what lies in the same place.
    lit = { paths: name === "truth" ? inside("sde") : inside(name), truth: inside("truth") };
    redraw();
  }
  function hover(event, said) {
    tip.hidden = !said; tip.textContent = said;
    const box = root.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    tip.style.left = `${Math.min(x + 12, box.width - 170)}px`; tip.style.top = `${Math.max(y - 30, 4)}px`;
  }

  // --- images: a sheet of samples, the chosen one framed
  function sheet(name, title, note) {
    const one = panel(title, note, (g, w, h) => {
      const [, n, rows, columns] = data.arrays[name].shape, size = rows * columns, across = Math.max(2, Math.round(Math.sqrt(24 * w / h))), down = Math.max(1, Math.floor(h / (w / across)));
      const cell = Math.min(w / across, h / down), { values } = data.arrays[name], shown = Math.min(n, across * down);
      one.cell = cell; one.across = across; one.shown = shown;
      const small = new OffscreenCanvas(columns, rows), at = small.getContext("2d"), image = new ImageData(columns, rows);
      g.imageSmoothingEnabled = false;
      for (let i = 0; i < shown; i++) {
        const off = (level * n + i) * size;
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
    panel(title, note, (g, w, h) => {
      const { values, shape: [levels, radial] } = data.arrays.spectrum, left = 30, bottom = 26, wide = w - left - 8, high = h - bottom - 4;
      const most = Math.max(...values, 1e-12);
      for (let i = 0; i < levels; i++) for (let k = 0; k < radial; k++) {
        g.fillStyle = `rgb(${shade(values[i * radial + k] / most)})`;
        g.fillRect(left + i * wide / levels, 4 + high - (k + 1) * high / radial, wide / levels + .6, high / radial + .6);
      }
      g.strokeStyle = LIT; g.lineWidth = 2; g.strokeRect(left + level * wide / levels, 4, wide / levels, high);
      g.fillStyle = text("--wb-muted"); g.textAlign = "center";
      data.rho.forEach((rho, i) => { if (i % Math.ceil(levels / Math.max(2, Math.floor(wide / 48))) === 0) g.fillText(short(rho), left + (i + .5) * wide / levels, h - 13); });
      g.fillText("ρ [x]", left + wide / 2, h - 2); g.textAlign = "right";
      for (let k = 0; k < radial; k += 2) g.fillText(k, left - 4, 8 + high - (k + .5) * high / radial);
      g.textAlign = "left"; g.fillText(`0 to ${short(most)}`, left + 4, 14);
    });
  }

  // --- curves
  function axes(g, w, h, { x, y, log, ticks, label, flip }) {
    const left = 52, right = 10, top = 8, bottom = 28, wide = w - left - right, high = h - top - bottom;
    const span = (v) => (v - x[0]) / (x[1] - x[0] || 1), X = (v) => left + (flip ? 1 - span(v) : span(v)) * wide;
    const f = log ? (v) => Math.log10(Math.max(v, y[0])) : (v) => v, low = f(y[0]), up = f(y[1]);
    const Y = (v) => top + (1 - (f(v) - low) / (up - low || 1)) * high;
    g.strokeStyle = text("--wb-line"); g.fillStyle = text("--wb-muted"); g.lineWidth = 1; g.textAlign = "right"; g.textBaseline = "middle";
    const marks = log ? [...Array(Math.floor(up) - Math.ceil(low) + 1).keys()].map((k) => 10 ** (Math.ceil(low) + k)) : [0, 1, 2, 3].map((k) => y[0] + (y[1] - y[0]) * k / 3);
    const every = Math.ceil(marks.length / 5);
    marks.forEach((v, k) => { if (k % every) return; g.beginPath(); g.moveTo(left, Y(v)); g.lineTo(left + wide, Y(v)); g.stroke(); g.fillText(short(v), left - 4, Y(v)); });
    g.textAlign = "center"; g.textBaseline = "alphabetic";
    ticks.forEach(([v, said]) => { if (v >= Math.min(...x) - 1e-9 && v <= Math.max(...x) + 1e-9) g.fillText(said, X(v), h - 15); });
    g.fillText(label, left + wide / 2, h - 3);
    return { X, Y, left, wide, top, high };
  }
  function line(g, { X, Y }, xs, ys, color, dashed) {
    g.strokeStyle = color; g.lineWidth = 2; g.setLineDash(dashed ? [5, 4] : []); g.beginPath();
    let pen = false;
    ys.forEach((v, i) => { if (v == null || !Number.isFinite(v)) { pen = false; return; } if (pen) g.lineTo(X(xs[i]), Y(v)); else g.moveTo(X(xs[i]), Y(v)); pen = true; });
    g.stroke(); g.setLineDash([]);
  }
  function band(g, { X, Y, left, wide, top, high }, xs, ys, se, color) {
    g.save(); g.beginPath(); g.rect(left - 4, top, wide + 8, high); g.clip();
    g.strokeStyle = color; g.globalAlpha = .35; g.lineWidth = 5; g.beginPath();
    ys.forEach((v, i) => { if (v != null && se[i] != null) { g.moveTo(X(xs[i]), Y(v - 2 * se[i])); g.lineTo(X(xs[i]), Y(v + 2 * se[i])); } });
    g.stroke(); g.restore();
  }
  const decades = (logs) => { const found = []; const step = (Math.max(...logs) - Math.min(...logs)) > 3.5 ? 2 : 1; for (let k = Math.ceil(Math.min(...logs)); k <= Math.max(...logs); k++) if (k % step === 0) found.push([k, `10${[..."" + k].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`]); return found; };
  function cursor(g, a, x) { g.strokeStyle = text("--wb-strong"); g.lineWidth = 1; g.beginPath(); g.moveTo(a.X(x), a.top); g.lineTo(a.X(x), a.top + a.high); g.stroke(); }
  function scrubs(one, logs, flip = true) {
    const go = (event) => {
      const box = one.canvas.getBoundingClientRect(), share = (event.clientX - box.left - 52) / (box.width - 62), low = Math.min(...logs), high = Math.max(...logs);
      const at = flip ? high - share * (high - low) : low + share * (high - low);
      const all = data.rho.map(Math.log10);
      scrub(all.reduce((best, v, i) => (Math.abs(v - at) < Math.abs(all[best] - at) ? i : best), 0));
    };
    one.canvas.addEventListener("pointerdown", (event) => { one.canvas.setPointerCapture(event.pointerId); go(event); });
    one.canvas.addEventListener("pointermove", (event) => { if (event.buttons) go(event); });
  }
  function residuals() {
    const logs = data.rho.map(Math.log10);
    const one = panel("Residual over ρ", data.arrays.pointwise ? "± 2 se; of what is brushed, dashed" : "± 2 se, by random directions", (g, w, h) => {
      const subset = lit && data.arrays.pointwise ? data.rho.map((_, k) => { const { values, shape: [, L, n] } = data.arrays.pointwise; let sum = 0; for (const i of lit.paths) sum += values[(L + k) * n + i] ** 2; return lit.paths.size ? Math.sqrt(sum / lit.paths.size) : null; }) : null;
      const all = [...data.residual, ...(subset ?? [])].filter((v) => v > 0), high = 1.6 * Math.max(...all, 1e-9), low = Math.max(Math.min(...all, high / 10) / 2, high * 1e-6);
      const a = axes(g, w, h, { x: [Math.min(...logs), Math.max(...logs)], y: [low, high], log: true, ticks: decades(logs), label: "ρ [x]; noise left, data right", flip: true });
      band(g, a, logs, data.residual, data.residual_se, "#56b4e9"); line(g, a, logs, data.residual, ODE);
      if (subset) line(g, a, logs, subset, LIT, true);
      cursor(g, a, logs[level]);
    });
    scrubs(one, logs);
  }
  function attributed(name, title, note, label) {
    const c = data.attribution?.[name];
    if (!c) return;
    const byLevel = name === "level", xs = byLevel ? c.at.map(Math.log10) : c.at, axis = byLevel ? data.rho.map(Math.log10) : xs;
    const one = panel(title, note, (g, w, h) => {
      const high = 1.15 * Math.max(...c.value.map((v, i) => (v ?? 0) + 2 * (c.se[i] ?? 0)), ...c.high, ...(c.exact ?? [0]), 1e-9), low = byLevel ? 0 : Math.min(0, ...c.value);
      const pad = byLevel ? 0 : .6, a = axes(g, w, h, { x: [Math.min(...axis) - pad, Math.max(...axis) + pad], y: [low, high], ticks: byLevel ? decades(axis) : xs.filter((_, i) => i % Math.ceil(xs.length / 8) === 0).map((v) => [v, String(v)]), label, flip: byLevel });
      g.fillStyle = text("--wb-strong"); g.globalAlpha = .3;
      const wide = byLevel ? 12 : Math.max(2, a.wide / xs.length - 2);
      xs.forEach((v, i) => g.fillRect(a.X(v) - wide / 2, a.Y(c.high[i]), wide, a.Y(0) - a.Y(c.high[i]))); g.globalAlpha = 1;
      band(g, a, xs, c.value, c.se, "#56b4e9");
      if (byLevel) line(g, a, xs, c.value, ODE);
      g.fillStyle = ODE; xs.forEach((v, i) => { g.beginPath(); g.arc(a.X(v), a.Y(c.value[i] ?? 0), 3, 0, 7); g.fill(); });
      if (c.exact) line(g, a, xs, c.exact, SDE, true);
      if (byLevel) cursor(g, a, Math.log10(data.rho[level]));
    });
    if (byLevel) scrubs(one, axis);
  }
  function distances() {
    const d = data.distances, w2 = d.statistics.w2, two = d.statistics.transport ?? d.statistics.sliced, name = d.statistics.transport ? "points" : "sliced";
    const one = panel("W₂ of each pair", `● moments ○ ${name}; | exact; grey: null${d.limit == null ? "" : "; bound"}`, (g, w, h) => {
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
      g.textAlign = "center"; g.textBaseline = "alphabetic"; g.fillStyle = text("--wb-muted");
      [0, .5, 1].forEach((s) => g.fillText(short(s * most), left + s * wide, h - 3));
    });
    one.canvas.addEventListener("pointermove", (event) => {
      const box = one.canvas.getBoundingClientRect(), i = Math.floor((event.clientY - box.top) / ((box.height - 26) / (d.pairs.length + (d.limit == null ? 0 : 1))));
      hover(event, i < d.pairs.length ? `${d.pairs[i]}\n${Object.entries(d.statistics).map(([key, v]) => `${key} ${short(v.value[i])} ± ${short(v.se[i])}, p ${short(v.p[i])}`).join("\n")}` : "upper bound on ODE–SDE by the residual");
    });
    one.canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
  function consequence() {
    const c = data.consequence;
    if (!c) return;
    panel(`Closed form: ${data.error}`, "W₂ on the Gaussian with these moments; dots measured here", (g, w, h) => {
      const now = data.distances.statistics.w2, cap = 3 * Math.max(...c.w2.map((row) => row.reduce((b, v, i) => (Math.abs(c.size[i]) <= Math.max(.1, 1.5 * Math.abs(data.size)) && v != null ? Math.max(b, v) : b), 0)), ...now.value, 1e-6) / 2;
      const a = axes(g, w, h, { x: [c.size[0], c.size.at(-1)], y: [0, cap], ticks: [-.5, -.25, 0, .25, .5].map((v) => [v, String(v)]), label: "size of the error" });
      g.save(); g.beginPath(); g.rect(a.left, a.top, a.wide, a.high); g.clip();
      c.w2.forEach((row, k) => line(g, a, c.size, row, PAIRS[k][1], k > 0));
      g.restore(); cursor(g, a, data.size);
      now.value.forEach((v, k) => { g.fillStyle = PAIRS[k][1]; g.beginPath(); g.arc(a.X(data.size), a.Y(Math.min(v, cap)), 4, 0, 7); g.fill(); });
      g.textAlign = "left"; PAIRS.forEach(([said, color], k) => { g.fillStyle = color; g.fillText(said, a.left + 6, a.top + 12 + 13 * k); });
    });
  }

  // --- what came
  function show() {
    const view = model.get("data");
    if (!view || !view.byteLength) return;
    const before = data;
    data = unpack(view instanceof DataView ? view : new DataView(view));
    wait.hidden = true; lit = null; panels = []; grid.replaceChildren();
    level = before && before.rho.length === data.rho.length ? level : Math.min(model.get("level") ?? 0, data.rho.length - 1);
    if (level < 0) level = data.rho.length - 1;
    range.max = data.rho.length - 1;
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
    if (data.consequence) consequence(); else if (data.kind === "plane") attributed("mode", "Squared gap by mode", "of falling variance", "principal axis");
    if (data.kind === "image") { attributed("mode", "Squared gap by mode", "of falling variance", "principal axis"); attributed("frequency", "Squared gap by frequency", "", "radial frequency"); }
    layout();
  }
  function halt() { clearInterval(timer); timer = 0; play.textContent = "Play"; }
  function toggle() {
    if (timer) return halt();
    if (!data) return;
    if (level >= data.rho.length - 1) scrub(0);
    play.textContent = "Pause";
    timer = setInterval(() => { if (level >= data.rho.length - 1) halt(); else scrub(level + 1); }, 220);
  }
  play.addEventListener("click", toggle);
  clear.addEventListener("click", () => { lit = null; redraw(); });
  range.addEventListener("input", () => { halt(); scrub(Number(range.value)); });
  root.addEventListener("keydown", (event) => {
    if (!data || event.ctrlKey || event.metaKey || event.altKey) return;
    const own = event.composedPath()[0], moves = { ArrowLeft: level - 1, ArrowRight: level + 1, Home: 0, End: data.rho.length - 1 };
    if (event.key in moves) { event.preventDefault(); halt(); scrub(moves[event.key]); }
    else if (event.key === " " && own.tagName !== "BUTTON") { event.preventDefault(); toggle(); }
    else if (event.key === "Escape") { lit = null; redraw(); }
  });
  const sized = new ResizeObserver(layout); sized.observe(grid);
  const themed = new MutationObserver(() => redraw()); themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  model.on("change:data", show);
  show();
  return () => { halt(); sized.disconnect(); themed.disconnect(); };
} };
