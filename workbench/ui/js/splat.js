// What moves, rasterised here where the GPU is emulated: a point takes that two microseconds, and this a tenth of it. It comes on a
// canvas of its own above the picture, so that the emulated GPU rests while nothing but particles moves.

const SUB = 4, REACH = 12;   // kernels at so many places within a pixel along x and y; the largest radius drawn so [px]

// Coverage of a disc, or of a ring, on whole pixels, for each place of its centre within one.
function discs(radius, ring) {
  const side = Math.ceil(2 * radius + 2), kernels = [];
  for (let v = 0; v < SUB; v++) for (let u = 0; u < SUB; u++) {
    const kernel = new Uint8Array(side * side), cx = side / 2 - 0.5 + u / SUB, cy = side / 2 - 0.5 + v / SUB;
    for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) {
      const d = Math.hypot(x + 0.5 - cx, y + 0.5 - cy);
      kernel[y * side + x] = 255 * clamp(radius + 0.5 - d, 0, 1) * (ring ? clamp(d - radius + ring + 0.5, 0, 1) : 1);
    }
    kernels.push(kernel);
  }
  return { side, kernels };
}

function makeSplat(canvas) {
  const context = canvas.getContext("2d"), known = new Map(), empty = (side) => [side, side, 0, 0];
  let size = 0, stride = 0, cover = null, fours = null, image = null, ink = null, box = empty(0), whole = empty(0), filled = null;   // boxes: left, top, right, bottom
  const put = (k, a) => { cover[k] += ((255 - cover[k]) * a) >> 8; };
  const widen = (to, [left, top, right, bottom]) => [Math.min(to[0], left), Math.min(to[1], top), Math.max(to[2], right), Math.max(to[3], bottom)];
  return {
    clear() {
      if (filled) context.clearRect(0, 0, canvas.width, canvas.height);
      filled = false;
    },
    begin(side) {
      if (side !== size) {
        size = side;
        stride = (side + 3) & ~3;   // so that four pixels can be looked at in one
        cover = new Uint8Array(stride * side);
        fours = new Uint32Array(cover.buffer);
        ink = new Uint32Array((image = context.createImageData(stride, side)).data.buffer);
      } else ink.fill(0);
      box = empty(side);
      whole = empty(side);
    },
    // All samples of a run at a fractional frame, every `every`th; the affine maps of its integers to pixels come with it.
    dots({ values, shape: [T, N] }, frame, [ax, bx, ay, by], radius, alpha, ring = 0, every = 1, group = null, only = 0) {
      const key = `${radius} ${ring}`, f = Math.floor(frame), w = frame - f, next = Math.min(f + 1, T - 1), a = Math.round(256 * alpha);
      if (!known.has(key)) known.set(key, discs(radius, ring));
      const { side, kernels } = known.get(key), half = side / 2 - 0.5;
      let [west, north, east, south] = box;
      for (let s = 0; s < N; s += every) {
        if (group && (group[s] & 7) !== only) continue;
        const i = 2 * (f * N + s), j = 2 * (next * N + s);
        const x = ax + bx * (values[i] * (1 - w) + values[j] * w) - half, y = ay + by * (values[i + 1] * (1 - w) + values[j + 1] * w) - half;
        const left = Math.floor(x), top = Math.floor(y);
        if (left < 0 || top < 0 || left + side > size || top + side > size) continue;
        if (left < west) west = left;
        if (top < north) north = top;
        if (left + side > east) east = left + side;
        if (top + side > south) south = top + side;
        const disc = kernels[Math.floor((y - top) * SUB) * SUB + Math.floor((x - left) * SUB)];
        for (let v = 0, k = top * stride + left, m = 0; v < side; v++, k += stride) for (let u = 0; u < side; u++, m++) if (disc[m]) put(k + u, (disc[m] * a) >> 8);
      }
      box = [west, north, east, south];
    },
    line(x0, y0, x1, y1, alpha) {
      const dx = x1 - x0, dy = y1 - y0, n = Math.ceil(Math.max(Math.abs(dx), Math.abs(dy), 1)), steep = Math.abs(dy) > Math.abs(dx), a = Math.round(256 * alpha);
      if (!(n < 1e5)) return;
      box = widen(box, [Math.max(0, Math.floor(Math.min(x0, x1)) - 1), Math.max(0, Math.floor(Math.min(y0, y1)) - 1), Math.min(size, Math.ceil(Math.max(x0, x1)) + 1), Math.min(size, Math.ceil(Math.max(y0, y1)) + 1)]);
      for (let i = 0; i < n; i++) {
        const x = x0 + dx * (i / n) - 0.5, y = y0 + dy * (i / n) - 0.5, p = Math.floor(x), q = Math.floor(y);
        if (p < 0 || q < 0 || p + 1 >= size || q + 1 >= size) continue;
        const k = q * stride + p, w = steep ? x - p : y - q;
        put(k, (1 - w) * a);
        put(k + (steep ? 1 : stride), w * a);
      }
    },
    // Lays what was drawn since the last layer over what was there, in one colour.
    layer(colour) {
      const [left, top, right, bottom] = box, [r, g, b] = colour.map((v) => Math.round(255 * v)), rgb = (b << 16) | (g << 8) | r;
      const lay = (k) => {
        const c = cover[k], old = ink[k], a = old >>> 24;
        if (!a || c === 255) { ink[k] = (c << 24) | rgb; return; }
        const under = (a * (255 - c)) / 255, all = c + under, mix = (n, o) => (n * c + o * under) / all;
        ink[k] = (Math.round(all) << 24) | (mix(b, (old >> 16) & 255) << 16) | (mix(g, (old >> 8) & 255) << 8) | mix(r, old & 255);
      };
      for (let y = top; y < bottom; y++) for (let f = (y * stride + left) >> 2, end = (y * stride + right + 3) >> 2; f < end; f++) {
        if (!fours[f]) continue;
        for (let k = 4 * f; k < 4 * f + 4; k++) if (cover[k]) lay(k);
        fours[f] = 0;
      }
      if (right > left && bottom > top) whole = widen(whole, box);
      box = empty(size);
    },
    show(x) {
      const [left, top, right, bottom] = whole;
      if (right <= left || bottom <= top) return;
      context.putImageData(image, x, 0, left, top, right - left, bottom - top);
      filled = true;
    },
  };
}
