import { blend, canvasFor, crop, enlarge, pad, pictureOf, tiles, visible } from "./picture.js";

const LARGEST = 2e6; // pixels of an input; its result has 16 times as many
const byId = (id) => document.getElementById(id);
const say = (text) => { byId("status").textContent = text; };
const show = (id, shown = true) => { byId(id).hidden = !shown; };
const about = await (await fetch("model.json")).json();
let newest = 0; // each chosen photograph ends the work on the one before

byId("model").textContent = about.title;

// The engine runs in a worker of its own, so that the page answers; it reads the model when first needed.
let loading;
const load = () => (loading ??= (async () => {
  const engine = await import("./package/dist/ort.wasm.min.mjs").catch(() => {
    throw new Error(`the engine is not there. In the folder of this page, run: ${about.fetch}`);
  });
  engine.env.wasm.proxy = true;
  const options = { executionProviders: ["wasm"], logSeverityLevel: 3 }; // errors
  const session = await engine.InferenceSession.create("model.onnx", options);
  return async ({ width, height, data }) => {
    const given = new engine.Tensor("float32", data, [1, 3, height, width]);
    const { image } = await session.run({ upscaled: given });
    return { width, height, data: image.data };
  };
})());

const decode = async (file) => {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name}: is no image that this browser reads; choose a JPEG, PNG or WebP file`);
  });
  if (bitmap.width * bitmap.height > LARGEST)
    throw new Error(`${file.name}: has more than 2 million pixels; upscale it with qartsr upscale`);
  return bitmap;
};

const upscale = async (file, mine) => {
  const factor = about.factor;
  show("download", false);
  byId("progress").removeAttribute("value");
  show("work");
  say("Reading the photograph");
  const bitmap = await decode(file), before = byId("before"), after = byId("after");
  if (mine !== newest) return;
  Object.assign(before, { width: bitmap.width, height: bitmap.height });
  Object.assign(after, { width: bitmap.width * factor, height: bitmap.height * factor });
  const pen = before.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white"; // behind what is transparent
  pen.fillRect(0, 0, before.width, before.height);
  pen.drawImage(bitmap, 0, 0);
  byId("sheet").style.aspectRatio = `${bitmap.width} / ${bitmap.height}`;
  byId("sheet").style.setProperty("--ratio", bitmap.width / bitmap.height);
  show("compare");
  const picture = pictureOf(pen.getImageData(0, 0, before.width, before.height));

  say("Preparing the model (once, up to a minute)");
  const run = await load(), parts = tiles(picture, about.tile, factor), sum = canvasFor(picture, factor);
  const started = performance.now();
  for (const [done, tile] of parts.entries()) {
    if (mine !== newest) return;
    byId("progress").value = done / parts.length;
    const left = ((performance.now() - started) / 1000 / done) * (parts.length - done);
    say(`Tile ${done + 1} of ${parts.length}${done ? `, about ${Math.ceil(left)} s left` : ""}`);
    const low = crop(picture, tile.left, tile.top, tile.width, tile.height);
    const found = await run(pad(enlarge(low, factor), about.multiple));
    if (mine !== newest) return;
    blend(sum, tile, found, factor);
    after.getContext("2d").putImageData(visible(sum, tile, factor), tile.left * factor, tile.top * factor);
  }
  byId("progress").value = 1;
  const seconds = (performance.now() - started) / 1000;
  const blob = await new Promise((done) => after.toBlob(done, "image/png"));
  if (mine !== newest) return;
  URL.revokeObjectURL(byId("download").href);
  byId("download").href = URL.createObjectURL(blob);
  byId("download").download = `${file.name.replace(/\.[^.]*$/, "")}_x${factor}.png`;
  show("download");
  say(`${before.width} × ${before.height} → ${after.width} × ${after.height} pixels in ${seconds.toFixed(1)} s`);
};

const take = ([file]) => {
  if (!file) return;
  const mine = ++newest;
  document.body.classList.remove("failed");
  upscale(file, mine).catch((error) => {
    if (mine !== newest) return;
    newest++;
    document.body.classList.add("failed");
    show("work");
    byId("progress").value = 0;
    say(error.message ?? String(error));
  });
};

byId("file").addEventListener("change", (event) => take(event.target.files));
for (const name of ["dragover", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    if (name === "drop") take(event.dataTransfer.files);
  });
byId("position").addEventListener("input", (event) => {
  byId("sheet").style.setProperty("--at", `${event.target.value}%`);
});
