// The GPU: programs and textures.

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
  // Round points, filled or hollow, one vertex each. Where samples are chosen, the others are faint.
  dots: [POSITIONS + `
uniform usampler2D uMask; uniform int uMasked; uniform float uRadius; flat out vec4 vColour;
void main() {
  int s = uFirst + gl_VertexID * uStride; bool faint = uMasked == 1 && item(uMask, s).x == 0u;
  vColour = vec4(colourOf(s), faint ? .22 : 1.);
  gl_PointSize = 2. * (uRadius + 1.); gl_Position = clip(at(uStore, s, uFrame));
}`, COMMON + `
uniform float uRadius, uRing, uAlpha; flat in vec4 vColour; out vec4 ink;
void main() {
  float d = length(gl_PointCoord - .5) * 2. * (uRadius + 1.), a = clamp(uRadius + .5 - d, 0., 1.);
  if (uRing > 0.) a *= clamp(d - uRadius + uRing + .5, 0., 1.);
  a *= uAlpha * vColour.a; ink = vec4(vColour.rgb * a, a);
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

  // From each particle to where another run, or the exact flow, has the same sample.
  errors: [POSITIONS + STROKE + `
uniform usampler2D uOther; uniform vec4 uOtherRange; uniform int uOtherSamples, uOtherLast; uniform float uOtherFrame, uAlpha;
vec2 apart(int s) {
  int f = int(uOtherFrame); float w = uOtherFrame - float(f); vec2 a = vec2(item(uOther, f * uOtherSamples + s).xy);
  if (w > 0.) a = mix(a, vec2(item(uOther, min(f + 1, uOtherLast) * uOtherSamples + s).xy), w);
  return pixel(uOtherRange.xy + a * uOtherRange.zw);
}
void main() {
  int s = chosen(); vec2 here = at(uStore, s, uFrame), there = apart(s);
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
  float l = textureLod(uLog, vUv, 0.).r, s = sqrt(max(-2. * l, 0.)), w = max(fwidth(s), 1e-6), k = clamp(floor(s + .5), 1., 4.);
  float fill = .055 * (4. - k + clamp((k - s) / w + .5, 0., 1.)), line = (.5 - .07 * k) * clamp(.5 * uLine + .5 - abs(s - k) / w, 0., 1.);
  ink = vec4(mix(uGround, uColour, fill + (1. - fill) * line), 1.);
}`],

  // A grid of grey tiles, blended in time, never in space: of one run; left half A, right half B; or B - A, blue to orange.
  tiles: [WHOLE, COMMON + `
uniform usampler2D uStore, uOther; uniform int uSamples, uLast, uOtherSamples, uOtherLast, uMode, uFirst, uShown, uColumns, uSelected; uniform ivec2 uPixels;
uniform float uFrame, uOtherFrame, uGap, uScale, uBound; uniform vec2 uCorner, uPitch, uGrey; uniform vec4 uLevels; uniform vec3 uSurface, uAccent; out vec4 ink;
float value(usampler2D store, int s, int samples, int last, float frame, ivec2 q) {
  int area = uPixels.x * uPixels.y, f = int(frame), k = (f * samples + s) * area + q.y * uPixels.x + q.x;
  float w = frame - float(f), v = float(item(store, k).x);
  return w > 0. ? mix(v, float(item(store, k + (f < last ? samples * area : 0)).x), w) : v;
}
void main() {
  vec2 p = vec2(gl_FragCoord.x - uCorner.x, uCorner.y - gl_FragCoord.y) - uGap, tile = floor(p / uPitch), inside = p - tile * uPitch;
  int k = int(tile.y) * uColumns + int(tile.x), s = uFirst + k, chosen = uSelected - uFirst;
  vec2 d = p - vec2(chosen % uColumns, chosen / uColumns) * uPitch;
  bool framed = uSelected >= uFirst && all(greaterThanEqual(d, vec2(-uGap))) && all(lessThan(d, uPitch));
  bool picture = all(greaterThanEqual(tile, vec2(0.))) && int(tile.x) < uColumns && k < uShown && all(lessThan(inside, uPitch - uGap));
  ink = vec4(framed ? uAccent : uSurface, 1.);
  if (!picture) return;
  ivec2 q = min(ivec2(inside / uScale), uPixels - 1);
  bool second = uMode == 1 && 2 * q.x >= uPixels.x;
  float a = second ? 0. : uLevels.x + uLevels.y * value(uStore, s, uSamples, uLast, uFrame, q);
  float b = second || uMode == 2 ? uLevels.z + uLevels.w * value(uOther, s, uOtherSamples, uOtherLast, uOtherFrame, q) : 0.;
  if (uMode < 2) { ink = vec4(vec3(clamp(((second ? b : a) - uGrey.x) * uGrey.y, 0., 1.)), 1.); return; }
  float t = clamp((b - a) / uBound, -1., 1.);
  ink = vec4(mix(vec3(.93), t < 0. ? vec3(.02, .28, .52) : vec3(.71, .30, .02), abs(t)), 1.);
}`],
};

const EARLY = ["field", "contours", "arrows", "dots"];   // what the first picture needs

const SETTERS = { 0x1406: "uniform1f", 0x8b50: "uniform2fv", 0x8b51: "uniform3fv", 0x8b52: "uniform4fv", 0x8b53: "uniform2iv" };

// Compiling takes its time elsewhere: it is asked for early, and waited for when first drawn with.
function compile(gl, [vertex, fragment]) {
  const program = gl.createProgram(), shaders = [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]].map(([type, source]) => {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    return shader;
  });
  gl.linkProgram(program);
  return { program, shaders };
}

function link(gl, { program, shaders }) {
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(shaders.map((one) => gl.getShaderInfoLog(one)).find(Boolean) ?? gl.getProgramInfoLog(program));
  const uniforms = {};
  for (let i = 0; i < (gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS) ?? 0); i++) {
    const { name, type } = gl.getActiveUniform(program, i);
    uniforms[name.replace("[0]", "")] = [gl.getUniformLocation(program, name), SETTERS[type] ?? "uniform1i"];
  }
  return { program, uniforms };
}

// A context with its programs, kept from run to run.
function makeGpu(canvas) {
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false });
  if (!gl) return null;
  const programs = {}, compiling = {}, textures = [];
  const floats = Boolean(gl.getExtension("EXT_color_buffer_float") ?? gl.getExtension("EXT_color_buffer_half_float"));
  let buffer = null, mask = null, kept = null;
  const about = gl.getExtension("WEBGL_debug_renderer_info"), renderer = String(gl.getParameter(about?.UNMASKED_RENDERER_WEBGL ?? gl.RENDERER));
  let home = null;   // where the picture is drawn: the canvas, or what is kept of it
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
  const parallel = gl.getExtension("KHR_parallel_shader_compile"), emulated = /swiftshader|llvmpipe|softpipe|software|basic render/i.test(renderer);
  // One that compiles in the thread that shows frames is asked when the first of them has been shown.
  let begun = null;
  const begin = () => {
    for (const name of EARLY) compiling[name] ??= compile(gl, SHADERS[name]);
    begun = performance.now();
  };
  if (parallel || !emulated) begin();
  return {
    gl,
    floats,
    // Whether drawing would wait for no compiler.
    ready() {
      if (parallel) return EARLY.every((name) => programs[name] || gl.getProgramParameter(compiling[name].program, parallel.COMPLETION_STATUS_KHR));
      if (begun === null) begun = Infinity, requestAnimationFrame(() => setTimeout(begin));
      return !emulated || performance.now() - begun > 200;
    },
    emulated,
    draw(name, uniforms, vertices = 4, count = 1) {
      const { program, uniforms: known } = (programs[name] ??= link(gl, compiling[name] ?? compile(gl, SHADERS[name])));
      gl.useProgram(program);
      for (const [key, value] of Object.entries({ ...uniforms, uVertices: vertices + 2 })) if (known[key]) gl[known[key][1]](known[key][0], value);
      if (name === "dots") gl.drawArrays(gl.POINTS, 0, count);
      else gl.drawArrays(gl.TRIANGLE_STRIP, 0, (vertices + 2) * count);
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
    // A field on a lattice at some of the frames; of those, every `stride`th where the device holds fewer layers.
    uploadField(unit, { values, shape: [K, rows, columns] }, channels, frames, prepare = (layer) => layer) {
      const stride = Math.ceil(K / gl.getParameter(gl.MAX_ARRAY_TEXTURE_LAYERS)), kept = frames.filter((_, i) => i % stride === 0);
      const target = texture(unit, gl.TEXTURE_2D_ARRAY), size = rows * columns * channels;
      gl.texStorage3D(target, 1, channels === 2 ? gl.RG16F : gl.R16F, columns, rows, kept.length);
      smooth(target);
      for (let i = 0; i < kept.length; i++) {
        const layer = prepare(values.subarray(i * stride * size, (i * stride + 1) * size));
        gl.texSubImage3D(target, 0, 0, 0, i, columns, rows, 1, channels === 2 ? gl.RG : gl.RED, gl.HALF_FLOAT, layer);
      }
      return (frame) => {
        let i = 0;
        while (i < kept.length - 1 && kept[i + 1] <= frame) i++;
        const next = Math.min(i + 1, kept.length - 1);
        return { uLayers: [i, next], uBlend: next > i ? clamp((frame - kept[i]) / (kept[next] - kept[i]), 0, 1) : 0 };
      };
    },
    // Which samples are chosen: one byte each, rewritten as they change.
    uploadMask(values) {
      if (mask) textures.splice(textures.indexOf(mask), 1), gl.deleteTexture(mask);
      this.upload(MASK, values, 1);
      mask = textures.at(-1);
    },
    // Draws into a picture `scale` times as large as the canvas, which is then copied to it.
    keep(scale, paint) {
      const whole = [gl.drawingBufferWidth, gl.drawingBufferHeight], [width, height] = whole.map((n) => Math.round(n * scale));
      if (kept?.width !== width || kept?.height !== height) {
        if (kept) gl.deleteFramebuffer(kept.frame), gl.deleteRenderbuffer(kept.made);
        kept = { width, height, frame: gl.createFramebuffer(), made: gl.createRenderbuffer() };
        gl.bindRenderbuffer(gl.RENDERBUFFER, kept.made);
        gl.renderbufferStorage(gl.RENDERBUFFER, gl.RGB8, width, height);
        gl.bindFramebuffer(gl.FRAMEBUFFER, kept.frame);
        gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.RENDERBUFFER, kept.made);
      }
      gl.bindFramebuffer(gl.FRAMEBUFFER, (home = kept.frame));
      paint(height);
      home = null;
      gl.disable(gl.SCISSOR_TEST);
      gl.bindFramebuffer(gl.READ_FRAMEBUFFER, kept.frame);
      gl.bindFramebuffer(gl.DRAW_FRAMEBUFFER, null);
      gl.blitFramebuffer(0, 0, width, height, 0, 0, ...whole, gl.COLOR_BUFFER_BIT, gl.LINEAR);
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
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
      gl.bindFramebuffer(gl.FRAMEBUFFER, home);
    },
    clear() {
      buffer = gl.deleteFramebuffer(buffer) ?? null;
      mask = null;
      if (kept) gl.deleteFramebuffer(kept.frame), gl.deleteRenderbuffer(kept.made);
      kept = null;
      textures.splice(0).forEach((t) => gl.deleteTexture(t));
    },
    release() { gl.getExtension("WEBGL_lose_context")?.loseContext(); },
  };
}

// Texture units of the first run; those of the second follow.
const UNIT = { x: 0, denoised: 1, exact: 2, group: 3, density: 4, velocity: 5 }, UNITS = 6, LOG = 12, MASK = 13;
