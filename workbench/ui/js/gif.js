// GIF: frames of one palette, made of the colours that occur most in all of them.

const cell = (r, g, b) => ((r >> 3) << 10) | ((g >> 3) << 5) | (b >> 3);   // of 32 x 32 x 32

function paletteOf(images) {
  const sums = new Float64Array(4 * 32768);
  for (const { data } of images) for (let i = 0; i < data.length; i += 4) {
    const k = 4 * cell(data[i], data[i + 1], data[i + 2]);
    sums[k]++; sums[k + 1] += data[i]; sums[k + 2] += data[i + 1]; sums[k + 3] += data[i + 2];
  }
  const used = Array.from({ length: 32768 }, (_, k) => k).filter((k) => sums[4 * k]).sort((a, b) => sums[4 * b] - sums[4 * a]);
  const palette = used.slice(0, 256).map((k) => [1, 2, 3].map((c) => Math.round(sums[4 * k + c] / sums[4 * k])));
  const nearest = new Uint8Array(32768);
  for (const k of used) {
    const [r, g, b] = [1, 2, 3].map((c) => sums[4 * k + c] / sums[4 * k]);
    let best = 0, least = Infinity;
    palette.forEach(([x, y, z], i) => { const d = (x - r) ** 2 + (y - g) ** 2 + (z - b) ** 2; if (d < least) [best, least] = [i, d]; });
    nearest[k] = best;
  }
  return { palette, nearest };
}

// The codes of variable length that GIF packs its pixels in, of eight bits each (Welch 1984), as blocks of at most 255 bytes.
function packed(pixels) {
  const CLEAR = 256, END = 257, out = [8];
  let codes = new Map(), next = 258, size = 9, bits = 0, held = 0, block = [];
  const byte = (value) => { block.push(value); if (block.length === 255) { out.push(255, ...block); block = []; } };
  const put = (code) => {
    held |= code << bits;
    bits += size;
    while (bits >= 8) { byte(held & 255); held >>>= 8; bits -= 8; }
  };
  put(CLEAR);
  let prefix = pixels[0];
  for (let i = 1; i < pixels.length; i++) {
    const key = (prefix << 8) | pixels[i], code = codes.get(key);
    if (code !== undefined) { prefix = code; continue; }
    put(prefix);
    if (next < 4096) {
      codes.set(key, next);
      if (next++ === 1 << size) size++;
    } else {
      put(CLEAR);
      codes = new Map();
      [next, size] = [258, 9];
    }
    prefix = pixels[i];
  }
  put(prefix);
  put(END);
  if (bits) byte(held & 255);
  if (block.length) out.push(block.length, ...block);
  out.push(0);
  return Uint8Array.from(out);
}

// `images`: ImageData of one size; `delay`: of each, in hundredths of a second.
function asGif(images, delay) {
  const [{ width, height }] = images, { palette, nearest } = paletteOf(images), word = (n) => [n & 255, n >> 8];
  const parts = [new TextEncoder().encode("GIF89a"), Uint8Array.from([...word(width), ...word(height), 0xf7, 0, 0]),
    Uint8Array.from(Array.from({ length: 256 }, (_, i) => palette[i] ?? [0, 0, 0]).flat()), Uint8Array.from([0x21, 0xff, 11]), new TextEncoder().encode("NETSCAPE2.0"), Uint8Array.from([3, 1, 0, 0, 0])];
  images.forEach(({ data }, i) => {
    const pixels = new Uint8Array(width * height), last = i === images.length - 1;
    for (let k = 0, j = 0; k < pixels.length; k++, j += 4) pixels[k] = nearest[cell(data[j], data[j + 1], data[j + 2])];
    parts.push(Uint8Array.from([0x21, 0xf9, 4, 0, ...word(last ? 100 : delay), 0, 0, 0x2c, 0, 0, 0, 0, ...word(width), ...word(height), 0]), packed(pixels));
  });
  return new Blob([...parts, Uint8Array.from([0x3b])], { type: "image/gif" });
}
