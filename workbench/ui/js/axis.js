// The time axis: log rho, noise left, data right.

const BREAK = 0.06;   // share of the axis given to a step from rho = infinity, or to rho = 0

// Places every node on [0, 1]. Where rho cannot be put on a log axis, the nodes are spaced evenly.
function makeAxis(T, { rho = [], t = [], step = [], stage = null, alpha = [], sigma = [] }) {
  const logs = Array.from({ length: T }, (_, i) => rho[i] === null ? Infinity : Math.log10(rho[i]));
  if (stage) for (let i = 1; i < T; i++) if (stage[i] && logs[i] > logs[i - 1]) logs[i] = logs[i - 1];   // noise is added within a step
  const finite = logs.filter(Number.isFinite), from = finite[0], to = finite.at(-1);
  const ends = [!Number.isFinite(logs[0]), !Number.isFinite(logs[T - 1])];
  const ordered = finite.every((l, i) => i === 0 || (l - finite[i - 1]) * (to - from) >= 0);
  const logarithmic = rho.length === T && finite.length === T - (T > 1 ? ends[0] + ends[1] : 0) && finite.length > 0 && ordered;
  const left = ends[0] ? BREAK : 0, right = ends[1] ? 1 - BREAK : 1;
  const position = (l) => left + (right - left) * (from === to ? 0.5 : (from - l) / (from - to));
  const even = (i) => T > 1 ? i / (T - 1) : 0.5;
  const u = logs.map((l, i) => !logarithmic ? even(i) : Number.isFinite(l) ? position(l) : i === 0 ? 0 : 1);
  return { rho, t, step, stage, alpha, sigma, u, logarithmic, breaks: logarithmic ? ends : [false, false], position, range: [Math.min(from, to), Math.max(from, to)] };
}

function axisPosition({ u }, frame) {
  const i = Math.floor(frame);
  return i + 1 < u.length ? u[i] + (u[i + 1] - u[i]) * (frame - i) : u.at(-1);
}

function axisFrame({ u }, x) {
  let i = 0;
  while (i < u.length - 1 && u[i + 1] <= x) i++;
  return i === u.length - 1 || x <= u[0] ? i : i + (x - u[i]) / (u[i + 1] - u[i]);
}

// Words and numbers.

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const minus = (text) => text.replaceAll("-", "−");

function number(x, digits = 3) {
  if (x === null || x === Infinity) return "∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size < 1e-3 || size >= 1e5) return x.toExponential(digits - 1).replace("e+", "e");
  return size >= 10 ** digits ? x.toFixed(0) : x.toPrecision(digits);
}

const short = (x, digits = 3) => number(x, digits).replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "");

// The value of a per-frame list at a fractional frame, and the sign that says whether it is one of the nodes.
function valueAt(list, frame, geometric = false) {
  const i = Math.floor(frame), w = frame - i, a = list[i], b = list[Math.min(i + 1, list.length - 1)];
  if (w < 1e-6) return ["=", a];
  if (!geometric) return ["≈", a + (b - a) * w];
  if (a === null || b === null) return [">", a ?? b];
  if (a === 0 || b === 0) return ["<", a || b];
  return ["≈", a * (b / a) ** w];
}

function describe(run, frame) {
  const said = (name, [sign, value]) => `${name} ${sign} ${number(value)}`;
  const { step: steps } = run.axis, at = steps.length === run.frames ? valueAt(steps, frame)[1] : frame, last = steps.length === run.frames ? steps.at(-1) : run.frames - 1;
  const stage = run.axis.stage?.[frame];
  const parts = [stage ? `step ${Math.ceil(at)} of ${last}: ${stage}` : `step ${Number.isInteger(at) ? String(at) : at.toFixed(1)} of ${last}`];
  if (run.axis.rho.length) parts.push(said("ρ", valueAt(run.axis.rho, frame, true)));
  if (run.axis.t.length) parts.push(said("t", valueAt(run.axis.t, frame)));
  for (const { label, brief, values } of run.readouts) parts.push(said(brief ?? label, valueAt(values, frame)));
  return parts.join(" · ");
}

// What symbols stand for at a frame, by symbol.
function symbolsAt(run, frame) {
  const { rho, t, alpha, sigma } = run.axis, told = {};
  for (const [name, list, geometric] of [["ρ", rho, true], ["t", t, false], ["α", alpha, false], ["σ", sigma, false]]) if (list.length) told[name] = `${name} ${valueAt(list, frame, geometric)[0]} ${number(valueAt(list, frame, geometric)[1])}`;
  if (run.variance > 0) told.v = `v = ${number(run.variance)}`;
  return told;
}

// Round numbers in [low, high], about `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999), digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => [(first + i) * step, minus(((first + i) * step + 0).toFixed(digits).replace(/^-(0\.?0*)$/, "$1"))]);
}

// Keeps the labels that fit, the first ones first; each is [x, text].
function placeLabels(labels, width) {
  const placed = [];
  for (const [x, text] of labels) {
    const half = text.length * 3.3 + 1, centre = clamp(x, half, width - half);
    if (placed.every((p) => Math.abs(p.x - centre) > p.half + half + 6)) placed.push({ x: centre, text, half });
  }
  return placed;
}
