"""The web page of an exported model in headless Chromium: what Python computes. Skipped where something is missing.

The engine is looked for in the folder `ONNXRUNTIME_WEB`, where `deploy.web.FETCH` was run (default: build/web).
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_onnx_file import quantized, smaller_backbone
from test_page_browser import CHROMIUM, DRIVER, OPTIONS, webdriver

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.cli import main
from qartsr_lib.deploy import export, web
from qartsr_lib.images import tiling
from qartsr_lib.images.datasets.samples import photographs
from qartsr_lib.images.image import central_crop, pad_to_multiple, psnr, read_image, upscale_bicubic, write_png

ENGINE = Path(os.environ.get("ONNXRUNTIME_WEB", Path(__file__).resolve().parents[1] / "build" / "web")) / "package"
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver")
needs_engine = pytest.mark.skipif(not ENGINE.is_dir(), reason=f"needs onnxruntime-web: {web.FETCH}")
SIDE = 32  # of tiles


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--window-size=1280,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


@pytest.fixture
def served(tmp_path):
    """(a folder, its address); the folder has the page."""
    folder = tmp_path / "site"
    shutil.copytree(web.PAGE, folder)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def photograph(height, width):
    """A part of a sample photograph, (1, 3, height, width), in 8 bits."""
    image = central_crop(read_image(photographs("calibration")[0].path), 128)
    return image[..., :height, :width]


def sent(image):
    return {"width": image.shape[-1], "height": image.shape[-2], "data": image.flatten().tolist()}


CALL = """
const [name, picture, args, done] = arguments;
import("./picture.js").then((found) => {
  const { width, height, data } = found[name]({ ...picture, data: new Float32Array(picture.data) }, ...args);
  done({ width, height, data: Array.from(data) });
});
"""


@pytest.mark.slow
@needs_browser
def test_pictures_are_enlarged_and_padded_as_in_python(browser, served):
    browser.get(served[1])

    def computed(name, image, *args):
        found = browser.execute_async_script(CALL, name, sent(image), args)
        return torch.tensor(found["data"]).view(1, 3, found["height"], found["width"])

    for height, width in ((1, 3), (9, 4), (21, 40)):
        image = photograph(height, width)
        large = computed("enlarge", image, 4)
        torch.testing.assert_close(large, upscale_bicubic(image), rtol=0, atol=1e-6)
        size = (4 * width, 4 * height)
        pillow = [Image.fromarray(plane.numpy()).resize(size, Image.Resampling.BICUBIC) for plane in image[0]]
        assert np.abs(large[0].numpy() - np.stack(pillow).clip(0, 1)).max() < 1e-6  # of floats it rounds nothing
        for multiple in (16, 64):
            assert torch.equal(computed("pad", image, multiple), pad_to_multiple(image, multiple))


@pytest.mark.slow
@needs_browser
@needs_engine
def test_a_photograph_in_the_browser_is_the_simulations(browser, served, tmp_path):
    for package in export.FORMATS["onnx"].packages:
        pytest.importorskip(package)
    folder, address = served
    model = quantized(smaller_backbone(), "maxmin", "W4A4")
    (folder / "model.json").write_text("{}")
    told = web.save_web(model, folder)
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | {"tile": SIDE}))
    (folder / "package").symlink_to(ENGINE)
    image = photograph(61, 45)
    write_png(tmp_path / "cat.png", image)

    browser.get(address)
    browser.get_log("browser")
    wait = """
const done = arguments[0], byId = (id) => document.getElementById(id);
const ended = () => !byId("download").hidden || document.querySelector(".failed");
const look = () => (ended() ? done(byId("status").textContent) : setTimeout(look, 100));
look();
"""
    browser.find_element("id", "file").send_keys(str(tmp_path / "cat.png"))
    status = browser.execute_async_script(wait)
    assert status.startswith("45 × 61 → 180 × 244 pixels in ")
    link = browser.find_element("id", "download")
    assert link.get_attribute("download") == "cat_x4.png"
    read = """
const done = arguments[0], reader = new FileReader();
reader.onload = () => done(reader.result);
const { href } = document.getElementById("download");
fetch(href).then((answer) => answer.blob()).then((blob) => reader.readAsDataURL(blob));
"""
    png = base64.b64decode(browser.execute_async_script(read).split(",")[1])
    found = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1)[None] / 255
    wanted = tiling.upscale_in_tiles(model, image, SIDE)
    assert found.shape == wanted.shape and psnr(found, wanted) > told.floor - 15
    assert psnr(found, model.upscale(image)) < psnr(found, wanted)  # tiles as in Python
    assert browser.get_log("browser") == []


@pytest.mark.slow
@needs_browser
def test_what_is_missing_is_told_on_the_page(browser, served, tmp_path):
    folder, address = served
    (folder / "model.json").write_text(json.dumps({"title": "x", "factor": 4, "fetch": web.FETCH}))
    (tmp_path / "no.png").write_text("no image")
    write_png(tmp_path / "cat.png", photograph(8, 8))
    browser.get(address)
    wait = """
const done = arguments[0], look = () => {
  if (!document.querySelector(".failed")) return setTimeout(look, 50);
  done(document.getElementById("status").textContent);
};
look();
"""
    for name, words in (("no.png", "no.png: is no image that"), ("cat.png", f"run: {web.FETCH}")):
        browser.find_element("id", "file").send_keys(str(tmp_path / name))
        assert words in browser.execute_async_script(wait)


def test_options_of_shipped_models_are_told(tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "site")]
    for words, line in (
        (["--format", "web"], "--checkpoint: name a model that quantize wrote, or --model w4a4|w3a3|w2a2"),
        (["--format", "web", "--model", "w5a5"], "--model w5a5: "),
        (["--format", "web", "--model", "w4a4", "--checkpoint", "q"], "give it or --checkpoint, not both"),
        (["--model", "w4a4"], "--model w4a4: is packed already; choose another --format"),
    ):
        assert main(["export", *words, *out]) == 2
        assert line in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def model(monkeypatch):
    """One whose file is zeros."""
    model = OneStepSR.__new__(OneStepSR)
    torch.nn.Module.__init__(model)
    model.name, model.timestep = "embedded", 1
    monkeypatch.setattr(OneStepSR, "multiple", 16)
    monkeypatch.setattr(web, "save_exported", lambda model, path, name: path.write_bytes(bytes(2_100_000)))
    return model


def test_an_interrupted_export_can_be_made_again(tmp_path, model, monkeypatch):
    written, write = [], web.write_text

    def interrupted(path, text):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(path, text))

    monkeypatch.setattr(web, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        web.save_web(model, tmp_path)
    monkeypatch.setattr(web, "write_text", write)
    web.save_web(model, tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_the_page_tells_what_the_model_needs(tmp_path, model):
    web.save_web(model, tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["title"] == "Model: embedded, T = 1, 2.1 MB. Engine: onnxruntime-web 1.30.0."
    assert (about["factor"], about["multiple"]) == (4, 16) and web.VERSION in about["fetch"]
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"index.html", "app.js", "picture.js", "style.css", "model.onnx", "model.json"}


def test_no_model_is_no_page(tmp_path, monkeypatch):
    def refuse(model, path, name):
        raise QartsrError(f"{path}: not written")

    monkeypatch.setattr(web, "save_exported", refuse)
    with pytest.raises(QartsrError, match="model.onnx: not written"):
        web.save_web(smaller_backbone(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_page_of_something_else_stays(tmp_path, capsys):
    (tmp_path / "index.html").write_text("my own page")
    assert main(["export", "--model", "w4a4", "--format", "web", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path / 'index.html'}: is there, and would be replaced" in capsys.readouterr().err
    assert [file.read_text() for file in tmp_path.iterdir()] == ["my own page"]
    (tmp_path / "model.json").write_text('{"modelTopology": {}}')  # TensorFlow.js'
    for names in (("index.html", "model.json"), ("model.json",)):
        with pytest.raises(QartsrError, match=f"{names[0]}: is there, and would be replaced"):
            web.check_web(tmp_path)
        (tmp_path / "index.html").unlink(missing_ok=True)


def test_an_interrupted_page_is_written_again(tmp_path, monkeypatch):
    model, folder = smaller_backbone(), tmp_path / "page"

    def save(_, path, name):
        path.write_text(name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(web, "save_exported", save)
        web.save_web(model, folder)
    assert {file.name for file in folder.iterdir()} == {"model.json", "model.onnx"}
    monkeypatch.setattr(web, "save_exported", lambda _, path, name: path.write_text(name))
    web.save_web(model, folder)
    assert "0.0 MB" in (folder / "model.json").read_text() and (folder / "index.html").exists()
    web.check_web(folder)


#: Runs app.js without a browser: A, slow to decode, is chosen, and B before A is there. Prints what is shown last.
CHOSEN_TWICE = """
import fs from "fs";
const wait = (ms) => new Promise((done) => setTimeout(done, ms)), elements = {}, heard = {};
fs.mkdirSync("package/dist", { recursive: true });
fs.writeFileSync("package.json", JSON.stringify({ type: "module" }));
fs.writeFileSync("package/dist/ort.wasm.min.mjs", `
  export const env = { wasm: {} };
  export class Tensor { constructor(type, data) { this.data = data; } }
  const run = async ({ upscaled }) => ({ image: { data: upscaled.data } });
  export const InferenceSession = { create: async () => ({ run }) };`);
const element = (id) => (elements[id] ??= {
  style: { setProperty() {} }, removeAttribute() {},
  addEventListener(name, act) { heard[id] = act; },
  getContext: () => ({
    fillRect() {}, putImageData() {}, drawImage(bitmap) { elements[id].shown = bitmap.name; },
    getImageData: (x, y, width, height) => ({ width, height, data: new Uint8ClampedArray(4 * width * height) }),
  }),
  toBlob(use) { use(`${this.width} x ${this.height}`); },
});
const classes = { add() { elements.status.failed = true; }, remove() {} };
globalThis.document = { getElementById: element, body: { classList: classes }, addEventListener() {} };
globalThis.fetch = async () => ({ json: async () => ({ factor: 4, multiple: 16, tile: 128 }) });
globalThis.ImageData = class {
  constructor(width, height) {
    Object.assign(this, { width, height, data: new Uint8ClampedArray(4 * width * height) });
  }
};
globalThis.createImageBitmap = async ({ name, size, ms }) => {
  await wait(ms);
  if (!size) throw new Error("no image");
  return { name, width: size[0], height: size[1] };
};
URL.createObjectURL = (blob) => blob;
URL.revokeObjectURL = () => {};
await import("./app.js");
const [first] = process.argv.slice(2).map(JSON.parse);
heard.file({ target: { files: [{ name: "A.jpg", size: first, ms: 100 }] } });
await wait(10);
heard.file({ target: { files: [{ name: "B.jpg", size: [30, 20], ms: 1 }] } });
await wait(1500);
const { before, after, download, status } = elements;
const canvas = [before.shown, after.width, after.height];
console.log(JSON.stringify([...canvas, download.download, download.href, !status.failed]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("first", [[20, 90], None])
def test_of_two_photographs_the_last_is_shown_and_saved(tmp_path, first):
    for name in ("app.js", "picture.js"):
        shutil.copy(web.PAGE / name, tmp_path)
    (tmp_path / "run.mjs").write_text(CHOSEN_TWICE)
    words = ["node", "run.mjs", json.dumps(first)]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == ["B.jpg", 120, 80, "B_x4.png", "120 x 80", True]
