// The page "Gauge": a field, its conservative and its gauge part at one noise level; what an added gauge c does to
// the paths of Euler's method and not to the marginals; and curves over the noise level of every model.
const HUES = [BLUE, ORANGE, GREEN, PURPLE];
// Lenses whose curves are computed one after the other while the page is looked at.
const LENSES = ["asymmetry", "gauge", "dimension"];

const LEAST = ", least", LENS_OF = { "Not a gradient": "asymmetry", "Wrong beyond the gauge": "gauge", "Size": "gauge", "Dimension by FLIPD": "dimension", "Dimension": "dimension" };

export default { render({ model, el }) {
  let page = null, data = null, c = -1, steps = -1, parts = {}, of = "";
  const text = (name) => page.text(name), arrays = () => data.arrays;
  const slider = (name, about) => {
    const input = make("input", { type: "range", min: 0, max: 1, step: 1, value: 0, title: about, ariaLabel: about }), said = make("output");
    said.style.minWidth = "2.2em";
    const label = make("label", {}, `${name} `, input, " ", said);
    Object.assign(label.style, { display: "flex", flex: "0 1 112px", alignItems: "center", gap: "4px" });
    Object.assign(label.style, { minWidth: "0", whiteSpace: "nowrap" }); Object.assign(input.style, { width: "44px", minWidth: "44px" });
    // Its arrows move it, not the noise level.
    input.addEventListener("keydown", (event) => { if (event.key.startsWith("Arrow") || ["Home", "End", "PageUp", "PageDown"].includes(event.key)) event.stopPropagation(); });
    return { input, said, label };
  };
  const gauge = slider("c", "Gauge c added to the score"), many = slider("steps", "Steps of Euler's method");
  function choose(toC, toSteps) {
    c = Math.min(Math.max(toC, 0), data.strength.length - 1); steps = Math.min(Math.max(toSteps, 0), data.steps.length - 1);
    gauge.input.value = c; many.input.value = steps;
    gauge.said.textContent = short(data.strength[c]); many.said.textContent = data.steps[steps];
    gauge.input.setAttribute("aria-valuetext", `c = ${short(data.strength[c])}`); many.input.setAttribute("aria-valuetext", `${data.steps[steps]} steps`);
    page.root.dataset.gauge = c; page.root.dataset.steps = steps;
    page.redraw();
  }
  gauge.input.addEventListener("input", () => choose(Number(gauge.input.value), steps));
  many.input.addEventListener("input", () => choose(c, Number(many.input.value)));

  // --- a plane: arrows on the density
  // Of a level: value of a part at a node, with what the slider adds: c A truth, A a quarter turn.
  function at(name, k) {
    const { values } = arrays()[name], add = name === "field" || name === "gauge" ? data.strength[c] : 0, { values: truth } = arrays().truth;
    return [values[k] - add * truth[k + 1], values[k + 1] + add * truth[k]];
  }
  function length(name) {
    const [, rows, columns] = arrays().field.shape, from = page.level * rows * columns, all = [];
    for (let i = 0; i < rows * columns; i++) { const [x, y] = at(name, 2 * (from + i)), v = Math.hypot(x, y); if (Number.isFinite(v)) all.push(v); }
    all.sort((a, b) => a - b);
    return all.length ? all[Math.floor(.95 * (all.length - 1))] : 0;
  }
  function arrows(name, title, note, color) {
    const one = page.panel(title, note, (g, w, h) => {
      const s = square(w, h), [, rows, columns] = arrays().field.shape, cell = s.side / columns;
      density(g, s);
      const whole = length("field"), own = length(name);
      if (!(whole > 0)) { g.fillStyle = text("--wb-muted"); g.textAlign = "center"; g.fillText("too narrow for the grid", w / 2, h / 2, w - 8); return; }
      // A part that is small beside the field is drawn larger, and says by how much.
      const times = own > 1e-9 * whole && own < .2 * whole ? Math.max(1, 10 ** Math.floor(Math.log10(whole / own) + .3)) : 1;
      g.strokeStyle = g.fillStyle = color; g.lineWidth = 1.3;
      for (let r = 0; r < rows; r++) for (let k = 0; k < columns; k++) {
        const [x, y] = at(name, 2 * ((page.level * rows + r) * columns + k));
        if (!Number.isFinite(x)) continue;
        const px = s.left + (k + .5) * cell, py = s.top + s.side - (r + .5) * cell, size = Math.hypot(x, y), fit = Math.min(times * size / whole, 1.25) * cell * .95 / (size || 1);
        const dx = x * fit, dy = -y * fit, long = Math.hypot(dx, dy);
        if (long < .8) { g.fillRect(px - .6, py - .6, 1.2, 1.2); continue; }
        const head = Math.min(4, long * .45), angle = Math.atan2(dy, dx), ex = px + dx / 2, ey = py + dy / 2;
        g.beginPath(); g.moveTo(px - dx / 2, py - dy / 2); g.lineTo(ex, ey);
        for (const turn of [2.6, -2.6]) { g.moveTo(ex, ey); g.lineTo(ex + head * Math.cos(angle + turn), ey + head * Math.sin(angle + turn)); }
        g.stroke();
      }
      page.outline(g, s);
      const said = own <= 1e-9 * whole ? "nothing" : times > 1 ? `arrows × ${times}` : "";
      if (said) { g.fillStyle = text("--wb-text"); g.textAlign = "left"; g.textBaseline = "alphabetic"; g.fillText(said, s.left + 5, s.top + s.side - 6); }
    });
    const [, rows, columns] = arrays().field.shape;
    page.pointed(one, (x, y, w, h) => { const s = square(w, h); return cellAt(x, y, { ...s, cell: s.side / columns }, rows, columns); }, ([down, k]) => {
      const r = rows - 1 - down, [x, y] = at(name, 2 * ((page.level * rows + r) * columns + k)), { values: place, shape: [, , nodes] } = arrays().place;
      return Number.isFinite(x) ? `x ${short(place[2 * page.level * nodes + k])}, ${short(place[(2 * page.level + 1) * nodes + r])}\nρ × field ${short(x)}, ${short(y)}` : "no density here";
    });
  }
  function density(g, s) {
    const { values, shape: [, rows, columns] } = arrays().density, off = page.level * rows * columns;
    const small = raster(rows, columns, (r, c) => { const v = values[off + (rows - 1 - r) * columns + c]; return [86, 180, 233, Number.isFinite(v) ? Math.round(120 * Math.sqrt(v)) : 0]; });
    g.imageSmoothingEnabled = true; g.drawImage(small, s.left, s.top, s.side, s.side);
  }

  // --- paths of Euler's method
  function paths() {
    const { values, shape: [, S, L, n] } = arrays().states, { values: truth } = arrays().truth_states;
    const sorted = [...truth].map(Math.abs).sort((a, b) => a - b), reach = 1.2 * sorted[Math.floor(.995 * (sorted.length - 1))];
    const which = data.dim > 2 ? "first two principal axes" : "in the plane";
    page.panel("Paths by Euler's method", `${which}; grey: the truth`, (g, w, h) => {
      const s = square(w, h), X = (v) => s.left + (v / reach + 1) / 2 * s.side, Y = (v) => s.top + (1 - v / reach) / 2 * s.side;
      const k = (level, i) => 2 * (((c * S + steps) * L + level) * n + i);
      g.save(); g.beginPath(); g.rect(s.left, s.top, s.side, s.side); g.clip();
      g.fillStyle = text("--wb-muted"); g.globalAlpha = .55;
      for (let i = 0; i < n; i++) { const j = 2 * (page.level * n + i); g.fillRect(X(truth[j]) - 1, Y(truth[j + 1]) - 1, 2, 2); }
      g.strokeStyle = PURPLE; g.globalAlpha = .45; g.lineWidth = 1;
      for (let i = 0; i < Math.min(n, 24); i++) {
        g.beginPath();
        for (let level = 0; level <= page.level; level++) { const j = k(level, i); if (level) g.lineTo(X(values[j]), Y(values[j + 1])); else g.moveTo(X(values[j]), Y(values[j + 1])); }
        g.stroke();
      }
      g.fillStyle = BLUE; g.globalAlpha = .85;
      let outside = 0;
      for (let i = 0; i < n; i++) { const j = k(page.level, i); g.beginPath(); g.arc(X(values[j]), Y(values[j + 1]), 1.6, 0, 7); g.fill(); if (!(Math.max(Math.abs(values[j]), Math.abs(values[j + 1])) <= reach)) outside++; }
      g.restore();
      if (outside) { g.fillStyle = text("--wb-text"); g.textAlign = "left"; g.textBaseline = "alphabetic"; g.fillText(`${outside} of ${n} outside`, s.left + 5, s.top + s.side - 6); }
      page.outline(g, s);
    });
  }
  function discretised() {
    const xs = data.steps.map(Math.log10);
    const one = page.panel("Euler breaks the gauge", "W₂ to the truth; line: exact for these moments, ● measured, grey null", (g, w, h) => {
      const all = [...data.w2_exact.flat(), ...data.w2[c], ...data.w2_null].filter((v) => v > 0), high = Math.min(2 * Math.max(...all), 1e3), low = Math.max(Math.min(...all) / 2, 1e-4);
      const a = page.axes(g, w, h, { x: [xs[0] - .05, xs.at(-1) + .05], y: [low, high], log: true, ticks: data.steps.map((v, i) => [xs[i], String(v)]), label: "steps of Euler's method" });
      g.save(); g.beginPath(); g.rect(a.left, a.top, a.wide, a.high); g.clip();
      g.fillStyle = text("--wb-muted"); g.globalAlpha = .25; g.fillRect(a.left, a.Y(data.w2_null[1]), a.wide, a.Y(data.w2_null[0]) - a.Y(data.w2_null[1]));
      data.w2_exact.forEach((row, i) => { g.globalAlpha = i === c ? 1 : .3; page.line(g, a, xs, row.map((v) => Math.max(v ?? NaN, low)), i === c ? VERMILION : text("--wb-muted")); });
      g.globalAlpha = 1; g.fillStyle = BLUE;
      data.w2[c].forEach((v, j) => { if (v == null) return; g.beginPath(); g.arc(a.X(xs[j]), a.Y(Math.max(v, low)), j === steps ? 4.5 : 3, 0, 7); g.fill(); });
      g.restore(); page.cursor(g, a, xs[steps]);
      g.fillStyle = text("--wb-text"); g.textAlign = "right"; g.textBaseline = "alphabetic"; g.fillText(`c = ${short(data.strength[c])}: exact ${short(data.w2_exact[c][steps])}`, a.left + a.wide - 4, a.top + 12, a.wide - 8);
    });
    const nearest = (px, py, w) => { const v = xs[0] - .05 + (px - 52) / (w - 62) * (xs.at(-1) - xs[0] + .1); return xs.reduce((best, x, i) => (Math.abs(x - v) < Math.abs(xs[best] - v) ? i : best), 0); };
    page.pointed(one, nearest, (j) => `${data.steps[j]} steps, c = ${short(data.strength[c])}\nexact ${short(data.w2_exact[c][j])}, measured ${short(data.w2[c][j])}`, (j) => choose(c, j));
  }

  function wish() {
    const part = LENSES.find((name) => !parts[name]);
    if (part) page.wish({ part });
  }
  model.on("change:part", () => {
    const part = received(model, "part");
    if (!part || part.of !== data?.of) return;
    parts[part.part] = part;
    page.root.dataset.parts = Object.keys(parts).length;
    page.put(data); wish();
  });

  // --- curves over the noise level; each entry: name, curve, colour, dashed
  function curves(title, note, key, entries, { log = false, most = null, first = null, shade = false, remark = "" } = {}) {
    const shown = entries.filter(([, one]) => one && one.value.some((v) => v != null && (!log || v > 0)));
    if (!shown.length) return page.words(title, "Zero at every noise level.");
    const logs = data.rho.map(Math.log10), span = [Math.min(...logs), Math.max(...logs)];
    const one = page.panel(title, note, (g, w, h) => {
      const all = shown.flatMap(([, v]) => v.value).filter((v) => v != null && (!log || v > 0));
      const high = most ?? (log ? 1.3 : 1.5) * Math.max(...all, log ? 1e-9 : 1e-6), low = log ? Math.max(Math.min(...all) / 2, high * 1e-7) : Math.min(0, ...all);
      const a = page.axes(g, w, h, { x: span, y: [low, high], log, ticks: decades(logs), label: "ρ [x]; noise left, data right", flip: true });
      g.save(); g.beginPath(); g.rect(a.left, a.top, a.wide, a.high); g.clip();
      if (first?.high) {
        const above = (ys) => ys.map((v) => Math.max(v ?? low, low));
        page.region(g, a, first.at.map(Math.log10), above(first.low), above(first.high));
      }
      shown.forEach(([, v, color, dashed], i) => {
        const xs = v.at.map(Math.log10);
        if (shade && v.holds?.length) {
          const [from, to] = v.holds.map(Math.log10), left = Math.min(a.X(from), a.X(to)), wide = Math.max(3, Math.abs(a.X(to) - a.X(from)));
          g.fillStyle = color; g.globalAlpha = .1; if (i === 0) g.fillRect(left, a.top, wide, a.high); g.globalAlpha = .9; g.fillRect(left, a.top + a.high - 3 * (i + 1), wide, 2); g.globalAlpha = 1;
        }
        if (v.se) page.band(g, a, xs, v.value, v.se, color);
        page.line(g, a, xs, v.value.map((y) => (log && !(y > 0) ? null : y)), color, dashed);
        if (v.exact) page.line(g, a, xs, v.exact.map((y) => (log && !(y > 0) ? null : y)), VERMILION, true);
      });
      g.restore(); page.cursor(g, a, Math.min(Math.max(logs[page.level], span[0]), span[1]));
      g.textAlign = "left"; g.textBaseline = "alphabetic";
      if (remark) { g.fillStyle = text("--wb-text"); g.fillText(remark, a.left + 6, a.top + a.high - 6, a.wide - 12); }
      const named = shown.filter(([name]) => !name.endsWith(LEAST)), columns = named.length > 4 ? 2 : 1, column = columns > 1 ? a.wide / 2 : Math.min(a.wide, Math.max(...named.map(([name]) => g.measureText(name).width)) + 10);
      const places = shown.map(([, v]) => v.value.flatMap((y, i) => (y == null || (log && !(y > 0)) ? [] : [[a.X(Math.log10(v.at[i])), a.Y(y)]])));
      const [x, y] = page.corner(a, columns * column - 6, 12 * Math.ceil(named.length / columns) + (remark ? 14 : 0), places);
      g.lineJoin = "round"; g.lineWidth = 3; g.strokeStyle = text("--wb-surface");
      named.forEach(([name, , color], i) => {
        const at = [x + (i % columns) * column, y + 9 + 12 * Math.floor(i / columns), column - 6];
        g.strokeText(name, ...at); g.fillStyle = color; g.fillText(name, ...at);
      });
    });
    page.scrubs(one, (v) => {
      const near = (curve) => curve.at.reduce((best, x, i) => (Math.abs(Math.log10(x) - v) < Math.abs(Math.log10(curve.at[best]) - v) ? i : best), 0);
      return `ρ = ${short(10 ** v)}\n${shown.map(([name, curve]) => { const i = near(curve); return `${name} ${short(curve.value[i])}${curve.se?.[i] ? ` ± ${short(curve.se[i])}` : ""}`; }).join("\n")}`;
    });
  }

  // Of a network beside the model what tells it from that.
  const called = (name, own) => (name.startsWith(`${own}_`) ? name.slice(own.length + 1) : name).replaceAll("_", " ");

  function build(self) {
    page = self; data = self.data;
    gauge.input.max = data.strength.length - 1; many.input.max = data.steps.length - 1;
    if (c < 0 || c >= data.strength.length) c = 0;
    if (steps < 0 || steps >= data.steps.length) steps = data.steps.length - 1;
    self.root.querySelector(".scrub").style.flexWrap = "wrap";
    if (data.arrays.field) {
      arrows("field", "Field", "ρ × score, with c A∇log p", BLUE);
      arrows("conservative", "Conservative part", "what moves density", GREEN);
      arrows("gauge", "Gauge part", "moves none", VERMILION);
    }
    paths(); discretised();
    if (data.of !== of) {
      of = data.of; parts = {}; delete self.root.dataset.parts; wish();
      // It opens where there are fields.
      const { values } = data.arrays.norm2 ?? {};
      if (values && model.get("level") < 0) while (self.level > 0 && !Number.isFinite(values[self.level])) self.level -= 1;
    }
    const most = 3 * Math.ceil(1.15 * data.dim / 3), { asymmetry, gauge: split, dimension } = parts;
    const each = (part, key, said = "", dashed = false) => part.models.filter((one) => one.name !== "exact").map((one, i) => [called(one.name, part.models[0].name) + said, one[key], HUES[i % HUES.length], dashed]);
    if (!asymmetry) page.words("Not a gradient");
    else curves("Not a gradient", "antisymmetric share of D's Jacobian; grey null", "share", each(asymmetry, "share"), { log: true, first: asymmetry.models[0]?.share });
    if (!split) { page.words("Wrong beyond the gauge"); page.words("Size of the gauge part"); }
    else if (!split.models.length) page.words("Size of the gauge part", split.findings.join(". "));
    else {
      curves("Wrong beyond the gauge", "violation of ∇·(p e) = 0 by the error e", "violation", each(split, "violation"), { log: true, first: split.models[0].violation });
      const bounds = split.models[0].gauge_least;
      curves("Size of the gauge part", bounds ? "at most, dashed at least, ± 2 se; mean square per coordinate" : "mean square per coordinate; grey: the grid's error", "gauge",
        [...each(split, "gauge"), ...(bounds ? each(split, "gauge_least", LEAST, true) : [])], { first: split.models[0][bounds ? "gauge_least" : "gauge"], remark: split.undetermined.length ? "these samples do not tell" : "" });
    }
    if (!dimension) { page.words("Dimension by FLIPD"); if (!data.arrays.field) page.words("Dimension"); }
    else if (!dimension.models.length) page.words("Dimension", dimension.findings.join(". "));
    else {
      const own = dimension.models[0], law = dimension.models.find((one) => one.name === "exact");
      curves("Dimension by FLIPD", "bars: where it holds; dashed exact; grey even Gaussian", "flipd",
        [...each(dimension, "flipd"), ...(law ? [["exact field", law.flipd, VERMILION, true]] : [])], { first: own.flipd, most, shade: true });
      if (!data.arrays.field) curves(`Dimension of ${own.name}`, "by each estimator; bars: where it holds", "all",
        [["FLIPD", own.flipd, BLUE], ["trace", own.trace, SKY], ["LIDL", own.lidl, ORANGE], ["scores' SVD", own.normal_bundle, GREEN], ["flow", own.flow, PURPLE], ["MLE", own.mle, "#999933", true], ["TwoNN", own.twonn, "#882255", true]], { most, shade: true });
    }
    // What a lens finds is told of each of its panels.
    for (const figure of self.root.querySelectorAll("figure")) {
      const caption = figure.querySelector("figcaption"), part = parts[LENS_OF[caption.firstChild.textContent.split(" of ")[0]]];
      if (!part?.findings.length) continue;
      caption.title += `\n${part.findings.join(".\n")}.`;
      const canvas = figure.querySelector("canvas"); canvas.ariaLabel += `. ${part.findings.join(". ")}`;
    }
    choose(c, steps);
  }
  return panels({
    model, el, label: "Gauge freedom of a score", extra: [gauge.label, many.label], even: true, build,
    keys(event) {
      const moves = { ArrowUp: [1, 0], ArrowDown: [-1, 0], PageUp: [0, 1], PageDown: [0, -1] }, move = moves[event.key];
      if (!move) return false;
      choose(c + move[0], steps + move[1]);
      return true;
    },
  }).end;
} };
