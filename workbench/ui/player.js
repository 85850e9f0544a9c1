// The player: one recorded diffusion run, sent to the browser once, then played and scrubbed there.
//
// A plain ES module in the anywidget style; it runs as it is in Jupyter and in Panel. The run arrives in the
// trait `data` (a JSON header and typed arrays); the traits `frame` and `playing` go both ways. All positions and
// pixels live on the GPU as integer textures, so a scrub changes a few uniforms and uploads nothing.

// ---------------------------------------------------------------- the run: a header and typed arrays

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, float16: Uint16Array, float32: Float32Array };
const BITS = { uint8: 255, uint16: 65535 };

function check(condition, sentence) {
  if (!condition) throw new Error(sentence);
}

function bytesOf(value) {
  if (!value) return new Uint8Array(0);
  return ArrayBuffer.isView(value) ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength) : new Uint8Array(value);
}

function readHeader(bytes) {
  check(bytes.length >= 8, "the data end before the header.");
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  check(4 + length <= bytes.length, "the data end before the header does.");
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  } catch {
    throw new Error("the header is not valid JSON.");
  }
  check(header?.version === 1, `the header has version ${header?.version}; this player reads version 1.`);
  check(header.kind === "plane" || header.kind === "image", `kind is "${header.kind}"; it must be "plane" or "image".`);
  check(header.frames >= 1 && header.samples >= 1, "frames and samples must both be at least 1.");
  return { header, base: 4 + length };
}

// `low` and `high` may be one number or one per component.
function readArray(bytes, base, name, { offset, dtype, shape, low = 0, high = 1 }) {
  const Type = TYPES[dtype];
  check(Type, `array "${name}" has dtype "${dtype}"; known are ${Object.keys(TYPES).join(", ")}.`);
  const count = shape.reduce((a, b) => a * b, 1), start = bytes.byteOffset + base + offset;
  check(base + offset + count * Type.BYTES_PER_ELEMENT <= bytes.length, `array "${name}" ends beyond the data.`);
  const aligned = start % Type.BYTES_PER_ELEMENT === 0;
  const buffer = aligned ? bytes.buffer : bytes.buffer.slice(start, start + count * Type.BYTES_PER_ELEMENT);
  const pair = (v) => (Array.isArray(v) ? v : [v, v]), lows = pair(low);
  return { values: new Type(buffer, aligned ? start : 0, count), shape, low: lows, scale: lows.map((l, i) => (pair(high)[i] - l) / (BITS[dtype] ?? 1)) };
}

function readRun(value) {
  const bytes = bytesOf(value);
  if (bytes.length === 0) return null;
  const { header, base } = readHeader(bytes);
  const { kind, frames: T, samples: N } = header, plane = kind === "plane";
  const event = plane ? [2] : [header.image?.rows, header.image?.columns], dtype = plane ? "uint16" : "uint8";
  const wanted = { x: [[T, N, ...event], dtype], denoised: [[T, N, ...event], dtype], exact: [[T, N, ...event], dtype],
                   density: [[T, null, null], "float16"], velocity: [[T, null, null, 2], "float16"], group: [[N], "uint8"] };
  const arrays = {};
  for (const [name, entry] of Object.entries(header.arrays ?? {})) {
    arrays[name] = readArray(bytes, base, name, entry);
    const [shape, type] = wanted[name] ?? [[T], "float32"];
    check(entry.dtype === type && shape.length === entry.shape.length && shape.every((n, i) => n === null || n === entry.shape[i]),
      `array "${name}" is ${entry.dtype} [${entry.shape}]; expected ${type} [${shape.map((n) => n ?? "any")}].`);
  }
  check(arrays.x, 'the array "x" is missing.');
  if (plane) check(header.window?.x?.length === 2 && header.window?.y?.length === 2, "a plane run needs a window for x and y.");
  const readouts = (header.readouts ?? []).filter((r) => arrays[r.array]).map((r) => ({ ...r, values: arrays[r.array].values }));
  return { ...header, arrays, readouts, axis: makeAxis(T, header.axis ?? {}) };
}

// ---------------------------------------------------------------- the time axis: log rho, noise left, data right

const BREAK = 0.06;   // share of the axis given to a step from rho = infinity, or to rho = 0

// Places every node on [0, 1]. Where rho cannot be put on a log axis, the nodes are spaced evenly.
function makeAxis(T, { rho = [], t = [] }) {
  const logs = Array.from({ length: T }, (_, i) => rho[i] === null ? Infinity : Math.log10(rho[i]));
  const finite = logs.filter(Number.isFinite), from = finite[0], to = finite.at(-1);
  const ends = [!Number.isFinite(logs[0]), !Number.isFinite(logs[T - 1])];
  const ordered = finite.every((l, i) => i === 0 || (l - finite[i - 1]) * (to - from) >= 0);
  const logarithmic = rho.length === T && finite.length === T - (T > 1 ? ends[0] + ends[1] : 0) && finite.length > 0 && ordered;
  const left = ends[0] ? BREAK : 0, right = ends[1] ? 1 - BREAK : 1;
  const position = (l) => left + (right - left) * (from === to ? 0.5 : (from - l) / (from - to));
  const even = (i) => T > 1 ? i / (T - 1) : 0.5;
  const u = logs.map((l, i) => !logarithmic ? even(i) : Number.isFinite(l) ? position(l) : i === 0 ? 0 : 1);
  return { rho, t, u, logarithmic, breaks: logarithmic ? ends : [false, false], position, range: [Math.min(from, to), Math.max(from, to)] };
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

// ---------------------------------------------------------------- words and numbers

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
  const step = Number.isInteger(frame) ? String(frame) : frame.toFixed(1), parts = [`step ${step} of ${run.frames - 1}`];
  if (run.axis.rho.length) parts.push(said("ρ", valueAt(run.axis.rho, frame, true)));
  if (run.axis.t.length) parts.push(said("t", valueAt(run.axis.t, frame)));
  for (const { label, unit, values } of run.readouts) parts.push(said(label, valueAt(values, frame)) + (unit ? ` (${unit})` : ""));
  return parts.join(" · ");
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

// ---------------------------------------------------------------- the GPU: programs and textures

const COMMON = `#version 300 es
precision highp float; precision highp int; precision highp usampler2D; precision highp sampler2DArray;
uvec4 item(usampler2D store, int k) { int w = textureSize(store, 0).x; return texelFetch(store, ivec2(k % w, k / w), 0); }`;

// Many small strips in one, joined by degenerate triangles: quicker than instances of a few vertices each.
const VERTEX = COMMON + `
uniform int uVertices;
int instance() { return gl_VertexID / uVertices; }
int local() { return clamp(gl_VertexID % uVertices - 1, 0, uVertices - 3); }
ivec2 corner() { return ivec2(local() & 1, local() >> 1); }`;

const POSITIONS = VERTEX + `
uniform usampler2D uStore, uGroup;
uniform int uSamples, uLast, uStride, uFirst, uGrouped;
uniform vec4 uRange, uView; uniform float uFrame, uSize; uniform vec3 uColour, uPalette[8];
vec2 node(usampler2D store, int s, int f) { return uRange.xy + vec2(item(store, f * uSamples + s).xy) * uRange.zw; }
vec2 pixel(vec2 p) { return (p - uView.xy) * uView.zw * uSize; }
vec2 at(usampler2D store, int s, float frame) {
  int f = int(frame); float w = frame - float(f); vec2 a = node(store, s, f);
  return pixel(w > 0. ? mix(a, node(store, s, min(f + 1, uLast)), w) : a);
}
int chosen() { return uFirst + instance() * uStride; }
vec3 colourOf(int s) { return uGrouped == 1 ? uPalette[item(uGroup, s).x & 7u] : uColour; }
vec4 clip(vec2 p) { return vec4(p / uSize * 2. - 1., 0., 1.); }`;

const STROKE = `
uniform float uWidth; out float vAcross; out vec4 vInk;
vec2 side(vec2 a, vec2 b) { vec2 d = b - a; float l = length(d); return l > 1e-4 ? vec2(-d.y, d.x) / l : vec2(0.); }
vec2 stroke(vec2 a, vec2 b) {
  vAcross = (float(corner().y) * 2. - 1.) * (.5 * uWidth + 1.);
  return (corner().x == 0 ? a : b) + side(a, b) * vAcross;
}`;

const STROKE_INK = COMMON + `
uniform float uWidth; in float vAcross; in vec4 vInk; out vec4 ink;
void main() { float a = vInk.a * clamp(.5 * uWidth + .5 - abs(vAcross), 0., 1.); ink = vec4(vInk.rgb * a, a); }`;

const WHOLE = VERTEX + "out vec2 vUv; void main() { vUv = vec2(corner()); gl_Position = vec4(vUv * 2. - 1., 0., 1.); }";

const SHADERS = {
  // Round points, filled or hollow.
  points: [POSITIONS + `
uniform float uRadius; out vec2 vOffset; flat out vec3 vColour;
void main() {
  int s = chosen();
  vOffset = (vec2(corner()) * 2. - 1.) * (uRadius + 1.); vColour = colourOf(s);
  gl_Position = clip(at(uStore, s, uFrame) + vOffset);
}`, COMMON + `
uniform float uRadius, uRing, uAlpha; in vec2 vOffset; flat in vec3 vColour; out vec4 ink;
void main() {
  float d = length(vOffset), a = clamp(uRadius + .5 - d, 0., 1.);
  if (uRing > 0.) a *= clamp(d - uRadius + uRing + .5, 0., 1.);
  a *= uAlpha; ink = vec4(vColour * a, a);
}`],

  // One strip a particle, through its nodes from uHead back to uTail; the alpha falls by uFade towards the tail.
  trails: [POSITIONS + STROKE + `
uniform float uHead, uTail, uFade, uAlpha;
float station(int k) { return clamp(k <= 0 ? uHead : ceil(uHead) - float(k), uTail, uHead); }
void main() {
  int k = local() >> 1, s = chosen(); float f = station(k);
  vec2 here = at(uStore, s, f), n = side(at(uStore, s, station(k - 1)), at(uStore, s, station(k + 1)));
  vAcross = (float(local() & 1) * 2. - 1.) * (.5 * uWidth + 1.);
  vInk = vec4(colourOf(s), uAlpha * mix(1., (f - uTail) / max(uHead - uTail, 1e-3), uFade));
  gl_Position = clip(here + n * vAcross);
}`, STROKE_INK],

  // From each particle to where the exact flow would have it.
  errors: [POSITIONS + STROKE + `
uniform usampler2D uOther; uniform float uAlpha;
void main() {
  int s = chosen(); vec2 here = at(uStore, s, uFrame), there = at(uOther, s, uFrame);
  vInk = vec4(uColour, uAlpha * smoothstep(1., 3., distance(here, there) / uWidth));   // none where the ring already touches
  gl_Position = clip(stroke(here, there));
}`, STROKE_INK],

  // Arrows on a lattice fixed to the screen, so that they stay evenly spaced when zoomed.
  arrows: [VERTEX + STROKE + `
uniform sampler2DArray uField; uniform int uLattice; uniform vec2 uLayers; uniform float uBlend, uSize, uTypical, uAlpha;
uniform vec3 uColour; uniform vec4 uView, uWindow;
void main() {
  int part = instance() % 3, arrow = instance() / 3;
  vec2 cell = (vec2(arrow % uLattice, arrow / uLattice) + .5) / float(uLattice);
  vec2 uv = (uView.xy + cell / uView.zw - uWindow.xy) * uWindow.zw;
  vec2 v = mix(textureLod(uField, vec3(uv, uLayers.x), 0.).xy, textureLod(uField, vec3(uv, uLayers.y), 0.).xy, uBlend) * uWindow.zw;
  float speed = length(v), reach = .78 * uSize / float(uLattice) * (1. - exp(-speed / uTypical));
  vec2 d = speed > 0. ? v / speed : vec2(0.), tip = cell * uSize + .5 * reach * d, tail = tip - reach * d;
  float barb = min(.38 * reach, 3.2 * uWidth);
  vec2 back = part == 1 ? vec2(-.82 * d.x + .57 * d.y, -.57 * d.x - .82 * d.y) : vec2(-.82 * d.x - .57 * d.y, .57 * d.x - .82 * d.y);
  vInk = vec4(uColour, uAlpha * smoothstep(1.5 * uWidth, 5. * uWidth, reach));
  gl_Position = vec4(stroke(tip, part == 0 ? tail : tip + back * barb) / uSize * 2. - 1., 0., 1.);
}`, STROKE_INK],

  // The log density over the view at one moment, on a small lattice: smooth in space, blended in time.
  field: [WHOLE, COMMON + `
uniform sampler2DArray uField; uniform vec2 uLayers; uniform float uBlend; uniform vec4 uView, uWindow;
in vec2 vUv; out vec4 ink;
float cubic(vec2 uv, float layer) {   // Catmull-Rom, exact for a quadratic: the log density of a Gaussian
  vec2 size = vec2(textureSize(uField, 0).xy), p = uv * size, c = floor(p - .5) + .5, f = p - c;
  vec2 w0 = f * (-.5 + f * (1. - .5 * f)), w3 = f * f * (-.5 + .5 * f), w2 = f * (.5 + f * (2. - 1.5 * f)), w12 = 1. - w0 - w3;
  vec2 a = (c - 1.) / size, b = (c + w2 / w12) / size, d = (c + 2.) / size;
  #define TAP(u, v) textureLod(uField, vec3(u, v, layer), 0.).r
  return (TAP(a.x, b.y) * w0.x + TAP(b.x, b.y) * w12.x + TAP(d.x, b.y) * w3.x) * w12.y
       + TAP(b.x, a.y) * w12.x * w0.y + TAP(b.x, d.y) * w12.x * w3.y
       + (TAP(a.x, a.y) * w0.x + TAP(d.x, a.y) * w3.x) * w0.y + (TAP(a.x, d.y) * w0.x + TAP(d.x, d.y) * w3.x) * w3.y;
}
float beyond(vec2 p, vec2 inward, float over, float l, float layer) {
  float first = l - cubic(p + inward, layer), second = first - cubic(p + inward, layer) + cubic(p + 2. * inward, layer);
  return over * first + .5 * over * (over + 1.) * second;
}
float field(vec2 uv, float layer) {   // beyond the outermost cell centres the field goes on as a parabola
  vec2 cell = 1. / vec2(textureSize(uField, 0).xy), inside = clamp(uv, .5 * cell, 1. - .5 * cell), over = (uv - inside) / cell;
  float l = cubic(inside, layer), m = l;
  if (over.x != 0.) m += beyond(inside, vec2(-sign(over.x) * cell.x, 0.), abs(over.x), l, layer);
  if (over.y != 0.) m += beyond(inside, vec2(0., -sign(over.y) * cell.y), abs(over.y), l, layer);
  return m;
}
void main() {
  vec2 uv = (uView.xy + vUv / uView.zw - uWindow.xy) * uWindow.zw;
  float l = field(uv, uLayers.x);
  if (uBlend > 0.) l = mix(l, field(uv, uLayers.y), uBlend);
  ink = vec4(l);
}`],

  // Bands and iso-lines of the log density at -k^2 / 2 below its maximum, k = 1 to 4: k standard deviations of a Gaussian.
  contours: [WHOLE, COMMON + `
uniform sampler2D uLog; uniform float uLine; uniform vec3 uColour, uGround; in vec2 vUv; out vec4 ink;
void main() {
  float s = sqrt(max(-2. * textureLod(uLog, vUv, 0.).r, 0.)), w = max(fwidth(s), 1e-6), k = clamp(floor(s + .5), 1., 4.);
  float fill = .055 * (4. - k + clamp((k - s) / w + .5, 0., 1.)), line = (.5 - .07 * k) * clamp(.5 * uLine + .5 - abs(s - k) / w, 0., 1.);
  ink = vec4(mix(uGround, uColour, fill + (1. - fill) * line), 1.);
}`],

  // A grid of grey tiles, blended in time, never in space.
  tiles: [WHOLE, COMMON + `
uniform usampler2D uStore; uniform int uSamples, uLast, uShown, uColumns, uSelected; uniform ivec2 uPixels;
uniform float uFrame, uGap, uScale; uniform vec2 uCorner, uPitch; uniform vec3 uSurface, uAccent; out vec4 ink;
void main() {
  vec2 p = vec2(gl_FragCoord.x - uCorner.x, uCorner.y - gl_FragCoord.y) - uGap, tile = floor(p / uPitch), inside = p - tile * uPitch;
  int s = int(tile.y) * uColumns + int(tile.x);
  vec2 d = p - vec2(uSelected % uColumns, uSelected / uColumns) * uPitch;
  bool framed = uSelected >= 0 && all(greaterThanEqual(d, vec2(-uGap))) && all(lessThan(d, uPitch));
  bool picture = all(greaterThanEqual(tile, vec2(0.))) && int(tile.x) < uColumns && s < uShown && all(lessThan(inside, uPitch - uGap));
  ink = vec4(framed ? uAccent : uSurface, 1.);
  if (!picture) return;
  ivec2 q = min(ivec2(inside / uScale), uPixels - 1);
  int area = uPixels.x * uPixels.y, f = int(uFrame), k = (f * uSamples + s) * area + q.y * uPixels.x + q.x;
  float w = uFrame - float(f), v = float(item(uStore, k).x);
  if (w > 0.) v = mix(v, float(item(uStore, k + (f < uLast ? uSamples * area : 0)).x), w);
  ink = vec4(vec3(v / 255.), 1.);
}`],
};

const SETTERS = { 0x1406: "uniform1f", 0x8b50: "uniform2fv", 0x8b51: "uniform3fv", 0x8b52: "uniform4fv", 0x8b53: "uniform2iv" };

function link(gl, [vertex, fragment]) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) throw new Error(gl.getShaderInfoLog(shader));
  }
  gl.linkProgram(program);
  const uniforms = {};
  for (let i = 0; i < (gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS) ?? 0); i++) {
    const { name, type } = gl.getActiveUniform(program, i);
    uniforms[name.replace("[0]", "")] = [gl.getUniformLocation(program, name), SETTERS[type] ?? "uniform1i"];
  }
  return { program, uniforms };
}

// A context with its programs, compiled when first drawn with and kept from run to run.
function makeGpu(canvas) {
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false });
  if (!gl) return null;
  const programs = {}, textures = [];
  const floats = Boolean(gl.getExtension("EXT_color_buffer_float") ?? gl.getExtension("EXT_color_buffer_half_float"));
  let buffer = null;
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const texture = (unit, target) => {
    const made = gl.createTexture();
    textures.push(made);
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(target, made);
    return target;
  };
  const smooth = (target) => {
    for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, side, gl.LINEAR);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(target, side, gl.CLAMP_TO_EDGE);
  };
  return {
    gl,
    floats,
    draw(name, uniforms, vertices = 4, count = 1) {
      const { program, uniforms: known } = (programs[name] ??= link(gl, SHADERS[name]));
      gl.useProgram(program);
      for (const [key, value] of Object.entries({ ...uniforms, uVertices: vertices + 2 })) if (known[key]) gl[known[key][1]](known[key][0], value);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, (vertices + 2) * count);
    },
    // A long list of integers (one or two a texel), wrapped into rows that the device can hold.
    upload(unit, values, channels) {
      const wide = values instanceof Uint16Array, count = values.length / channels, limit = gl.getParameter(gl.MAX_TEXTURE_SIZE);
      const width = Math.min(limit, Math.max(1, 2 ** Math.ceil(Math.log2(count) / 2))), height = Math.ceil(count / width), rows = Math.floor(count / width);
      check(height <= limit, "the run is too large for this device's graphics memory; record fewer samples or frames.");
      const target = texture(unit, gl.TEXTURE_2D), type = wide ? gl.UNSIGNED_SHORT : gl.UNSIGNED_BYTE;
      const format = channels === 2 ? gl.RG_INTEGER : gl.RED_INTEGER;
      gl.texStorage2D(target, 1, channels === 2 ? gl.RG16UI : gl.R8UI, width, height);
      gl.texParameteri(target, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(target, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      if (rows) gl.texSubImage2D(target, 0, 0, 0, width, rows, format, type, values, 0);
      if (rows < height) gl.texSubImage2D(target, 0, 0, rows, count - rows * width, 1, format, type, values, rows * width * channels);
    },
    // A field on a lattice at every frame; every `stride`th where the device holds fewer layers than there are frames.
    uploadField(unit, { values, shape: [T, rows, columns] }, channels, prepare = (layer) => layer) {
      const stride = Math.ceil(T / gl.getParameter(gl.MAX_ARRAY_TEXTURE_LAYERS)), layers = Math.floor((T - 1) / stride) + 1;
      const target = texture(unit, gl.TEXTURE_2D_ARRAY), size = rows * columns * channels;
      gl.texStorage3D(target, 1, channels === 2 ? gl.RG16F : gl.R16F, columns, rows, layers);
      smooth(target);
      for (let i = 0; i < layers; i++) {
        const layer = prepare(values.subarray(i * stride * size, (i * stride + 1) * size));
        gl.texSubImage3D(target, 0, 0, 0, i, columns, rows, 1, channels === 2 ? gl.RG : gl.RED, gl.HALF_FLOAT, layer);
      }
      return (frame) => {
        const layer = Math.min(frame / stride, layers - 1), f = Math.floor(layer);
        return { uLayers: [f, Math.min(f + 1, layers - 1)], uBlend: layer - f };
      };
    },
    // Draws into a square of half floats, kept from frame to frame, which is then read from its unit.
    into(unit, size, paint) {
      if (!buffer) {
        const target = texture(unit, gl.TEXTURE_2D);
        gl.texStorage2D(target, 1, gl.R16F, size, size);
        smooth(target);
        buffer = gl.createFramebuffer();
        gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
        gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, target, textures.at(-1), 0);
      }
      gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
      gl.viewport(0, 0, size, size);
      paint();
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    },
    clear() {
      buffer = gl.deleteFramebuffer(buffer) ?? null;
      textures.splice(0).forEach((t) => gl.deleteTexture(t));
    },
    release() { gl.getExtension("WEBGL_lose_context")?.loseContext(); },
  };
}

const UNIT = { x: 0, denoised: 1, exact: 2, group: 3, density: 4, velocity: 5, log: 6 };

// ---------------------------------------------------------------- plane: particles and fields

const FIELD = 128;   // nodes along a side of the view at which the density is interpolated
const SHOWN = 400;   // samples that carry a trail or an exact ring; more would hide one another
const LAYERS = {
  density: ["Density", "Log density relative to its maximum: bands and lines at −k²/2, k = 1 to 4 (k standard deviations of a Gaussian)"],
  velocity: ["Probability-flow drift", "Direction of sampling; the length saturates for fast drift"],
  trails: ["Trails", "The last nodes of each sample, fading"],
  particles: ["Particles", "The recorded samples"],
  denoised: ["Denoised estimate", "Where the denoiser sees each sample's origin"],
  exact: ["Exact flow", "Where the exact probability flow carries the same start, with a line from the particle"],
};
const MARGIN = { left: 60, right: 14, top: 8, bottom: 42 };

function halfToFloat(h) {
  const e = (h >> 10) & 31, m = (h & 1023) / 1024, s = h & 0x8000 ? -1 : 1;
  return e === 31 ? NaN : s * (e ? 2 ** (e - 15) * (1 + m) : 2 ** -14 * m);
}

// Keeps -infinity (and anything far below the last line) out of the interpolation: -24 as a half float.
const floorLogDensity = (layer) => layer.map((h) => (h > 0xce00 || (h > 0x7c00 && h < 0x8000) ? 0xce00 : h));

// The speed, in windows per unit of -log rho, that a typical arrow stands for: the upper quartile over the run.
function typicalSpeed({ values }, { x, y }) {
  const speeds = [], step = 2 * Math.max(1, Math.floor(values.length / 40000));
  for (let i = 0; i + 1 < values.length; i += step) {
    const speed = Math.hypot(halfToFloat(values[i]) / (x[1] - x[0]), halfToFloat(values[i + 1]) / (y[1] - y[0]));
    if (Number.isFinite(speed)) speeds.push(speed);
  }
  return speeds.sort((a, b) => a - b)[Math.floor(speeds.length * 0.75)] || 1;
}

function positionOf({ values, low, scale }, N, T, sample, frame) {
  const f = Math.floor(frame), w = frame - f, a = 2 * (f * N + sample), b = 2 * (Math.min(f + 1, T - 1) * N + sample);
  return [0, 1].map((c) => low[c] + scale[c] * (values[a + c] * (1 - w) + values[b + c] * w));
}

function makePlane(run) {
  const { arrays, window: home, frames: T, samples: N } = run;
  const full = [...home.x, ...home.y], has = (name) => Boolean(arrays[name]);
  const available = Object.keys(LAYERS).filter((name) => has(name) || name === "trails" || name === "particles");
  const every = Math.ceil(N / SHOWN);
  let view = [...full], size = 1, densityAt, velocityAt, typical;

  const viewUniform = ([x0, x1, y0, y1]) => [x0, y0, 1 / (x1 - x0), 1 / (y1 - y0)];
  const toPixel = ([x, y]) => [(x - view[0]) / (view[1] - view[0]) * size, (view[3] - y) / (view[3] - view[2]) * size];

  function upload(gpu) {
    for (const name of ["x", "denoised", "exact"]) if (has(name)) gpu.upload(UNIT[name], arrays[name].values, 2);
    gpu.upload(UNIT.group, arrays.group?.values ?? new Uint8Array(1), 1);
    if (has("density")) densityAt = gpu.uploadField(UNIT.density, arrays.density, 1, floorLogDensity);
    if (has("velocity")) velocityAt = gpu.uploadField(UNIT.velocity, arrays.velocity, 2);
    if (has("velocity")) typical = typicalSpeed(arrays.velocity, home);
  }

  function draw(gpu, { frame, layers, trail, hovered, colours, ratio }) {
    const { gl } = gpu, device = Math.round(size * ratio), shown = (name) => layers[name] && available.includes(name);
    const common = { uFrame: frame, uSamples: N, uLast: T - 1, uSize: device, uView: viewUniform(view), uWindow: viewUniform(full),
                     uGroup: UNIT.group, uGrouped: has("group") ? 1 : 0, uPalette: colours.palette, uStride: 1, uFirst: 0 };
    const particles = (name, more) => ({ ...common, uStore: UNIT[name], uRange: [...arrays[name].low, ...arrays[name].scale], ...more });
    const radius = clamp(size / Math.sqrt(N) * 0.13, 1.3, 4) * ratio;
    gl.viewport(0, 0, device, device);
    gl.clearColor(...colours.plot, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.disable(gl.BLEND);
    if (shown("density") && gpu.floats) {
      gpu.into(UNIT.log, FIELD, () => gpu.draw("field", { ...common, ...densityAt(frame), uField: UNIT.density }));
      gl.viewport(0, 0, device, device);
      gpu.draw("contours", { uLog: UNIT.log, uColour: colours.density, uGround: colours.plot, uLine: ratio });
    }
    gl.enable(gl.BLEND);
    if (shown("velocity")) {
      const lattice = Math.max(4, Math.round(size / 28));
      gpu.draw("arrows", { ...common, ...velocityAt(frame), uField: UNIT.velocity, uLattice: lattice, uTypical: typical, uWidth: 1.1 * ratio, uColour: colours.velocity, uAlpha: 0.6 }, 4, 3 * lattice ** 2);
    }
    if (shown("trails") && trail > 0)
      gpu.draw("trails", particles("x", { uStride: every, uHead: frame, uTail: Math.max(0, frame - trail), uFade: 1, uAlpha: 0.5, uWidth: 1.1 * ratio, uColour: colours.particle }), 2 * (Math.ceil(trail) + 2), Math.ceil(N / every));
    if (shown("exact")) {
      const ink = has("group") ? colours.text : colours.exact, count = Math.ceil(N / every);
      gpu.draw("errors", particles("x", { uOther: UNIT.exact, uStride: every, uWidth: ratio, uAlpha: 0.85, uColour: ink }), 4, count);
      gpu.draw("points", particles("exact", { uStride: every, uRadius: radius + 1.6 * ratio, uRing: 0.9 * ratio, uAlpha: 0.9, uGrouped: 0, uColour: ink }), 4, count);
    }
    if (shown("denoised"))
      gpu.draw("points", particles("denoised", { uRadius: radius + 0.4 * ratio, uRing: 1.1 * ratio, uAlpha: 0.9, uGrouped: 0, uColour: colours.denoised }), 4, N);
    if (shown("particles"))
      gpu.draw("points", particles("x", { uRadius: radius, uRing: 0, uAlpha: 0.85, uColour: colours.particle }), 4, N);
    if (hovered !== null) {
      const path = { uFirst: hovered, uFade: 0, uGrouped: 0, uColour: colours.text };
      gpu.draw("trails", particles("x", { ...path, uHead: T - 1, uTail: frame, uAlpha: 0.35, uWidth: ratio }), 2 * (T + 1));
      gpu.draw("trails", particles("x", { ...path, uHead: frame, uTail: 0, uAlpha: 1, uWidth: 1.8 * ratio }), 2 * (T + 1));
      gpu.draw("points", particles("x", { ...path, uRadius: radius + 3 * ratio, uRing: 1.6 * ratio, uAlpha: 1 }), 4);
    }
  }

  function layout(width) {
    // The picture, its time axis and its buttons fit one screen.
    const tallest = Math.max(300, Math.min(620, Math.round(0.62 * innerHeight)));
    size = Math.max(120, Math.min(Math.floor(width) - MARGIN.left - MARGIN.right, tallest));
    return { left: MARGIN.left, top: MARGIN.top, width: size, height: size,
             outer: [size + MARGIN.left + MARGIN.right, size + MARGIN.top + MARGIN.bottom] };
  }

  function overlay() {
    const right = MARGIN.left + size, base = MARGIN.top + size, marks = [svg("rect", { x: MARGIN.left, y: MARGIN.top, width: size, height: size, class: "wb-frame" })];
    const count = Math.max(4, Math.round(size / 90));
    for (const [x, text] of ticks(view[0], view[1], count)) {
      const p = MARGIN.left + toPixel([x, 0])[0];
      marks.push(svg("path", { d: `M${p} ${base}v5`, class: "wb-tick" }), svg("text", { x: clamp(p, 0, right - 2), y: base + 18, "text-anchor": "middle" }, text));
    }
    for (const [y, text] of ticks(view[2], view[3], count)) {
      const p = MARGIN.top + toPixel([0, y])[1];
      marks.push(svg("path", { d: `M${MARGIN.left} ${p}h-5`, class: "wb-tick" }), svg("text", { x: MARGIN.left - 9, y: p + 4, "text-anchor": "end" }, text));
    }
    const mid = MARGIN.top + size / 2;
    marks.push(svg("text", { x: MARGIN.left + size / 2, y: base + 36, "text-anchor": "middle", class: "wb-label" }, run.labels?.x ?? "x₁"),
               svg("text", { x: 13, y: mid, "text-anchor": "middle", class: "wb-label", transform: `rotate(-90 13 ${mid})` }, run.labels?.y ?? "x₂"));
    return marks;
  }

  // The particle nearest to a point of the picture, within a finger's breadth.
  function pick(px, py, frame) {
    let best = null, least = 14 ** 2;
    for (let i = 0; i < N; i++) {
      const [x, y] = toPixel(positionOf(arrays.x, N, T, i, frame)), d = (x - px) ** 2 + (y - py) ** 2;
      if (d < least) [best, least] = [i, d];
    }
    return best;
  }

  function tell(sample, frame) {
    const here = positionOf(arrays.x, N, T, sample, frame), point = ([x, y]) => minus(`(${number(x)}, ${number(y)})`);
    const lines = [`sample ${sample}` + (has("group") ? ` · class ${arrays.group.values[sample]}` : ""), point(here)];
    if (has("denoised")) lines.push(`denoised ${point(positionOf(arrays.denoised, N, T, sample, frame))}`);
    if (has("exact")) lines.push(`exact ${point(positionOf(arrays.exact, N, T, sample, frame))}`);
    return { at: toPixel(here), lines };
  }

  // Zooms about, then moves by, fractions of the picture; never leaves the window, which is all that was recorded.
  function move(factor, [u, v], [du, dv]) {
    const along = (a, b, low, high, c, d) => {
      const width = clamp((b - a) * factor, (high - low) / 100, high - low);
      const start = clamp(a + c * (b - a - width) - d * width, low, high - width);
      return [start, start + width];
    };
    view = [...along(view[0], view[1], full[0], full[1], u, du), ...along(view[2], view[3], full[2], full[3], 1 - v, -dv)];
  }

  return { layers: available, every, upload, draw, layout, overlay, pick, tell, move,
           zoomed: () => view[1] - view[0] < (full[1] - full[0]) * 0.999, reset: () => { view = [...full]; },
           view: () => ({ view, full }), restore: (old) => { if (String(old?.full) === String(full)) view = old.view; } };
}

// ---------------------------------------------------------------- images: a panel of tiles for each recorded quantity

const PANELS = { x: "xₜ", denoised: "Denoised estimate", exact: "Exact flow" };
const CAPTION = 24, BETWEEN = 20;

function makeImages(run) {
  const { arrays, frames: T, samples: N, image: { rows: R, columns: C } } = run, names = Object.keys(PANELS).filter((n) => arrays[n]);
  let grid, panels, ratio = 1;

  function upload(gpu) {
    for (const name of names) gpu.upload(UNIT[name], arrays[name].values, 1);
  }

  // A pixel of a sample is a whole number of device pixels wide, unless that would waste much of the room.
  function layout(width, device) {
    ratio = device;
    const across = clamp(Math.floor((width + BETWEEN) / (200 + BETWEEN)), 1, names.length);
    const room = Math.min(Math.floor((width - BETWEEN * (across - 1)) / across), 400), gap = Math.max(1, Math.round(2 * ratio));
    const columns = clamp(Math.ceil(Math.sqrt(N * R / C)), 1, Math.min(N, Math.max(1, Math.floor(room / 22))));
    const shown = Math.min(N, columns * Math.max(1, Math.ceil(columns * C / R))), lines = Math.ceil(shown / columns);
    const free = ((room * ratio - gap) / columns - gap) / C, scale = Math.floor(free) > 0.85 * free ? Math.floor(free) : Math.floor(free * C) / C || free;
    const pitch = [scale * C + gap, scale * R + gap], box = [columns * pitch[0] + gap, lines * pitch[1] + gap];
    grid = { gap, columns, shown, scale, pitch, box };
    panels = names.map((name, i) => ({ name, x: (i % across) * (box[0] / ratio + BETWEEN), y: CAPTION + Math.floor(i / across) * (box[1] / ratio + CAPTION + BETWEEN) }));
    const height = panels.at(-1).y + box[1] / ratio, total = Math.min(width, Math.ceil(across * (box[0] / ratio + BETWEEN) - BETWEEN));
    return { left: 0, top: 0, width: total, height: Math.ceil(height), outer: [total, Math.ceil(height)] };
  }

  function draw(gpu, { frame, hovered, colours }) {
    const { gl } = gpu, tall = gl.drawingBufferHeight;
    gl.viewport(0, 0, gl.drawingBufferWidth, tall);
    gl.disable(gl.BLEND);
    gl.clearColor(...colours.surface, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    for (const { name, x, y } of panels) {
      const left = Math.round(x * ratio), top = tall - Math.round(y * ratio);
      gl.viewport(left, Math.ceil(top - grid.box[1]), Math.ceil(grid.box[0]), Math.ceil(grid.box[1]));
      gpu.draw("tiles", { uStore: UNIT[name], uSamples: N, uLast: T - 1, uFrame: frame, uShown: grid.shown, uColumns: grid.columns, uPixels: [C, R], uGap: grid.gap,
        uScale: grid.scale, uPitch: grid.pitch, uCorner: [left, top], uSelected: hovered ?? -1, uSurface: colours.surface, uAccent: colours.accent });
    }
  }

  function overlay() {
    const part = grid.shown < N ? `first ${grid.shown} of ${N}` : `${N} sample${N > 1 ? "s" : ""}`;
    return panels.flatMap(({ name, x, y }, i) => [svg("text", { x: x + grid.gap / ratio, y: y - 8, class: "wb-caption" }, PANELS[name]),
      i ? "" : svg("text", { x: x + grid.box[0] / ratio - 2, y: y - 8, "text-anchor": "end" }, part)]);
  }

  let spot = null;   // the pixel last pointed at
  function pick(px, py) {
    for (const panel of panels) {
      const x = (px - panel.x) * ratio - grid.gap, y = (py - panel.y) * ratio - grid.gap;
      const column = Math.floor(x / grid.pitch[0]), row = Math.floor(y / grid.pitch[1]), sample = row * grid.columns + column;
      if (x < 0 || y < 0 || column >= grid.columns || sample >= grid.shown) continue;
      const pixel = [(y - row * grid.pitch[1]) / grid.scale, (x - column * grid.pitch[0]) / grid.scale].map(Math.floor);
      spot = { pixel: [Math.min(pixel[0], R - 1), Math.min(pixel[1], C - 1)], at: [px, py] };
      return sample;
    }
    return null;
  }

  function tell(sample, frame) {
    const f = Math.floor(frame), w = frame - f, [r, c] = spot.pixel;
    const value = (name) => {
      const { values, low, scale } = arrays[name], at = (g) => values[((Math.min(g, T - 1) * N + sample) * R + r) * C + c];
      return low[0] + scale[0] * (at(f) * (1 - w) + at(f + 1) * w);
    };
    return { at: spot.at, lines: [`sample ${sample} · row ${r}, column ${c}`, ...names.map((n) => minus(`${PANELS[n]} ${number(value(n))}`))] };
  }

  return { layers: [], upload, draw, layout, overlay, pick, tell };
}

// ---------------------------------------------------------------- the page: elements, styles, theme

function build(namespace, tag, attributes, children) {
  const node = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes ?? {})) if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  node.append(...children);
  return node;
}
const html = (tag, attributes, ...children) => build(null, tag, attributes, children);
const svg = (tag, attributes, ...children) => build("http://www.w3.org/2000/svg", tag, attributes, children);

const STYLE = `
.wb-player { --wb-surface: #ffffff; --wb-plot: #fcfcfd; --wb-text: #1b1f24; --wb-muted: #59636e; --wb-line: #c9d0d8; --wb-hover: #eef1f4; --wb-accent: #0072b2;
  --wb-particle: #0072b2; --wb-exact: #d55e00; --wb-denoised: #009e73; --wb-density: #3b4a5a; --wb-velocity: #6f7882;
  --wb-groups: #0072b2 #e69f00 #009e73 #cc79a7 #56b4e9 #d55e00 #b8a800 #555555;
  box-sizing: border-box; width: 100%; max-width: 1000px; padding: 12px 14px; color: var(--wb-text); background: var(--wb-surface); border-radius: 6px; outline: none;
  font: 13px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; color-scheme: light; text-align: left; }
.wb-player[data-mode=dark] { --wb-surface: #14171b; --wb-plot: #181c21; --wb-text: #e6e9ed; --wb-muted: #98a2ad; --wb-line: #3a424b; --wb-hover: #242a31; --wb-accent: #56b4e9;
  --wb-particle: #56b4e9; --wb-exact: #f0a030; --wb-denoised: #22b98d; --wb-density: #b9c6d4; --wb-velocity: #8b95a0;
  --wb-groups: #56b4e9 #e69f00 #22b98d #cc79a7 #3f8fd0 #e8703a #f0e442 #b0b0b0; color-scheme: dark; }
.wb-player.wb-images { max-width: 1280px; }
.wb-player *, .wb-player *::before { box-sizing: border-box; }
.wb-player:focus-visible { box-shadow: inset 0 0 0 2px var(--wb-accent); }
.wb-player [hidden] { display: none !important; }
.wb-title { font-weight: 600; font-size: 14px; margin: 0 0 6px; }
.wb-body { display: flex; gap: 8px 26px; flex-wrap: wrap; align-items: flex-start; }
.wb-blind .wb-stage, .wb-blind .wb-side { display: none; } .wb-body .wb-message { flex: 1 1 100%; }
.wb-stage { position: relative; flex: none; }
.wb-stage svg { position: absolute; inset: 0; pointer-events: none; overflow: visible; }
.wb-player svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; fill: var(--wb-muted); }
.wb-player svg text.wb-label { fill: var(--wb-text); font-size: 12px; }
.wb-player svg text.wb-caption { fill: var(--wb-text); font-size: 12.5px; font-weight: 600; }
.wb-player svg text.wb-name { font-style: italic; font-size: 12px; fill: var(--wb-text); }
.wb-frame { fill: none; stroke: var(--wb-line); } .wb-tick { fill: none; stroke: var(--wb-muted); }
.wb-canvas { position: absolute; display: block; }
.wb-plane .wb-canvas { cursor: crosshair; touch-action: pan-y; } .wb-plane .wb-canvas.wb-zoomed { cursor: grab; touch-action: none; } .wb-canvas.wb-held { cursor: grabbing !important; }
.wb-tip { position: absolute; pointer-events: none; white-space: pre; padding: 4px 8px; font-size: 11.5px; line-height: 1.4; border: 1px solid var(--wb-line); border-radius: 4px; background: var(--wb-surface); box-shadow: 0 1px 5px #0003; }
.wb-message { color: var(--wb-muted); padding: 34px 20px; text-align: center; border: 1px dashed var(--wb-line); border-radius: 6px; }
.wb-side { flex: 1 1 200px; min-width: 190px; display: flex; flex-wrap: wrap; gap: 10px 22px; align-items: center; padding: 4px 0; }
.wb-wide .wb-side { flex-direction: column; flex-wrap: nowrap; align-items: stretch; }
.wb-layers { border: 0; margin: 0; padding: 0; min-width: 0; flex: 1 1 100%; display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 2px 12px; }
.wb-wide .wb-layers { flex: none; }
.wb-layers legend { padding: 0; margin-bottom: 4px; font-size: 11px; color: var(--wb-muted); text-transform: uppercase; letter-spacing: .06em; }
.wb-layer { display: flex; align-items: center; gap: 8px; padding: 2px 0; cursor: pointer; white-space: nowrap; }
.wb-layer input, .wb-trail input { accent-color: var(--wb-accent); margin: 0; }
.wb-layer small { color: var(--wb-muted); font-size: 11px; }
.wb-layer svg { width: 26px; height: 14px; flex: none; } .wb-layer:has(input:not(:checked)) { color: var(--wb-muted); } .wb-layer:has(input:not(:checked)) svg { opacity: .35; }
.wb-trail { display: flex; align-items: center; gap: 8px; white-space: nowrap; } .wb-trail input { flex: 1 1 70px; width: 90px; min-width: 50px; height: 16px; } .wb-trail output { color: var(--wb-muted); min-width: 4.6em; }
.wb-player button, .wb-player select { font: inherit; color: inherit; background: none; border: 1px solid transparent; border-radius: 5px; height: 30px; padding: 0 6px; cursor: pointer; }
.wb-player button { display: inline-flex; align-items: center; justify-content: center; min-width: 32px; } .wb-player button svg { width: 16px; height: 16px; fill: currentColor; }
.wb-player button:hover, .wb-player select:hover { background: var(--wb-hover); } .wb-player button:disabled { opacity: .4; cursor: default; }
.wb-player button:focus-visible, .wb-player select:focus-visible, .wb-player input:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
.wb-player select { border-color: var(--wb-line); background: var(--wb-surface); } .wb-player button.wb-play { background: var(--wb-accent); color: var(--wb-surface); min-width: 44px; } .wb-player button.wb-play:hover { filter: brightness(1.1); }
.wb-player button[aria-pressed=true] { color: var(--wb-accent); border-color: var(--wb-accent); } .wb-reset { border-color: var(--wb-line) !important; align-self: flex-start; padding: 0 10px !important; }
.wb-time { display: block; width: 100%; margin-top: 12px; touch-action: pan-y; cursor: pointer; user-select: none; -webkit-user-select: none; outline: none; overflow: visible; }
.wb-rail { stroke: var(--wb-muted); fill: none; } .wb-done { stroke: var(--wb-accent); stroke-width: 3; } .wb-head line { stroke: var(--wb-accent); } .wb-head circle { fill: var(--wb-accent); stroke: var(--wb-surface); stroke-width: 2; }
.wb-time:focus-visible .wb-head circle { stroke: var(--wb-text); } .wb-spark { fill: none; stroke: var(--wb-text); stroke-width: 1.3; stroke-linejoin: round; } .wb-dot { fill: var(--wb-accent); } .wb-grid { stroke: var(--wb-line); fill: none; }
.wb-bar { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; margin: 6px 0 0 -8px; } .wb-readout { flex: 1 1 100%; padding-left: 8px; min-height: 1.45em; } .wb-wide .wb-readout { flex-basis: 260px; }
.wb-notes { margin: 6px 0 0; color: var(--wb-muted); font-size: 12px; }
.wb-live { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (pointer: coarse) { .wb-player button, .wb-player select { height: 38px; min-width: 38px; } }`;

const ICONS = {
  start: "M3 3h2v10H3zM13 3v10L6 8z", back: "M10.5 3v10L4 8zM11.5 3h1.6v10h-1.6z", play: "M4 2.5v11L13.5 8z", pause: "M4 3h3v10H4zM9 3h3v10H9z",
  forward: "M5.5 3v10L12 8zM2.9 3h1.6v10H2.9z", end: "M11 3h2v10h-2zM3 3v10l7-5z",
  loop: "M11 1.5 14.5 4 11 6.5V5H5.5A2.5 2.5 0 0 0 3 7.5V8H1.5v-.5a4 4 0 0 1 4-4H11zM5 14.5 1.5 12 5 9.5V11h5.5A2.5 2.5 0 0 0 13 8.5V8h1.5v.5a4 4 0 0 1-4 4H5z",
};
const SWATCHES = {
  density: () => [svg("rect", { x: 1, y: 1, width: 24, height: 12, rx: 6, fill: "var(--wb-density)", "fill-opacity": 0.12, stroke: "var(--wb-density)", "stroke-opacity": 0.5 }), svg("rect", { x: 7, y: 4, width: 12, height: 6, rx: 3, fill: "var(--wb-density)", "fill-opacity": 0.15, stroke: "var(--wb-density)", "stroke-opacity": 0.7 })],
  velocity: () => [svg("path", { d: "M4 7h17M17 4l4 3-4 3", fill: "none", stroke: "var(--wb-velocity)", "stroke-width": 1.3 })],
  trails: (ink) => [svg("path", { d: "M2 11C8 12 14 9 24 3", fill: "none", stroke: ink[0], "stroke-width": 1.4, "stroke-opacity": 0.6 })],
  particles: (ink) => ink.map((colour, i) => svg("circle", { cx: 13 + (i - (ink.length - 1) / 2) * 8, cy: 7, r: 3.2, fill: colour })),
  denoised: () => [svg("circle", { cx: 13, cy: 7, r: 3.6, fill: "none", stroke: "var(--wb-denoised)", "stroke-width": 1.3 })],
  exact: (ink, grouped) => [svg("path", { d: "M5 7h7.5", stroke: grouped ? "var(--wb-text)" : "var(--wb-exact)" }), svg("circle", { cx: 17, cy: 7, r: 4.5, fill: "none", stroke: grouped ? "var(--wb-text)" : "var(--wb-exact)", "stroke-width": 1.2 })],
};
const icon = (name) => svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));

const above = (node) => node.parentElement ?? node.getRootNode().host ?? null;

function ancestors(node) {
  const list = [];
  for (let n = node; n; n = above(n)) list.push(n);
  return list;
}

// What the page says about itself: a named theme first, then the background it shows, then the reader's preference.
function isDark(el) {
  const chain = ancestors(el);
  for (const { dataset, classList } of chain) {
    if (dataset.jpThemeLight) return dataset.jpThemeLight === "false";
    for (const word of [dataset.theme, dataset.muiColorScheme, dataset.bsTheme, ...classList]) {
      const named = /^(?:(?:bk|mui|theme|vscode|mode)[-_])?(dark|light)(?:[-_](?:theme|mode))?$/i.exec(word ?? "");
      if (named) return named[1].toLowerCase() === "dark";
    }
  }
  for (const node of chain) {
    const [r, g, b, a = 1] = getComputedStyle(node).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
    if (a > 0.5) return 0.299 * r + 0.587 * g + 0.114 * b < 110;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function coloursOf(root) {
  const style = getComputedStyle(root), read = (name) => style.getPropertyValue(`--wb-${name}`).trim();
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
  const named = ["surface", "plot", "text", "accent", "particle", "exact", "denoised", "density", "velocity"].map((n) => [n, rgb(read(n))]);
  return { ...Object.fromEntries(named), palette: read("groups").split(/\s+/).flatMap(rgb) };
}

// ---------------------------------------------------------------- the scrubber: sparkline, nodes, rho above, t below

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

function sparkline({ values, label, unit }, u, x, width, top, height) {
  const known = Array.from(values).filter(Number.isFinite), positive = known.filter((v) => v > 0);
  const log = positive.length > 1 && Math.max(...positive) / Math.min(...positive) > 30;
  const used = log ? positive : known, low = Math.min(...used), high = Math.max(...used);
  if (!used.length) return { marks: [], y: () => null };
  const scale = log ? Math.log : (v) => v, span = scale(high) - scale(low) || 1;
  const y = (v) => Number.isFinite(v) ? top + height * (1 - (scale(clamp(v, low, high)) - scale(low)) / span) : null;
  const points = u.map((p, i) => (y(values[i]) === null ? "" : `${x(p).toFixed(1)} ${y(values[i]).toFixed(1)}`)).filter(Boolean);
  const caption = `${label}${unit ? ` (${unit})` : ""}${log ? ", log scale" : ""}`;
  const edge = (v, dy) => svg("text", { x: x(0) - 9, y: y(v) + dy, "text-anchor": "end" }, short(v, 2));
  return { y, marks: [
    svg("path", { d: `M${x(0)} ${top + height}H${x(1)}M${x(0)} ${top}H${x(1)}`, class: "wb-grid", "stroke-dasharray": "1 3" }),
    svg("path", { d: "M" + points.join("L"), class: "wb-spark" }), edge(high, 4), ...(high > low ? [edge(low, 4)] : []),
    svg("text", { x: clamp(width - caption.length * 5.8, 0, x(0)), y: top - 7 }, caption)] };
}

function makeScrubber(run, width) {
  const { axis } = run, left = MARGIN.left, right = MARGIN.right, x = (u) => left + u * (width - left - right);
  const readout = run.readouts[0], rail = readout ? 92 : 26, caption = rail + 40;
  const spark = readout ? sparkline(readout, axis.u, x, width, 20, 40) : { marks: [], y: () => null };
  const texts = (labels, y) => placeLabels(labels.map(([u, text]) => [x(u), text]), width).map((l) => svg("text", { x: l.x, y, "text-anchor": "middle" }, l.text));
  const [open, shut] = [axis.breaks[0] ? x(BREAK / 2) : null, axis.breaks[1] ? x(1 - BREAK / 2) : null];
  const slash = (p) => (p === null ? "" : `M${p - 4} ${rail + 5}l4 -10M${p} ${rail + 5}l4 -10`);
  const pieces = [[x(0), (open ?? x(0) + 2) - 2], [(open ?? x(0) - 2) + 2, (shut ?? x(1) + 2) - 2], [(shut ?? x(1) - 2) + 2, x(1)]];
  const above = rhoLabels(run), done = svg("path", { class: "wb-done" }), dot = svg("circle", { r: 3, class: "wb-dot" });
  const head = svg("g", { class: "wb-head" }, svg("line", { y1: readout ? 18 : rail - 10, y2: rail + 8 }), svg("circle", { cy: rail, r: 6.5 }));
  const named = (text, y) => svg("text", { x: left - 28, y, "text-anchor": "end", class: "wb-name" }, text);
  const marks = [...spark.marks,
    svg("path", { class: "wb-rail", d: pieces.map(([a, b]) => `M${a} ${rail}H${b}`).join("") + axis.u.map((u) => `M${x(u).toFixed(1)} ${rail - 5}v10`).join("") + slash(open) + slash(shut) }),
    done, ...texts(above, rail - 11), ...texts(timeLabels(run, above), rail + 22),
    svg("text", { x: left, y: caption }, "noise"), svg("text", { x: x(1), y: caption, "text-anchor": "end" }, "data"),
    svg("text", { x: x(0.5), y: caption, "text-anchor": "middle" }, axis.logarithmic ? "ρ = σ/α, log scale" : "evenly spaced steps"),
    named(axis.logarithmic ? "ρ" : "step", rail - 11), axis.t.length ? named("t", rail + 22) : "", head, dot];
  const place = (frame) => {
    const p = x(axisPosition(axis, frame)), y = readout ? spark.y(valueAt(readout.values, frame)[1]) : null;
    done.setAttribute("d", `M${x(axis.u[0])} ${rail}H${p}`);
    head.setAttribute("transform", `translate(${p} 0)`);
    dot.setAttribute("cx", p);
    dot.setAttribute("cy", y ?? 0);
    dot.setAttribute("visibility", y === null ? "hidden" : "visible");
  };
  return { marks, place, height: caption + 4, frameAt: (px) => axisFrame(axis, clamp((px - left) / (width - left - right), 0, 1)) };
}

// ---------------------------------------------------------------- the player

const SPEEDS = [0.25, 0.5, 1, 2, 4], WHOLE_RUN = 6;   // seconds for the whole run at speed 1
const DEFAULTS = { density: true, velocity: true, trails: true, particles: true, denoised: false, exact: true };

function render({ model, el }) {
  // --- elements
  const button = (name, label, act) => {
    const node = html("button", { type: "button", "aria-label": label, title: label }, icon(name));
    node.addEventListener("click", act);
    return node;
  };
  const canvas = html("canvas", { class: "wb-canvas", role: "img" }), overlay = svg("svg", {}), tip = html("div", { class: "wb-tip", hidden: true });
  const absent = html("div", { class: "wb-message", hidden: true }, "This browser offers no WebGL2, so the picture cannot be drawn. The time axis and the readouts still work.");
  const stage = html("div", { class: "wb-stage" }, canvas, overlay, tip), title = html("div", { class: "wb-title" });
  const layerBox = html("fieldset", { class: "wb-layers" }), trailInput = html("input", { type: "range", min: 0, max: 1, step: 1, "aria-label": "Trail length in nodes" }), trailOut = html("output");
  const trailBox = html("label", { class: "wb-trail" }, "Trail", trailInput, trailOut), reset = html("button", { type: "button", class: "wb-reset" }, "Reset view");
  const side = html("div", { class: "wb-side" }, layerBox, trailBox, reset), body = html("div", { class: "wb-body" }, absent, stage, side);
  const time = svg("svg", { class: "wb-time", role: "slider", tabindex: 0, "aria-label": "Time along the run, from noise to data", "aria-valuemin": 0 });
  const play = button("play", "Play", () => setPlaying(!state.playing));
  play.classList.add("wb-play");
  const loop = button("loop", "Loop", () => loop.setAttribute("aria-pressed", String(state.loop = !state.loop)));
  loop.setAttribute("aria-pressed", "false");
  const speed = html("select", { "aria-label": "Speed", title: "Speed" }, ...SPEEDS.map((s) => html("option", { value: s, selected: s === 1 }, `${s}×`)));
  const readout = html("div", { class: "wb-readout" }), live = html("div", { class: "wb-live", role: "status", "aria-live": "polite" });
  const bar = html("div", { class: "wb-bar" }, button("start", "To start (Home)", (e) => scrub(0, e)), button("back", "Step back (←)", (e) => step(-1, e)), play,
    button("forward", "Step forward (→)", (e) => step(1, e)), button("end", "To end (End)", (e) => scrub(Infinity, e)), speed, loop, readout, live);
  const notes = html("div", { class: "wb-notes" }), message = html("div", { class: "wb-message" });
  const content = html("div", {}, title, body, time, bar, notes);
  const root = html("div", { class: "wb-player", tabindex: 0, role: "group", "data-lm-suppress-shortcuts": "true" }, message, content);
  el.append(html("style", {}, STYLE), root);

  // --- state
  const state = { run: null, frame: 0, playing: false, loop: false, layers: { ...DEFAULTS }, trail: 16, hovered: null, colours: null, ratio: 1 };
  const stats = { drawn: 0, latency: null };
  let gpu, picture = null, scrubber = null, pending = 0, clock = null, asked = null, width = 0, gone = false;

  // --- traits: written at most five times a second while moving, at once when the motion ends
  let writing = false, writeTimer = 0, touched = -Infinity, known = null;
  const sent = [];
  function write() {
    clearTimeout(writeTimer);
    writeTimer = 0;
    if (gone || (model.get("frame") === state.frame && model.get("playing") === state.playing)) return;
    writing = true;
    model.set("frame", known = state.frame);
    model.set("playing", state.playing);
    model.save_changes();
    writing = false;
    sent.push(known);
    if (sent.length > 32) sent.shift();
  }
  function writeSoon() {
    touched = performance.now();
    writeTimer ||= setTimeout(write, 200);
  }
  // While the reader moves, a value of ours that comes back late is an echo and must not pull the picture back.
  function frameChanged() {
    const value = model.get("frame"), moving = state.playing || performance.now() - touched < 600;
    if (writing || !Number.isFinite(value) || (moving && sent.includes(value))) return;
    known = value;
    setFrame(value);
  }
  function playingChanged() {
    if (!writing && Boolean(model.get("playing")) !== state.playing) setPlaying(Boolean(model.get("playing")));
  }

  // --- motion
  function setFrame(value, event = null) {
    if (!state.run) return;
    state.frame = clamp(value, 0, state.run.frames - 1);
    asked ??= event?.timeStamp ?? null;
    requestDraw();
  }
  function scrub(frame, event) {
    if (state.playing) setPlaying(false);
    setFrame(frame, event);
    if (performance.now() - drawnAt > 12) draw();   // a lone move at once, a stream of them once a frame
    writeSoon();
  }
  function step(n, event) {
    scrub(n > 0 ? Math.floor(state.frame + 1e-6) + n : Math.ceil(state.frame - 1e-6) + n, event);
  }
  function setPlaying(on) {
    if (!state.run) return;
    state.playing = on && state.run.frames > 1;
    if (state.playing && state.frame >= state.run.frames - 1) state.frame = 0;
    clock = null;
    showPlaying();
    write();
    requestDraw();
  }
  function showPlaying() {
    const word = state.playing ? "Pause" : "Play";
    play.replaceChildren(icon(word.toLowerCase()));
    play.title = `${word} (space)`;
    play.setAttribute("aria-label", word);
  }
  function advance(now) {
    const { axis, frames } = state.run, elapsed = clock === null ? 0 : Math.min(now - clock, 500) / 1000;
    clock = now;
    const at = axisPosition(axis, state.frame) + elapsed * Number(speed.value) / WHOLE_RUN;
    state.frame = axisFrame(axis, at);
    if (at < 1) writeTimer ||= setTimeout(write, 200);
    else if (state.loop) state.frame = 0;
    else {
      state.frame = frames - 1;
      setPlaying(false);
    }
  }

  // --- drawing: only when something changed, in the animation frame after it changed
  function requestDraw() {
    if (!pending && !gone) pending = requestAnimationFrame(tick);
  }
  function tick(now) {
    pending = 0;
    if (!state.run) return;
    if (state.playing) advance(now);
    draw();
    if (state.playing) requestDraw();
  }
  let drawnAt = 0;
  function draw() {
    if (!state.run || !scrubber) return;
    cancelAnimationFrame(pending);
    pending = 0;
    drawnAt = performance.now();
    try {
      if (gpu && !gpu.gl.isContextLost()) picture.draw(gpu, state);
    } catch (error) {
      return blank(`The picture cannot be drawn: ${error.message}`);
    }
    scrubber.place(state.frame);
    const said = describe(state.run, state.frame);
    readout.textContent = said;
    time.setAttribute("aria-valuenow", Number(state.frame.toFixed(3)));
    time.setAttribute("aria-valuetext", said);
    announce(said);
    showTip();
    if (asked !== null) stats.latency = performance.now() - asked;
    asked = null;
    root.dataset.frame = state.frame;
    root.dataset.drawn = ++stats.drawn;
  }
  let liveTimer = 0;
  function announce(said) {
    clearTimeout(liveTimer);
    if (!state.playing) liveTimer = setTimeout(() => { live.textContent = said; }, 700);
  }
  function showTip() {
    tip.hidden = state.hovered === null;
    if (tip.hidden) return;
    const { at: [x, y], lines } = picture.tell(state.hovered, state.frame);
    tip.textContent = lines.join("\n");
    const left = canvas.offsetLeft + x + 14, top = canvas.offsetTop + y + 14;
    tip.style.left = `${left + tip.offsetWidth > stage.clientWidth ? left - tip.offsetWidth - 28 : left}px`;
    tip.style.top = `${top + tip.offsetHeight > stage.clientHeight ? top - tip.offsetHeight - 28 : top}px`;
  }

  // --- layout
  function layout() {
    const { run } = state;
    if (!run || width < 1) return;
    state.ratio = devicePixelRatio || 1;
    const wide = width >= 720, plane = run.kind === "plane";
    root.classList.toggle("wb-wide", wide);
    root.classList.toggle("wb-plane", plane);
    root.classList.toggle("wb-images", !plane);
    const box = picture.layout(plane && wide ? width - 226 : width, state.ratio);
    Object.assign(stage.style, { width: `${box.outer[0]}px`, height: `${box.outer[1]}px` });
    Object.assign(canvas.style, { left: `${box.left}px`, top: `${box.top}px`, width: `${box.width}px`, height: `${box.height}px` });
    const pixels = [box.width, box.height].map((n) => Math.round(n * state.ratio));
    if (canvas.width !== pixels[0]) canvas.width = pixels[0];
    if (canvas.height !== pixels[1]) canvas.height = pixels[1];
    overlay.setAttribute("width", box.outer[0]);
    overlay.setAttribute("height", box.outer[1]);
    overlay.replaceChildren(...picture.overlay());
    scrubber = makeScrubber(run, width);
    time.style.height = `${scrubber.height}px`;
    time.replaceChildren(...scrubber.marks);
  }
  function viewChanged() {
    canvas.classList.toggle("wb-zoomed", picture.zoomed());
    reset.disabled = !picture.zoomed();
    overlay.replaceChildren(...picture.overlay());
    requestDraw();
  }

  // --- layers
  function showLayers() {
    const grouped = Boolean(state.run.arrays.group), ink = grouped ? getComputedStyle(root).getPropertyValue("--wb-groups").trim().split(/\s+/).slice(0, 3) : ["var(--wb-particle)"];
    layerBox.replaceChildren(html("legend", {}, "Layers"), ...picture.layers.map((name) => {
      const input = html("input", { type: "checkbox", checked: state.layers[name], "data-layer": name });
      input.addEventListener("change", () => { state.layers[name] = input.checked; requestDraw(); });
      return html("label", { class: "wb-layer", title: LAYERS[name][1] }, input, svg("svg", { viewBox: "0 0 26 14", "aria-hidden": "true" }, ...SWATCHES[name](ink, grouped)), LAYERS[name][0],
        picture.every > 1 && (name === "trails" || name === "exact") ? html("small", {}, `1 in ${picture.every}`) : "");
    }));
    trailInput.max = state.run.frames - 1;
    trailInput.value = Math.min(state.trail, state.run.frames - 1);
    trailOut.textContent = `${trailInput.value} node${trailInput.value === "1" ? "" : "s"}`;
    side.hidden = picture.layers.length === 0;
  }
  trailInput.addEventListener("input", () => {
    state.trail = Number(trailInput.value);
    trailOut.textContent = `${state.trail} node${state.trail === 1 ? "" : "s"}`;
    requestDraw();
  });
  reset.addEventListener("click", () => { picture.reset(); viewChanged(); });

  // --- a new run: the same place on the axis, the same layers, the same view where the window is the same
  function upload() {
    gpu?.clear();
    gpu ??= makeGpu(canvas);
    absent.hidden = Boolean(gpu);
    body.classList.toggle("wb-blind", !gpu);
    if (gpu) picture.upload(gpu);
  }
  function load() {
    const old = state.run, place = old ? axisPosition(old.axis, state.frame) : null, view = picture?.view?.();
    state.hovered = null;
    try {
      const run = readRun(model.get("data"));
      if (!run) return blank("No run yet.");
      picture = run.kind === "plane" ? makePlane(run) : makeImages(run);
      state.run = run;
      picture.restore?.(view);
      upload();
    } catch (error) {
      return blank(`This run cannot be shown: ${error.message}`);
    }
    const { run } = state, wish = model.get("frame"), fresh = place === null || wish !== known;
    state.frame = clamp(fresh ? (Number.isFinite(wish) ? wish : 0) : axisFrame(run.axis, place), 0, run.frames - 1);
    known = wish;
    content.hidden = false;
    message.hidden = true;
    title.textContent = run.title ?? "";
    title.hidden = !run.title;
    root.setAttribute("aria-label", `Diffusion run${run.title ? `: ${run.title}` : ""}`);
    canvas.setAttribute("aria-label", `${run.samples} samples from noise to data. ${run.title ?? ""}`);
    notes.textContent = (run.notes ?? []).join(" ");
    notes.hidden = !run.notes?.length;
    time.setAttribute("aria-valuemax", run.frames - 1);
    showLayers();
    layout();
    if (picture.zoomed) viewChanged();
    requestDraw();
    if (!fresh && state.frame !== wish) writeSoon();
    if (Boolean(model.get("playing")) !== state.playing) setPlaying(Boolean(model.get("playing")));
  }
  function blank(sentence) {
    Object.assign(state, { run: null, playing: false });
    picture = scrubber = null;
    message.textContent = sentence;
    message.hidden = false;
    content.hidden = true;
    showPlaying();
  }

  // --- pointer on the picture: hover, pan, pinch, wheel
  const held = new Map();
  const hover = (event) => {
    const found = picture.pick(event.offsetX, event.offsetY, state.frame);
    if (found === state.hovered && state.run.kind === "plane") return;
    state.hovered = found;
    requestDraw();
  };
  canvas.addEventListener("pointerdown", (event) => {
    root.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    canvas.classList.toggle("wb-held", Boolean(picture.zoomed?.()));
    hover(event);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const from = held.get(event.pointerId), to = [event.offsetX, event.offsetY];
    if (!from) return hover(event);
    if (!picture.move) return;
    const size = canvas.clientWidth, other = [...held].find(([id]) => id !== event.pointerId)?.[1];
    held.set(event.pointerId, to);
    if (other) {
      const gap = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]), centre = [0, 1].map((i) => (to[i] + other[i]) / 2 / size);
      picture.move(gap(from) / Math.max(gap(to), 1), centre, [0, 1].map((i) => (to[i] - from[i]) / 2 / size));
    } else picture.move(1, [0, 0], [0, 1].map((i) => (to[i] - from[i]) / size));
    viewChanged();
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => { held.delete(event.pointerId); canvas.classList.remove("wb-held"); });
  canvas.addEventListener("pointerleave", () => { if (state.hovered !== null) { state.hovered = null; requestDraw(); } });
  canvas.addEventListener("dblclick", () => { if (picture.reset) { picture.reset(); viewChanged(); } });
  canvas.addEventListener("wheel", (event) => {
    if (!picture.move || (event.deltaY > 0 && !picture.zoomed())) return;   // nothing left to zoom out of: the page may scroll
    event.preventDefault();
    const size = canvas.clientWidth, turns = event.deltaY * (event.deltaMode === 1 ? 16 : 1) * (event.ctrlKey ? 0.01 : 0.0015);
    picture.move(Math.exp(clamp(turns, -0.7, 0.7)), [event.offsetX / size, event.offsetY / size], [0, 0]);
    viewChanged();
  }, { passive: false });

  // --- pointer on the time axis
  const scrubTo = (event) => scrub(scrubber.frameAt(event.clientX - time.getBoundingClientRect().left), event);
  time.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    time.setPointerCapture(event.pointerId);
    time.focus({ preventScroll: true });
    scrubTo(event);
    event.preventDefault();
  });
  time.addEventListener("pointermove", (event) => { if (time.hasPointerCapture(event.pointerId)) scrubTo(event); });
  time.addEventListener("lostpointercapture", write);

  // --- keys: none of those used here reaches the notebook or the page
  function faster(by) {
    speed.value = SPEEDS[clamp(SPEEDS.indexOf(Number(speed.value)) + by, 0, SPEEDS.length - 1)];
  }
  const KEYS = {
    " ": () => setPlaying(!state.playing), ArrowRight: (e) => step(1, e), ArrowLeft: (e) => step(-1, e), PageUp: (e) => step(10, e), PageDown: (e) => step(-10, e),
    Home: (e) => scrub(0, e), End: (e) => scrub(Infinity, e), "+": () => faster(1), "=": () => faster(1), "-": () => faster(-1),
  };
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    event.stopPropagation();
    const act = KEYS[event.key], own = event.target.closest("select, input[type=range]") || (event.key === " " && event.target.closest("button, input"));
    if (!act || own || !state.run) return;
    event.preventDefault();
    act(event);
  });

  // --- surroundings: size, theme, loss of the context
  let screen = null;
  const watchScreen = () => {
    screen?.removeEventListener("change", watchScreen);
    screen = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    screen.addEventListener("change", watchScreen);
    layout();
    draw();
  };
  const preference = matchMedia("(prefers-color-scheme: dark)");
  function paint() {
    if (!root.isConnected) return;   // styles have no values yet; the first size brings us back
    const mode = isDark(el) ? "dark" : "light";
    if (root.dataset.mode === mode) return;
    root.dataset.mode = mode;
    state.colours = coloursOf(root);
    if (state.run) showLayers();
    requestDraw();
  }
  let paintTimer = 0;
  const themes = new MutationObserver(() => {
    paint();
    clearTimeout(paintTimer);
    paintTimer = setTimeout(paint, 400);   // a page may fade its background
  });
  const sizes = new ResizeObserver(([entry]) => {
    if (width === 0) surround();
    width = Math.floor(entry.contentRect.width);
    layout();
    draw();
  });
  function surround() {
    themes.disconnect();
    for (const node of ancestors(el)) {
      themes.observe(node, { attributes: true, attributeFilter: ["class", "style", "data-theme", "data-jp-theme-light", "data-mui-color-scheme", "data-bs-theme"] });
      if (node.shadowRoot) node.setAttribute("data-lm-suppress-shortcuts", "true");   // seen from outside, keys come from the host
    }
    paint();
  }
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    gpu = null;
    if (state.run) upload();
    requestDraw();
  });

  // --- begin
  state.colours = coloursOf(root);
  preference.addEventListener("change", paint);
  model.on("change:data", load);
  model.on("change:frame", frameChanged);
  model.on("change:playing", playingChanged);
  root.__player = { get frame() { return state.frame; }, setFrame: (f) => scrub(f, new Event("call")), get stats() { return { ...stats }; } };
  load();
  surround();
  sizes.observe(root);
  watchScreen();

  return () => {
    gone = true;
    cancelAnimationFrame(pending);
    [writeTimer, liveTimer, paintTimer].forEach(clearTimeout);
    sizes.disconnect();
    themes.disconnect();
    preference.removeEventListener("change", paint);
    screen.removeEventListener("change", watchScreen);
    model.off?.("change:data", load);
    model.off?.("change:frame", frameChanged);
    model.off?.("change:playing", playingChanged);
    gpu?.clear();
    gpu?.release();
  };
}

export default { render };
