// Bands of a picture over the noise level: a heat map, when each band emerges, and the pictures.
const BANDS_CSS = `
:host { display: block; }
.wb-bands { display: grid; grid-template-columns: minmax(0, 1fr) minmax(230px, 34%); gap: 0 14px; box-sizing: border-box;
  height: max(350px, 100cqh - 2px); padding: 2px 10px 6px; font: 13px/1.4 var(--wb-font); color: var(--wb-text); }
.wb-bands[hidden], .wb-empty[hidden] { display: none; }
.wb-empty { height: max(350px, 100cqh - 2px); display: grid; place-content: center; font: 13px/1.4 var(--wb-font); color: var(--wb-muted); }
.wb-bands.plain { grid-template-columns: minmax(0, 1fr); }
.wb-left, .wb-right { display: flex; flex-direction: column; min-width: 0; min-height: 0; }
.wb-tools { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 12px; min-height: 30px; }
.wb-tools select, .wb-tools button { font: inherit; height: 26px; padding: 0 8px; border: 1px solid var(--wb-strong); border-radius: 5px;
  background: var(--wb-surface); color: var(--wb-text); cursor: pointer; }
.wb-tools :is(select, button):focus-visible, .wb-plot:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
.wb-tools label { color: var(--wb-muted); }
.wb-read { min-height: 36px; font-variant-numeric: tabular-nums; }
.wb-plot { flex: 1 1 0; min-height: 0; position: relative; touch-action: pan-y; }
.wb-plot svg { display: block; width: 100%; height: 100%; position: absolute; inset: 0; }
.wb-plot text { font: 11px var(--wb-font); fill: var(--wb-muted); }
.wb-plot text.band { fill: var(--wb-text); } .wb-plot text.chosen { font-weight: 700; fill: var(--wb-accent); }
.wb-plot :is(text, tspan).known { fill: var(--wb-muted); font-weight: 400; }
.wb-right[hidden] { display: none; }
.wb-right p { margin: 6px 0; color: var(--wb-muted); }
.wb-right h3 { font: 600 12px/1.3 var(--wb-font); margin: 6px 0 3px; }
.wb-right canvas { display: block; max-width: 100%; image-rendering: pixelated; border: 1px solid var(--wb-line); box-sizing: border-box; }
.wb-row { display: grid; grid-template-columns: 74px minmax(0, 1fr); align-items: center; gap: 4px; margin-bottom: 3px; color: var(--wb-muted); font-size: 12px; }
.wb-chosen { flex: 1 1 0; min-height: 0; overflow: auto; }
`;
const NS = "http://www.w3.org/2000/svg";
// Right of plots that are wide enough [px]: the scale of the colours, and the noise levels as numbers.
const MARGIN = 122;
const NAMES = { emerged: "share that has emerged", gain: "gain of the denoiser", coherence: "coherence of state and denoised state" };
const TITLES = { octaves: "cycles per shorter side", rings: "cycles per shorter side", wavelets: "level of the wavelet", coordinates: "coordinate" };

const svg = (tag, props = {}, ...inside) => {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(props)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
};
const viridis = (v) => `rgb(${shade(v).join()})`;
const percent = (v) => (Number.isFinite(v) ? `${(100 * v).toFixed(v < 0.0995 ? 1 : 0)} %` : "–");

export default { render({ model, el }) {
  const style = make("style", { textContent: BANDS_CSS });
  const quantity = make("select"), say = make("div", { className: "wb-read", ariaLive: "polite" });
  const legend = make("span");
  const heat = make("div", { className: "wb-plot", tabIndex: 0, role: "application",
    ariaLabel: "Heat map of bands over the noise level. Left and right arrow: noise level; up and down: band; Home and End: noise and data." });
  const times = make("div", { className: "wb-plot", tabIndex: -1, role: "img", ariaLabel: "When each band emerges: 10, 50 and 90 percent, and single samples." });
  heat.style.flexGrow = 5; times.style.flexGrow = 4;
  const button = (text, pick) => { const one = make("button", { type: "button", textContent: text }); one.addEventListener("click", pick); return one; };
  const early = button("Earliest 8", () => outliers(true)), late = button("Latest 8", () => outliers(false)), none = button("None", () => { brush = null; choose([]); });
  const left = make("div", { className: "wb-left" },
    make("div", { className: "wb-tools" }, make("label", {}, "Shown ", quantity), legend), heat, say,
    make("div", { className: "wb-tools" }, make("span", { textContent: "Samples of this band:" }), early, late, none), times);
  const now = make("div"), chosen = make("div", { className: "wb-chosen" });
  const right = make("div", { className: "wb-right" }, now, chosen);
  const box = make("div", { className: "wb-bands" }, left, right), wait = make("div", { className: "wb-empty", textContent: "Nothing to show yet." });
  box.hidden = true;
  el.append(style, box, wait);

  let seen = null, cell = { band: 0, time: 0 }, held = false, picked = [], scale = null, brush = null;

  const value = (name, band, time) => { const a = seen.arrays[name]; return a ? a.values[band * a.shape[1] + time] : NaN; };
  const at3 = (name, band, k, end = 0) => { const a = seen.arrays[name]; if (!a) return NaN; const w = a.shape[2] ?? 1; return a.values[(band * a.shape[1] + k) * w + end]; };
  const own = (sample, band) => seen.arrays.own.values[sample * seen.bands.length + band];

  function load() {
    const came = received(model, "data");
    if (!came) return;
    seen = came;
    box.hidden = false;
    wait.hidden = true;
    const names = Object.keys(NAMES).filter((name) => seen.arrays[name]);
    quantity.replaceChildren(...names.map((name) => make("option", { value: name, textContent: NAMES[name] })));
    const [name, ...rest] = model.get("look").split(" "), band = seen.bands.indexOf(rest.join(" ")), time = model.get("level");
    quantity.value = names.includes(name) ? name : names[0];
    const middle = seen.rho.findIndex((v) => v <= at3("rho_power", Math.floor(seen.bands.length / 2), 1));
    cell = { band: band >= 0 ? band : Math.floor(seen.bands.length / 2),
      time: time >= 0 && time < seen.rho.length ? time : Math.max(0, middle) };
    picked = [];
    brush = null;
    box.classList.toggle("plain", !seen.arrays.passed);
    right.hidden = !seen.arrays.passed;
    draw();
  }

  // Places: noise on the left, low bands beneath.
  function layout(host, bottom, y0 = 6) {
    const width = host.clientWidth, height = host.clientHeight, roomy = width >= 300;
    const x0 = 48, x1 = Math.max(x0 + 20, width - (roomy ? MARGIN : 12)), y1 = height - bottom;
    const u = seen.rho.map((v) => Math.log10(v)), first = u[0], last = u[u.length - 1], span = first - last || 1;
    const x = (log) => x0 + ((first - log) / span) * (x1 - x0), n = seen.bands.length, step = Math.max(0.5, (y1 - y0) / n);
    const edges = u.map((v, i) => (i ? x((v + u[i - 1]) / 2) : x0)).concat([x1]);
    return { width, height, roomy, x0, x1, y0, y1, x, edges, step, first, last, y: (band) => y1 - (band + 0.5) * step };
  }
  function frame(p, root, below) {
    const every = Math.max(1, Math.ceil(13 / p.step));
    seen.bands.forEach((name, band) => {
      if (band % every && band !== cell.band) return;
      root.append(svg("text", { x: p.x0 - 6, y: p.y(band) + 4, "text-anchor": "end", class: band === cell.band ? "band chosen" : "band" }, name));
    });
    if (!below) return;
    for (let e = Math.ceil(p.last); e <= p.first; e++) {
      root.append(svg("line", { x1: p.x(e), x2: p.x(e), y1: p.y1, y2: p.y1 + 4, stroke: "currentColor" }),
        svg("text", { x: p.x(e), y: p.y1 + 15, "text-anchor": "middle" }, short(10 ** e)));
    }
    root.append(svg("text", { x: (p.x0 + p.x1) / 2, y: p.y1 + 27, "text-anchor": "middle" }, "noise ←  ρ = σ/α [x], log scale  → data"));
  }
  function drawHeat() {
    const p = layout(heat, 4), root = svg("svg", { "aria-hidden": "true" });
    scale = p;
    const name = quantity.value, T = seen.rho.length;
    for (let band = 0; band < seen.bands.length; band++)
      for (let i = 0; i < T; i++)
        root.append(svg("rect", { x: p.edges[i], width: p.edges[i + 1] - p.edges[i] + 0.6, y: p.y(band) - p.step / 2, height: p.step + 0.5, fill: viridis(value(name, band, i)) }));
    // Where half of each band is there: along the rows, from one to the next.
    const path = (places) => {
      let d = "";
      places.forEach((v, band) => {
        if (!Number.isFinite(v)) return;
        const px = Math.min(Math.max(p.x(Math.log10(v)), p.x0), p.x1);
        d += `${d ? "L" : "M"}${px} ${p.y(band) + p.step / 2}L${px} ${p.y(band) - p.step / 2}`;
      });
      return d;
    };
    const lines = [["rho_power_gaussian", "#ffb070", "6 4"], ["rho_power", "#ffffff", ""]];
    if (name === "emerged") for (const [key, color, dash] of lines) {
      if (!seen.arrays[key]) continue;
      const d = path(seen.bands.map((_, band) => at3(key, band, 1)));
      root.append(svg("path", { d, fill: "none", stroke: "#000", "stroke-width": 4.5, "stroke-opacity": 0.55 }),
        svg("path", { d, fill: "none", stroke: color, "stroke-width": 2.4, "stroke-dasharray": dash }));
    }
    frame(p, root, false);
    const tall = p.y1 - p.y0, parts = 40;
    for (let i = 0; i < parts && p.roomy; i++)
      root.append(svg("rect", { x: p.x1 + 14, width: 12, y: p.y1 - ((i + 1) / parts) * tall, height: tall / parts + 0.5, fill: viridis((i + 0.5) / parts) }));
    for (const share of p.roomy ? [0, 0.5, 1] : [])
      root.append(svg("text", { x: p.x1 + 31, y: Math.max(p.y0 + 9, p.y1 - share * tall + (share === 0.5 ? 4 : 0)) }, `${100 * share} %`));
    root.append(svg("rect", { x: p.edges[cell.time], width: Math.max(3, p.edges[cell.time + 1] - p.edges[cell.time]), y: p.y(cell.band) - p.step / 2, height: p.step,
      fill: "none", stroke: "#fff", "stroke-width": 3 }), svg("rect", { x: p.edges[cell.time], width: Math.max(3, p.edges[cell.time + 1] - p.edges[cell.time]),
      y: p.y(cell.band) - p.step / 2, height: p.step, fill: "none", stroke: "#d5007f", "stroke-width": 1.6 }));
    heat.replaceChildren(root);
  }
  const placed = () => layout(times, 32, 18);
  function between(band) {
    const ends = [0, 1].map((end) => at3("rho_power_interval", band, 1, end));
    if (ends.every(Number.isFinite)) return ` [${ends.map(short).join(", ")}]`;
    return ends[1] === Infinity ? " [unbounded]" : "";
  }
  // Of each band the noise level at which half of it is there, its interval, and that of Gaussian data.
  function numbers(p, root) {
    const every = Math.max(1, Math.ceil(13 / p.step)), two = p.step >= 27, x = p.x1 + 8;
    const line = (y, text, beside, chosen) => root.append(svg("text", { x, y, class: chosen ? "band chosen" : "band" }, text, svg("tspan", { class: "known", dx: 4 }, beside)));
    line(11, "half at ρ", seen.arrays.rho_power_gaussian ? "(Gaussian)" : "", false);
    seen.bands.forEach((_, band) => {
      if (band % every && band !== cell.band) return;
      const [half, known] = [at3("rho_power", band, 1), at3("rho_power_gaussian", band, 1)], y = p.y(band);
      line(two ? y - 2 : y + 4, short(half), Number.isFinite(known) ? `(${short(known)})` : "", band === cell.band);
      if (two) root.append(svg("text", { x, y: y + 11, class: "known" }, between(band).trim()));
    });
  }
  function drawTimes() {
    const p = placed(), root = svg("svg", { "aria-hidden": "true" });
    const log = (v) => Math.min(Math.max(p.x(Math.log10(Math.max(v, 1e-30))), p.x0), p.x1);
    root.append(svg("rect", { x: p.x0, y: p.y(cell.band) - p.step / 2, width: p.x1 - p.x0, height: p.step, fill: "var(--wb-tint)" }));
    root.append(svg("path", { d: `M${p.x0} ${p.y1}H${p.x1}`, stroke: "currentColor" }));
    if (brush) root.append(svg("rect", { x: Math.max(brush[0], p.x0), width: Math.max(1, Math.min(brush[1], p.x1) - Math.max(brush[0], p.x0)), y: p.y0, height: p.y1 - p.y0, fill: "#d5007f", "fill-opacity": 0.12, stroke: "#d5007f" }));
    const S = seen.seeds.length, inside = new Set(picked);
    for (let s = 0; s < Math.min(S, 600); s++) {
      const v = own(s, cell.band);
      if (!Number.isFinite(v)) continue;
      const jitter = (((s * 0.618034) % 1) - 0.5) * p.step * 0.72;
      root.append(svg("circle", { cx: log(v), cy: p.y(cell.band) + jitter, r: inside.has(s) ? 3.6 : 1.7, fill: inside.has(s) ? "#d5007f" : "currentColor", "fill-opacity": inside.has(s) ? 1 : 0.45 }));
    }
    seen.bands.forEach((_, band) => {
      const y = p.y(band), [low, half, high] = [0, 1, 2].map((k) => at3("rho_power", band, k));
      const thick = Math.max(2, Math.min(9, p.step * 0.5));
      if (Number.isFinite(low) && Number.isFinite(high))
        root.append(svg("line", { x1: log(low), x2: log(high), y1: y, y2: y, stroke: "#56b4e9", "stroke-opacity": 0.65, "stroke-width": thick }));
      const [from, to] = [0, 1].map((end) => at3("rho_power_interval", band, 1, end));
      if (!Number.isNaN(from) && !Number.isNaN(to))
        root.append(svg("line", { x1: log(from), x2: log(Math.min(to, 1e30)), y1: y, y2: y, stroke: "#0072b2", "stroke-width": Math.max(1.5, thick / 3) }));
      if (Number.isFinite(half)) root.append(svg("circle", { cx: log(half), cy: y, r: Math.min(4.5, p.step * 0.4), fill: "#0072b2" }));
      const known = at3("rho_power_gaussian", band, 1);
      if (Number.isFinite(known)) root.append(svg("line", { x1: log(known), x2: log(known), y1: y - Math.min(9, p.step * 0.45), y2: y + Math.min(9, p.step * 0.45), stroke: "#d55e00", "stroke-width": 2.6 }));
    });
    frame(p, root, true);
    if (p.roomy) numbers(p, root);
    times.replaceChildren(root);
    times.setAttribute("aria-description", seen.bands.map((name, band) => `${name}: half at ρ = ${short(at3("rho_power", band, 1))}`).join("; "));
    return p;
  }

  // A strip of pictures: `offset(k)` is where picture k begins in the values.
  function strip(values, count, rows, columns, offset, colour) {
    const canvas = make("canvas", { width: count * (columns + 1) - 1, height: rows });
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, rows);
    for (let k = 0; k < count; k++)
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < columns; c++) {
          const v = values[offset(k) + r * columns + c], at = 4 * (r * canvas.width + k * (columns + 1) + c);
          const rgb = colour(v);
          for (let j = 0; j < 3; j++) image.data[at + j] = rgb[j];
          image.data[at + 3] = 255;
        }
    context.putImageData(image, 0, 0);
    canvas.style.width = `${Math.min(count * 64, 1200)}px`;
    return canvas;
  }
  const grey = (v) => [v, v, v];
  const signed = (v) => { const s = (v - 127.5) / 127.5; return s > 0 ? [255, 255 - 165 * s, 255 - 220 * s] : [255 + 255 * s, 255 + 141 * s, 255 + 77 * s]; };
  function pictures() {
    const passed = seen.arrays.passed;
    if (!passed) return;
    const [, K, B, rows, columns] = passed.shape, size = rows * columns, last = passed.shape[0] - 1;
    const row = (text, canvas, label) => { Object.assign(canvas, { role: "img", ariaLabel: label }); return make("div", { className: "wb-row" }, make("span", { textContent: text }), canvas); };
    const band = (time) => strip(passed.values, K, rows, columns, (k) => ((time * K + k) * B + cell.band) * size, signed);
    const name = seen.bands[cell.band];
    now.replaceChildren(make("h3", { textContent: `Band ${name} at ρ = ${short(seen.rho[cell.time])}` }),
      row("band now", band(cell.time), `Band ${name} of ${K} samples at this noise level; orange above, blue below the mean`),
      row("in the end", band(last), `Band ${name} of the same samples in the end`),
      row("denoised", strip(seen.arrays.denoised.values, K, rows, columns, (k) => (cell.time * K + k) * size, grey), "The denoised states at this noise level"),
      row("samples", strip(seen.arrays.final.values, K, rows, columns, (k) => k * size, grey), "The samples"));
    const shown = picked.slice(0, 48), lines = [];
    for (let i = 0; i < shown.length; i += 8) {
      const some = shown.slice(i, i + 8);
      lines.push(strip(seen.arrays.final.values, some.length, rows, columns, (k) => some[k] * size, grey));
      lines[lines.length - 1].style.width = `${some.length * 12.5}%`;
    }
    chosen.replaceChildren(...(picked.length ? [make("h3", { textContent: `${picked.length} chosen sample${picked.length > 1 ? "s" : ""}, band ${name} half there at ρ = ${short(Math.max(...picked.map((s) => own(s, cell.band))))} to ${short(Math.min(...picked.map((s) => own(s, cell.band))))}` }), ...lines]
      : [make("p", { textContent: brush ? "No sample has half of this band there. Drag over the dots, or take the earliest or the latest." : "Drag over the dots, or take the earliest or the latest, to see which samples they are." })]));
  }
  function tell() {
    const { band, time } = cell, parts = Object.keys(NAMES).filter((name) => seen.arrays[name]).map((name) => {
      const known = value(`${name}_gaussian`, band, time), text = { emerged: "emerged", gain: "gain", coherence: "coherence" }[name];
      return `${text} ${percent(value(name, band, time))}${Number.isFinite(known) ? ` (Gaussian data ${percent(known)})` : ""}`;
    });
    const half = at3("rho_power", band, 1), known = at3("rho_power_gaussian", band, 1);
    say.textContent = `Band ${seen.bands[band]} at ρ = ${short(seen.rho[time])}, t = ${short(seen.t[time])}: ${parts.join(", ")}. `
      + `Half at ρ = ${short(half)}${between(band)}${Number.isFinite(known) ? `, Gaussian data at ${short(known)}` : ""}.`;
    heat.setAttribute("aria-description", say.textContent);
    legend.replaceChildren(`by ${TITLES[seen.unit] ?? "coordinate"}  `);
    const line = (color, text, dash) => { const mark = svg("svg", { width: 26, height: 10 }); mark.append(svg("rect", { width: 26, height: 10, fill: "#31688e" }), svg("path", { d: "M1 5H25", stroke: color, "stroke-width": 2.4, "stroke-dasharray": dash })); legend.append(mark, ` ${text}  `); };
    if (quantity.value === "emerged") {
      line("#ffffff", "half is there", "");
      if (seen.arrays.rho_power_gaussian) line("#ffb070", "of Gaussian data", "6 4");
    }
  }
  function draw() {
    if (!seen || !heat.clientWidth) return;
    drawHeat(); drawTimes(); tell(); pictures();
    box.dataset.drawn = String(Number(box.dataset.drawn ?? 0) + 1);
  }
  function go(band, time, keep = false) {
    band = Math.min(Math.max(band, 0), seen.bands.length - 1);
    time = Math.min(Math.max(time, 0), seen.rho.length - 1);
    if (band === cell.band && time === cell.time && !keep) return;
    if (band !== cell.band) { picked = []; brush = null; }
    cell = { band, time };
    if (keep) tellPage();
    draw();
  }
  // What a link holds: the noise level, the quantity, the band.
  function tellPage() { send(model, { level: cell.time, look: `${quantity.value} ${seen.bands[cell.band]}` }); }
  function choose(samples) { picked = samples; draw(); }
  function outliers(first) {
    if (!seen) return;
    const order = seen.seeds.map((_, s) => s).filter((s) => Number.isFinite(own(s, cell.band))).sort((a, b) => own(b, cell.band) - own(a, cell.band));
    brush = null;
    choose(first ? order.slice(0, 8) : order.slice(-8).reverse());
  }
  const place = (event) => {
    const { left: x, top: y } = heat.getBoundingClientRect(), px = event.clientX - x, py = event.clientY - y;
    const time = scale.edges.findIndex((edge, i) => i && px < edge) - 1;
    return [Math.floor((scale.y1 - py) / scale.step), px < scale.x0 ? 0 : time < 0 ? seen.rho.length - 1 : time];
  };
  heat.addEventListener("pointermove", (event) => { if (seen && scale && !held) go(...place(event)); });
  heat.addEventListener("click", (event) => { if (seen && scale) { held = !held; heat.title = held ? "Held; click again to let go." : ""; go(...place(event), true); } });
  heat.addEventListener("keydown", (event) => {
    if (!seen) return;
    const { band, time } = cell, to = { ArrowLeft: [band, time - 1], ArrowRight: [band, time + 1], ArrowUp: [band + 1, time], ArrowDown: [band - 1, time], Home: [band, 0], End: [band, seen.rho.length - 1] }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(); event.stopPropagation();
    held = true;
    go(...to, true);
  });
  let begun = null;
  const along = (event) => event.clientX - times.getBoundingClientRect().left;
  times.addEventListener("pointerdown", (event) => { if (seen) { begun = along(event); times.setPointerCapture(event.pointerId); } });
  times.addEventListener("pointermove", (event) => {
    if (begun === null) return;
    const p = placed(), [low, high] = [begun, along(event)].sort((a, b) => a - b);
    const within = (s) => { const v = own(s, cell.band); if (!Number.isFinite(v)) return false; const px = p.x(Math.log10(v)); return px >= low && px <= high; };
    brush = [low, high];
    choose(seen.seeds.map((_, s) => s).filter(within));
  });
  times.addEventListener("pointerup", () => { begun = null; });
  quantity.addEventListener("change", () => { tellPage(); draw(); });
  model.on("change:data", load);
  const watch = new ResizeObserver(() => { brush = null; draw(); });
  watch.observe(heat);
  load();
  return () => watch.disconnect();
} };
