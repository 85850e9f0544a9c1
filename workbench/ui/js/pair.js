// Two runs on one time axis: log rho, the same seeds matched sample by sample.

// Where the frames of one run are among those of another. Each is interpolated in log rho; pure noise and no noise at
// all stand a decade beyond the outermost finite levels of the two.
function together(a, b) {
  if (!a.axis.logarithmic || !b.axis.logarithmic) return { reason: "one of them has no noise level rho that falls from step to step" };
  const finite = [a, b].map(({ axis: { rho } }) => rho.filter((r) => r !== null && r > 0).map(Math.log10));
  if (Math.min(...finite[0]) > Math.max(...finite[1]) || Math.min(...finite[1]) > Math.max(...finite[0])) return { reason: "their noise levels rho do not overlap" };
  const all = finite.flat(), top = Math.max(...all) + 1, bottom = Math.min(...all) - 1;
  const [la, lb] = [a, b].map(({ axis: { rho } }) => rho.map((r) => (r === null ? top : r === 0 ? bottom : Math.log10(r))));
  const down = [la, lb].map((l) => l.length < 2 || l[0] >= l.at(-1));
  if (down[0] !== down[1]) return { reason: "one runs towards noise, the other towards data" };
  const sign = down[0] ? -1 : 1;
  const between = (levels, level) => {   // the fractional frame at which `levels` reach `level`
    let low = 0, high = levels.length - 1;
    if (sign * (level - levels[0]) <= 0) return 0;
    if (sign * (level - levels[high]) >= 0) return high;
    while (high - low > 1) { const mid = (low + high) >> 1; if (sign * (level - levels[mid]) >= 0) low = mid; else high = mid; }
    return low + (level - levels[low]) / (levels[high] - levels[low] || 1);
  };
  const at = (levels, frame) => { const i = Math.floor(frame), w = frame - i; return w > 0 ? levels[i] * (1 - w) + levels[i + 1] * w : levels[i]; };
  return { toB: (frame) => between(lb, at(la, frame)), toA: (frame) => between(la, at(lb, frame)) };
}

// The samples `chosen` of a run: its arrays cut down to them.
function subset(run, chosen) {
  const { frames: T, samples: N } = run, arrays = { ...run.arrays };
  for (const name of ["x", "denoised", "exact"]) {
    const array = arrays[name];
    if (!array) continue;
    const M = array.shape[1], inside = chosen.filter((s) => s < M), rows = T;
    const size = array.values.length / rows / M, values = new array.values.constructor(rows * inside.length * size);
    for (let f = 0, to = 0; f < rows; f++)
      for (const s of inside) { const from = (f * M + s) * size; values.set(array.values.subarray(from, from + size), to); to += size; }
    arrays[name] = { ...array, values, shape: [T, inside.length, ...array.shape.slice(2)] };
    if (!inside.length) delete arrays[name];
  }
  const groupings = Object.fromEntries(Object.entries(run.groupings).map(([name, { values }]) => [name, { values: Uint8Array.from(chosen, (i) => values[i]), shape: [chosen.length] }]));
  return { ...run, arrays, groupings, samples: chosen.length, seeds: chosen.map((s) => run.seeds[s]) };
}

const sameList = (a, b) => a.length === b.length && a.every((v, i) => v === b[i]);

// What is compared: two runs, whether their samples are matched, and a sentence where they cannot be.
function pairUp(a, b) {
  if (a.kind !== b.kind) return { sentence: "A and B are not drawn together: one has two-dimensional states, the other images." };
  if (a.kind === "image" && (a.image.rows !== b.image.rows || a.image.columns !== b.image.columns)) return { sentence: "A and B are not drawn together: their images differ in size." };
  const clock = together(a, b);
  if (clock.reason) return { sentence: `A and B have no common time axis: ${clock.reason}.` };
  if (sameList(a.seeds, b.seeds)) return { a, b, clock, matched: true };
  const place = new Map(b.seeds.map((seed, i) => [seed, i])), common = a.seeds.map((seed, i) => [i, place.get(seed)]).filter(([, j]) => j !== undefined);
  if (!common.length) return { a, b, clock, matched: false, sentence: "A and B have no seed in common, so their samples are not matched: compare their distributions." };
  const counts = `${common.length} of ${a.samples} (A) and ${b.samples} (B) samples`;
  return { a: subset(a, common.map(([i]) => i)), b: subset(b, common.map(([, j]) => j)), clock, matched: true, remark: `${counts} have common seeds; these are drawn.` };
}

// The entries of two studies that differ, as "key: A, B".
function differences({ entries: a = {} }, { entries: b = {} }) {
  const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((key) => JSON.stringify(a[key]) !== JSON.stringify(b[key]));
  const shown = (v) => (v === undefined ? "none" : String(v)), brief = keys.filter((key) => a[key] !== undefined && b[key] !== undefined || !keys.includes(key.split(".").slice(0, -1).join(".")));
  return brief.length ? `A / B: ${brief.map((key) => `${key} ${shown(a[key])} / ${shown(b[key])}`).join(" · ")}` : "A and B are the same study.";
}

// RMS difference of two matched runs over samples and coordinates, at the nodes of A, in the units of the picture.
function apart(a, b, clock) {
  const size = a.arrays.x.values.length / a.frames / a.samples, N = Math.min(a.samples, Math.max(16, Math.floor(4e6 / (size * a.frames))));
  return Array.from({ length: a.frames }, (_, f) => {
    const g = clock.toB(f), i = Math.floor(g), w = g - i, A = a.arrays.x, B = b.arrays.x, length = a.samples * size;
    let sum = 0;
    for (let k = 0; k < N * size; k++) {
      const c = k % size % A.low.length, now = B.values[i * length + k], then = w > 0 ? B.values[(i + 1) * length + k] : now;
      const d = A.low[c] + A.scale[c] * A.values[f * length + k] - B.low[c] - B.scale[c] * (now * (1 - w) + then * w);
      sum += d * d;
    }
    return Math.sqrt(sum / (N * size));
  });
}
