// The scrubber: sparkline, nodes, rho above, t below.

function rhoLabels({ axis: { rho, u, logarithmic, breaks, position, range: [low, high] } }) {
  if (!logarithmic) return u.map((x, i) => [x, String(i)]).sort(([a], [b]) => Math.abs(b - 0.5) - Math.abs(a - 0.5));
  const T = rho.length, ends = [0, T - 1].map((i) => [u[i], short(rho[i])]), inner = [];
  for (const factors of [[1], [2, 5], [3, 4, 6, 8]]) {
    if (inner.length >= 3) break;   // a narrow range needs more than decades
    for (let e = Math.floor(low); e <= high; e++)
      for (const m of factors) if (Math.log10(m) + e >= low && Math.log10(m) + e <= high) inner.push([position(Math.log10(m) + e), short(m * 10 ** e)]);
  }
  const edges = [breaks[0] && T > 2 ? [u[1], short(rho[1], 2)] : null, breaks[1] && T > 2 ? [u[T - 2], short(rho[T - 2], 2)] : null].filter(Boolean);
  return [...ends, ...inner, ...edges];
}

// t is given at nodes alone, so it is written at the nodes nearest to the labels above, never interpolated.
function timeLabels({ axis: { t, u } }, above) {
  if (!t.length) return [];
  const nearest = (x) => u.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(u[best] - x) ? i : best), 0);
  return [0, u.length - 1, ...above.map(([x]) => nearest(x))].filter((i) => Number.isFinite(t[i])).map((i) => [u[i], short(t[i])]);
}

// Curves over the axis on one scale, each [values, positions]: the first with its dot and its caption.
function sparkline({ label, unit }, curves, x, width, top, height) {
  const known = curves.flatMap(([values]) => Array.from(values)).filter(Number.isFinite), positive = known.filter((v) => v > 0);
  const log = positive.length > 1 && Math.max(...positive) / Math.min(...positive) > 30;
  const used = log ? positive : known, low = Math.min(...used), high = Math.max(...used);
  if (!used.length) return { marks: [], y: () => null };
  const scale = log ? Math.log : (v) => v, span = scale(high) - scale(low) || 1;
  const y = (v) => Number.isFinite(v) ? top + height * (1 - (scale(clamp(v, low, high)) - scale(low)) / span) : null;
  const line = ([values, at], i) => {
    const points = at.map((p, k) => (p === null || y(values[k]) === null ? "" : `${x(p).toFixed(1)} ${y(values[k]).toFixed(1)}`)).filter(Boolean);
    return svg("path", { d: "M" + points.join("L"), class: i ? "wb-spark wb-second" : "wb-spark" });
  };
  const caption = `${label}${unit ? ` (${unit})` : ""}${log ? ", log scale" : ""}`;
  const edge = (v, dy) => svg("text", { x: x(0) - 9, y: y(v) + dy, "text-anchor": "end" }, short(v, 2));
  return { y, marks: [
    svg("path", { d: `M${x(0)} ${top + height}H${x(1)}M${x(0)} ${top}H${x(1)}`, class: "wb-grid", "stroke-dasharray": "1 3" }),
    ...curves.map(line).reverse(), edge(high, 4), ...(high > low ? [edge(low, 1)] : []),
    svg("text", { x: clamp(width - caption.length * 5.8, 0, x(0)), y: top - 5 }, caption)] };
}

// `strip`: height of the error strip [px]; `curves`: of the strip, [values, positions]; `readout`: what the first one is.
function makeScrubber(run, width, { strip, low, readout, curves }) {
  const { axis } = run, left = MARGIN.left, right = MARGIN.right, x = (u) => left + u * (width - left - right);
  const rail = readout ? 16 + strip + 28 : 24, caption = rail + (low ? 18 : 34);
  const spark = readout ? sparkline(readout, curves, x, width, 16, strip) : { marks: [], y: () => null };
  const texts = (labels, y) => placeLabels(labels.map(([u, text]) => [x(u), text]), width).map((l) => svg("text", { x: l.x, y, "text-anchor": "middle" }, l.text));
  const [open, shut] = [axis.breaks[0] ? x(BREAK / 2) : null, axis.breaks[1] ? x(1 - BREAK / 2) : null];
  const slash = (p) => (p === null ? "" : `M${p - 4} ${rail + 5}l4 -10M${p} ${rail + 5}l4 -10`);
  const pieces = [[x(0), (open ?? x(0) + 2) - 2], [(open ?? x(0) - 2) + 2, (shut ?? x(1) + 2) - 2], [(shut ?? x(1) - 2) + 2, x(1)]];
  const dense = axis.u.filter((u, i) => i === 0 || i === axis.u.length - 1 || x(u) - x(axis.u[i - 1]) > 0.5 || i % 16 === 0);   // ticks that can be told apart
  const above = rhoLabels(run), done = svg("path", { class: "wb-done" }), dot = svg("circle", { r: 3, class: "wb-dot" });
  const head = svg("g", { class: "wb-head" }, svg("line", { y1: readout ? 14 : rail - 10, y2: rail + 8 }), svg("circle", { cy: rail, r: 6.5 }));
  const named = (text, y) => svg("text", { x: left - 24, y, "text-anchor": "end", class: "wb-name" }, text);
  const marks = [...spark.marks,
    svg("path", { class: "wb-rail", d: pieces.map(([a, b]) => `M${a} ${rail}H${b}`).join("") + dense.map((u) => `M${x(u).toFixed(1)} ${rail - 5}v10`).join("") + slash(open) + slash(shut) }),
    done, ...texts(above, rail - 10),
    ...(low ? [] : [...texts(timeLabels(run, above), rail + 20), svg("text", { x: left, y: caption }, "noise"), svg("text", { x: x(1), y: caption, "text-anchor": "end" }, "data"),
      svg("text", { x: x(0.5), y: caption, "text-anchor": "middle" }, axis.logarithmic ? "ρ = σ/α, log scale" : "evenly spaced steps"), axis.t.length ? named("t", rail + 20) : ""]),
    named(axis.logarithmic ? "ρ" : "step", rail - 10), head, dot];
  const place = (frame) => {
    const p = x(axisPosition(axis, frame)), y = readout ? spark.y(valueAt(readout.values, frame)[1]) : null;
    done.setAttribute("d", `M${x(axis.u[0])} ${rail}H${p}`);
    head.setAttribute("transform", `translate(${p} 0)`);
    dot.setAttribute("cx", p);
    dot.setAttribute("cy", y ?? 0);
    dot.setAttribute("visibility", y === null ? "hidden" : "visible");
  };
  return { marks, place, height: (low ? rail + 12 : caption + 4), frameAt: (px) => axisFrame(axis, clamp((px - left) / (width - left - right), 0, 1)) };
}
