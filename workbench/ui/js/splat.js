// Particles and trails rasterised here, for a GPU that is emulated: it takes two microseconds a point, this a tenth of that.

const SUB = 4, REACH = 10;   // kernels at so many places within a pixel along x and y; the largest radius drawn so [px]

// Coverage of a disc on whole pixels, for each place of its centre within one.
function discs(radius) {
  const side = Math.ceil(2 * radius + 2), kernels = [];
  for (let v = 0; v < SUB; v++) for (let u = 0; u < SUB; u++) {
    const kernel = new Uint8Array(side * side), cx = side / 2 - 0.5 + u / SUB, cy = side / 2 - 0.5 + v / SUB;
    for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) kernel[y * side + x] = 255 * clamp(radius + 0.5 - Math.hypot(x + 0.5 - cx, y + 0.5 - cy), 0, 1);
    kernels.push(kernel);
  }
  return { side, kernels };
}

function makeSplat() {
  let size = 0, cover = new Uint8Array(0), kernel = null, radius = 0, box = [0, 0, 0, 0];
  const put = (k, a) => { cover[k] += ((255 - cover[k]) * a) >> 8; };
  return {
    get cover() { return cover; },
    get box() { return box; },   // what is not empty: left, low, right, high
    begin(side) {
      box = [side, side, 0, 0];
      if (side !== size) cover = new Uint8Array((size = side) ** 2);
      else cover.fill(0);
    },
    // All samples of a run at a fractional frame; `map` takes integers to pixels, rows upwards as the GPU has them.
    dots(values, N, f, w, next, [ax, bx, ay, by], r, alpha) {
      if (r !== radius) kernel = discs((radius = r));
      let [west, south, east, north] = box;
      const { side, kernels } = kernel, half = side / 2, a = Math.round(256 * alpha);
      for (let s = 0; s < N; s++) {
        const i = 2 * (f * N + s), j = 2 * (next * N + s);
        const x = ax + bx * (values[i] * (1 - w) + values[j] * w) - half + 0.5, y = ay + by * (values[i + 1] * (1 - w) + values[j + 1] * w) - half + 0.5;
        const left = Math.floor(x), low = Math.floor(y);
        if (left < 0 || low < 0 || left + side > size || low + side > size) continue;
        if (left < west) west = left;
        if (low < south) south = low;
        if (left + side > east) east = left + side;
        if (low + side > north) north = low + side;
        const disc = kernels[Math.floor((y - low) * SUB) * SUB + Math.floor((x - left) * SUB)];
        for (let v = 0, k = low * size + left, m = 0; v < side; v++, k += size) for (let u = 0; u < side; u++, m++) if (disc[m]) put(k + u, (disc[m] * a) >> 8);
      }
      box = [west, south, east, north];
    },
    line(x0, y0, x1, y1, alpha) {
      const dx = x1 - x0, dy = y1 - y0, n = Math.ceil(Math.max(Math.abs(dx), Math.abs(dy), 1)), steep = Math.abs(dy) > Math.abs(dx), a = Math.round(256 * alpha);
      box = [Math.max(0, Math.min(box[0], Math.floor(Math.min(x0, x1)) - 1)), Math.max(0, Math.min(box[1], Math.floor(Math.min(y0, y1)) - 1)),
             Math.min(size, Math.max(box[2], Math.ceil(Math.max(x0, x1)) + 1)), Math.min(size, Math.max(box[3], Math.ceil(Math.max(y0, y1)) + 1))];
      for (let i = 0; i < n; i++) {
        const x = x0 + dx * (i / n) - 0.5, y = y0 + dy * (i / n) - 0.5, p = Math.floor(x), q = Math.floor(y);
        if (p < 0 || q < 0 || p + 1 >= size || q + 1 >= size) continue;
        const k = q * size + p, w = steep ? x - p : y - q;
        put(k, (1 - w) * a);
        put(k + (steep ? 1 : size), w * a);
      }
    },
  };
}
