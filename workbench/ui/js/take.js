// Taking a picture away: PNG and SVG that hold their study, WebM; and reading the study of such a file again.

const LARGEST = 20e6, LONGEST = 1e6;   // bytes of a dropped picture, characters of its study

function save(blob, name) {
  const link = html("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A copy of an SVG element whose looks are attributes, so that it is the same outside of the page.
function standalone(node) {
  const copy = node.cloneNode(true), from = [node, ...node.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((one, i) => {
    const style = getComputedStyle(one), target = to[i];
    for (const key of ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "visibility"]) target.setAttribute(key, style.getPropertyValue(key));
    if (one.tagName === "text") for (const key of ["font-size", "font-weight", "font-style"]) target.setAttribute(key, style.getPropertyValue(key));
    for (const key of ["class", "style", "role", "tabindex"]) target.removeAttribute(key);
    for (const { name } of [...target.attributes]) if (name.startsWith("aria-")) target.removeAttribute(name);
  });
  return copy;
}

// The picture with its axes, its title and its time axis as one SVG of its own, the study in its metadata.
function asSvg({ canvas, overlay, time, stage, root, title, differs, readout, study }) {
  const style = getComputedStyle(root), colour = (name) => style.getPropertyValue(`--wb-${name}`).trim(), pad = 12, top = title ? 34 : pad;
  const place = { width: stage.offsetWidth, height: stage.offsetHeight }, axis = { width: time.clientWidth, height: time.clientHeight };
  const width = Math.max(place.width, axis.width) + 2 * pad, height = top + place.height + axis.height + 34, left = (width - place.width) / 2;
  const made = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "system-ui, 'DejaVu Sans', Arial, sans-serif", "font-size": 11 });
  if (study) made.append(svg("metadata", {}, svg("study", {}, study)));
  made.append(svg("rect", { width, height, fill: colour("surface") }));
  const inset = (node, x, y, { width, height }) => { const copy = standalone(node); for (const [k, v] of Object.entries({ x, y, width, height, overflow: "visible" })) copy.setAttribute(k, v); made.append(copy); };
  if (title) made.append(svg("text", { x: pad, y: 22, "font-size": 14, "font-weight": 600, fill: colour("text") }, title));
  made.append(svg("image", { x: left + canvas.offsetLeft, y: top + canvas.offsetTop, width: canvas.clientWidth, height: canvas.clientHeight, href: canvas.toDataURL("image/png") }));
  inset(overlay, left, top, place);
  inset(time, pad, top + place.height + 6, axis);
  made.append(svg("text", { x: pad, y: height - 10, "font-size": 11, fill: colour("muted") }, [readout, differs].filter(Boolean).join("   ")));
  return { text: new XMLSerializer().serializeToString(made), width, height };
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1; return n; });
const crc = (bytes) => ~bytes.reduce((c, b) => CRC[(c ^ b) & 255] ^ (c >>> 8), ~0) >>> 0;

// A PNG with a text chunk after its header: tEXt where the text is ASCII, else iTXt.
function withText(png, keyword, text) {
  const plain = /^[\x09\x0a\x20-\x7e]*$/.test(text), type = plain ? "tEXt" : "iTXt";
  const body = new TextEncoder().encode(type + keyword + (plain ? "\0" : "\0\0\0\0\0") + text), chunk = new Uint8Array(body.length + 8), data = new DataView(chunk.buffer);
  data.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  data.setUint32(body.length + 4, crc(body));
  return new Blob([png.subarray(0, 33), chunk, png.subarray(33)], { type: "image/png" });
}

async function asPng(picture, study, ratio) {
  const image = new Image(), address = URL.createObjectURL(new Blob([picture.text], { type: "image/svg+xml" }));
  try {
    image.src = address;
    await image.decode();
    const canvas = html("canvas", { width: Math.round(picture.width * ratio), height: Math.round(picture.height * ratio) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    return study ? withText(new Uint8Array(await blob.arrayBuffer()), "study", study) : blob;
  } finally {
    URL.revokeObjectURL(address);
  }
}

function textOfPng(bytes) {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = data.getUint32(at), type = String.fromCharCode(...bytes.subarray(at + 4, at + 8)), body = bytes.subarray(at + 8, at + 8 + length);
    const end = body.indexOf(0), keyword = new TextDecoder().decode(body.subarray(0, Math.max(end, 0)));
    if (keyword === "study" && type === "tEXt") return new TextDecoder().decode(body.subarray(end + 1));
    if (keyword === "study" && type === "iTXt" && body[end + 1] === 0) return new TextDecoder().decode(body.subarray(end + 5));
    at += 12 + length;
  }
  return null;
}

// The study that a dropped file holds; an error with a sentence where it holds none.
async function studyOf(file) {
  check(file.size <= LARGEST, `${file.name} is larger than 20 MB; drop a picture saved here, or a study file.`);
  const bytes = new Uint8Array(await file.arrayBuffer()), ending = file.name.split(".").pop().toLowerCase();
  let text = null;
  if (bytes[0] === 0x89 && bytes[1] === 0x50) text = textOfPng(bytes);
  else if (ending === "svg") text = new DOMParser().parseFromString(new TextDecoder().decode(bytes), "image/svg+xml").querySelector("metadata study")?.textContent ?? null;
  else if (["yaml", "yml", "json"].includes(ending)) text = new TextDecoder().decode(bytes);
  else check(false, `${file.name} is neither a PNG or SVG saved here nor a study file (.yaml, .json).`);
  check(text?.trim(), `${file.name} holds no study; save the picture here, with its study, and drop that.`);
  check(text.length <= LONGEST, `the study in ${file.name} is longer than a million characters.`);
  return text;
}

// A film of what `play` draws on the canvas; `play(stop)` calls `stop` when the run is over.
function film(canvas, play) {
  const kind = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm"].find((type) => globalThis.MediaRecorder?.isTypeSupported(type));
  check(kind && canvas.captureStream, "this browser records no WebM; save a PNG, or use a screen recorder.");
  return new Promise((done, failed) => {
    const recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: kind, videoBitsPerSecond: 8e6 }), parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onerror = ({ error }) => failed(error ?? new Error("the film could not be recorded."));
    recorder.onstop = () => done(new Blob(parts, { type: "video/webm" }));
    recorder.start(500);
    play(() => setTimeout(() => recorder.stop(), 300));
  });
}
