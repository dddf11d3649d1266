// Two networks from .dcb files: a digit that is drawn, and an image that is dropped.

import { open } from "./deepcabac/src/index.js";
import { restoreOnnx } from "./deepcabac/src/onnx.js";
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need a server that isolates the page

const MAX_BYTES = 200e6; // of a network; more is not meant for this page
const find = (selector) => document.querySelector(selector);
const megabytes = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** Downloads a network, shows how it goes, and returns what runs it. */
async function load(name, about) {
  const status = find(`#${name} .status`);
  const progress = find(`#${name} progress`);
  const show = (text, done, total) => {
    status.textContent = `${text}: ${megabytes(done)} of ${megabytes(total)}`;
    progress.value = done / total;
  };
  try {
    const started = performance.now();
    const response = await fetch(`models/${name}.dcb`);
    const file = await open(response, {
      maxBytes: MAX_BYTES,
      onDownload: (done, total) => show("Downloading", done, total),
    });
    const model = await restoreOnnx(file, { onProgress: (done, total) => show("Decoding", done, total) });
    await file.close();
    const decoded = performance.now();
    const session = await ort.InferenceSession.create(model);
    const seconds = ((decoded - started) / 1000).toFixed(2);
    const part = ((100 * about.dcbBytes) / about.onnxBytes).toFixed(0);
    status.textContent =
      `${about.weights.toLocaleString("en")} weights in ${megabytes(about.dcbBytes)}, ${part} % of its ONNX file ` +
      `(${megabytes(about.onnxBytes)}). Downloaded and decoded in ${seconds} s.`;
    progress.hidden = true;
    return async (data, dims) => {
      const results = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", data, dims) });
      return results[session.outputNames[0]].data;
    };
  } catch (error) {
    status.classList.add("error");
    status.textContent = `This network cannot be loaded: ${error.message}`;
    progress.hidden = true;
    throw error;
  }
}

/** A list of names with bars. */
function showBars(list, rows) {
  list.replaceChildren(
    ...rows.map(([name, share]) => {
      const item = document.createElement("li");
      const part = (kind, text) => {
        const element = document.createElement("span");
        element.className = kind;
        element.textContent = text;
        return element;
      };
      const bar = part("bar", "");
      bar.append(document.createElement("i"));
      bar.firstChild.style.width = `${100 * share}%`;
      const label = part("name", name);
      label.title = name;
      const percent = part("share", `${Math.round(100 * share)} %`);
      item.append(...(list.classList.contains("digits") ? [label, bar, percent] : [label, percent, bar]));
      return item;
    }),
  );
}

// Digits

/** What was drawn as MNIST's images are: 28 x 28, the digit 20 pixels high or wide, its centre of mass in the middle. */
function digitPixels(canvas) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let [left, right, top, bottom, mass, massX, massY] = [width, -1, height, -1, 0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const ink = data[4 * (y * width + x)];
      if (ink === 0) continue;
      [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
      mass += ink;
      massX += ink * (x + 0.5);
      massY += ink * (y + 0.5);
    }
  }
  if (mass === 0) return undefined;
  const scale = 20 / Math.max(right - left + 1, bottom - top + 1);
  const small = new OffscreenCanvas(28, 28).getContext("2d");
  small.imageSmoothingQuality = "high";
  small.fillRect(0, 0, 28, 28);
  small.translate(14 - (scale * massX) / mass, 14 - (scale * massY) / mass);
  small.scale(scale, scale);
  small.drawImage(canvas, 0, 0);
  const pixels = small.getImageData(0, 0, 28, 28).data;
  return Float32Array.from({ length: 784 }, (_, k) => pixels[4 * k] / 255);
}

async function digits(about) {
  const canvas = find("#drawing");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const list = find("#digits");
  const names = [..."0123456789"];
  list.classList.add("digits");
  let run;
  let latest = 0;

  const recognise = async () => {
    const pixels = digitPixels(canvas);
    const number = ++latest;
    const shares = pixels && run ? await run(pixels, [1, 784]) : new Float32Array(10);
    if (number !== latest) return; // something was drawn meanwhile
    showBars(list, names.map((name, k) => [name, shares[k]]));
    const best = shares.indexOf(Math.max(...shares));
    find("#digit").textContent = pixels && run ? `It looks like a ${best}.` : "Draw a digit from 0 to 9.";
  };
  const clear = () => {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    recognise();
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  let last;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = at(event);
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 22, lineCap: "round" });
    pen.beginPath();
    pen.moveTo(...last);
    pen.lineTo(...next);
    pen.stroke();
    last = next;
    recognise();
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => (last = undefined));
  find("#clear").addEventListener("click", clear);
  clear();
  run = await load("lenet", about);
  await recognise();
}

// Images

async function images(about) {
  const canvas = find("#image");
  const drop = find("#drop");
  const size = canvas.width;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let chosen = 0;

  const running = load("efficientnet", about);
  const labels = (await fetch("models/labels.json")).json();
  const recognise = async (blob) => {
    const answer = find("#class");
    const number = ++chosen;
    let image;
    try {
      image = await createImageBitmap(blob);
    } catch {
      answer.textContent = "This is not an image that the browser can read.";
      return;
    }
    // The largest square in its middle.
    const edge = Math.min(image.width, image.height);
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, size, size);
    pen.drawImage(image, (image.width - edge) / 2, (image.height - edge) / 2, edge, edge, 0, 0, size, size);
    drop.classList.add("full");
    answer.textContent = "Looking at it…";
    const run = await running;
    const { data } = pen.getImageData(0, 0, size, size);
    const pixels = new Float32Array(3 * size * size);
    for (let k = 0; k < size * size; k++) {
      for (let channel = 0; channel < 3; channel++) pixels[channel * size * size + k] = (data[4 * k + channel] - 127) / 128;
    }
    const started = performance.now();
    const shares = await run(pixels, [1, 3, size, size]);
    if (number !== chosen) return;
    const milliseconds = Math.round(performance.now() - started);
    const names = await labels;
    const best = [...shares.keys()].sort((one, other) => shares[other] - shares[one]).slice(0, 5);
    showBars(find("#classes"), best.map((k) => [names[k], shares[k]]));
    answer.textContent = `${names[best[0]]}. Recognised in ${milliseconds} ms.`;
  };

  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) recognise(event.dataTransfer.files[0]);
  });
  find("#file").addEventListener("change", (event) => event.target.files[0] && recognise(event.target.files[0]));
  await running;
}

const models = await (await fetch("models/models.json")).json();
if (!models.efficientnet) find("#efficientnet").hidden = true;
await Promise.allSettled([digits(models.lenet), models.efficientnet && images(models.efficientnet)]);
document.documentElement.dataset.ready = "";
