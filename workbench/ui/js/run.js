// The player: one recorded diffusion run, sent to the browser once, then played and scrubbed there.
//
// A plain ES module in the anywidget style; it runs as it is in Jupyter and in Panel. The run arrives in the
// trait `data` (a JSON header and typed arrays); the traits `frame` and `playing` go both ways. All positions and
// pixels live on the GPU as integer textures, so a scrub changes a few uniforms and uploads nothing.

// The run: a header and typed arrays.

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
  const wanted = { x: [[T, N, ...event], dtype], denoised: [[T, null, ...event], dtype], exact: [[T, null, ...event], dtype],
                   density: [[null, null, null], "float16"], velocity: [[null, null, null, 2], "float16"], group: [[N], "uint8"] };
  const arrays = {};
  for (const [name, entry] of Object.entries(header.arrays ?? {})) {
    arrays[name] = readArray(bytes, base, name, entry);
    const [shape, type] = wanted[name] ?? (name.startsWith("group_") ? wanted.group : [[T], "float32"]);
    check(entry.dtype === type && shape.length === entry.shape.length && shape.every((n, i) => n === null || n === entry.shape[i]),
      `array "${name}" is ${entry.dtype} [${entry.shape}]; expected ${type} [${shape.map((n) => n ?? "any")}].`);
  }
  check(arrays.x, 'the array "x" is missing.');
  if (plane) check(header.window?.x?.length === 2 && header.window?.y?.length === 2, "a plane run needs a window for x and y.");
  const readouts = (header.readouts ?? []).filter((r) => arrays[r.array]).map((r) => ({ ...r, values: arrays[r.array].values }));
  const seeds = header.seeds?.length === N ? header.seeds : Array.from({ length: N }, (_, i) => i);
  // What samples can be coloured by: an index of a colour for each.
  const groupings = { seed: { values: Uint8Array.from(seeds, (s) => s % 8), shape: [N] } };
  for (const name of Object.keys(arrays)) if (name.startsWith("group_")) { groupings[name.slice(6)] = arrays[name]; delete arrays[name]; }
  return { ...header, arrays, groupings, readouts, seeds, axis: makeAxis(T, header.axis ?? {}) };
}

// A run with the exact flow that came after it; one that was made for another run is not there yet.
function withFlow(run, value) {
  const bytes = bytesOf(value);
  if (!run || bytes.length === 0) return run;
  const { header, base } = readHeader(bytes);
  if (header.mark !== run.mark || header.frames !== run.frames) return run;
  const arrays = { ...run.arrays };
  for (const [name, entry] of Object.entries(header.arrays ?? {})) arrays[name] = readArray(bytes, base, name, entry);
  const readouts = header.readouts.map((r) => ({ ...r, values: arrays[r.array].values }));
  return { ...run, arrays, notes: header.notes, readouts: [...readouts, ...run.readouts] };
}
