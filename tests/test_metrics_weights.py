"""Weights that are absent, unreachable, damaged, downloaded: never a crash, never a number from noise."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import os
import pickle
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images import metrics
from qartsr_lib.images.image import read_image, write_png
from qartsr_lib.images.metrics import METRICS, MetricSpec, iqa, weights
from qartsr_lib.images.metrics.weights import WeightFile

NEEDY = ["LPIPS", "DISTS", "NIQE", "MUSIQ", "MANIQA", "CLIP-IQA"]


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """No weights anywhere, no answer about the network remembered; torch hub's cache is temporary."""
    hub = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(weights, "_hugging_face_cached", lambda file: None)
    monkeypatch.setattr(weights, "converted", lambda name: None)
    metrics.forget()
    yield
    metrics.forget()
    torch.hub.set_dir(hub)


@pytest.fixture
def online(monkeypatch):
    """The environment of a machine that may use its network (if there were one)."""
    for name in (
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    METRICS.names()  # imports are not part of the measured time
    import huggingface_hub  # noqa: F401
    import scipy.io  # noqa: F401


@pytest.fixture
def image(tmp_path) -> Path:
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return write_png(tmp_path / "image.png", pixels)


def _niqe_file(folder: Path) -> Path:
    path = folder / "niqe_modelparameters.mat"
    scipy.io.savemat(path, {"mu_prisparam": np.zeros((1, 36)), "cov_prisparam": np.eye(36)})
    return path


def test_offline_variable_answers_without_a_socket(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def forbidden(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    reasons = metrics.available(METRICS)
    assert [name for name, reason in reasons.items() if reason] == NEEDY
    for name in NEEDY:
        assert METRICS.get(name).weights[0].name in reasons[name]
        assert "QARTSR_METRIC_WEIGHTS" in reasons[name] and "internet" in reasons[name]


@pytest.mark.parametrize("network", ["hangs", "refuses"])
def test_unreachable_is_found_out_within_five_seconds_in_all(online, monkeypatch, image, network):
    release, asked = threading.Event(), []

    def getaddrinfo(*args, **kwargs):
        asked.append(args)
        if network == "hangs":
            release.wait(60)
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        started = time.monotonic()
        reasons = metrics.available(METRICS)
        scores = metrics.score(image, image, NEEDY)
        seconds = time.monotonic() - started
    finally:
        release.set()
    assert seconds < 5
    assert len(asked) == 1  # one question for all metrics
    for name in NEEDY:
        assert scores[name] == (None, reasons[name])
        assert "weights not found" in reasons[name]


def test_a_given_folder_and_the_variable_are_used(tmp_path, monkeypatch, image):
    _niqe_file(tmp_path)
    assert metrics.available(["NIQE"])["NIQE"] is not None
    assert metrics.available(["NIQE"], tmp_path) == {"NIQE": None}
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    assert metrics.available(["NIQE"]) == {"NIQE": None}
    value, note = metrics.score(image, None, ["NIQE"])["NIQE"]
    assert value > 0 and note == ""


def test_a_folder_given_later_is_not_hidden_by_an_earlier_failure(tmp_path, image):
    assert metrics.score(image, None, ["NIQE"])["NIQE"][0] is None
    _niqe_file(tmp_path)
    assert metrics.score(image, None, ["NIQE"], tmp_path)["NIQE"][0] > 0


def test_a_folder_that_does_not_exist_is_named(tmp_path, image):
    with pytest.raises(QartsrError, match="nowhere: no such folder; check QARTSR_METRIC_WEIGHTS"):
        metrics.available(["NIQE"], tmp_path / "nowhere")


def test_torch_hubs_cache_is_looked_at(tmp_path):
    (tmp_path / "hub/pyiqa").mkdir(parents=True)
    _niqe_file(tmp_path / "hub/pyiqa")
    assert metrics.available(["NIQE"]) == {"NIQE": None}


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(300), b"<html>404</html>" * 40])
def test_a_damaged_parameter_file_is_a_reason(tmp_path, image, content):
    (tmp_path / "niqe_modelparameters.mat").write_bytes(content)
    reason = metrics.available(["NIQE"], tmp_path)["NIQE"]
    assert reason.startswith("weights damaged: niqe_modelparameters.mat")
    assert str(tmp_path) not in reason  # notes are published
    assert metrics.score(image, None, ["NIQE"], tmp_path)["NIQE"] == (None, reason)


def test_a_truncated_or_foreign_parameter_file_is_a_reason(tmp_path, image):
    path = _niqe_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "weights damaged" in metrics.available(["NIQE"], tmp_path)["NIQE"]
    scipy.io.savemat(path, {"something": np.zeros(3)})
    metrics.forget()
    value, note = metrics.score(image, None, ["NIQE"], tmp_path)["NIQE"]
    assert value is None and "niqe_modelparameters.mat cannot be loaded (KeyError)" in note


def test_wrong_content_under_the_right_name_gives_no_number(tmp_path, image):
    """Loading is not strict in pyiqa's LPIPS and DISTS: without the checksum they would run on noise."""
    for name in ("alexnet-owt-7be5be79.pth", "vgg16-397923af.pth", "DISTS_weights-f5e65c96.pth"):
        torch.save({"alpha": torch.zeros(1)}, tmp_path / name)
    for name in ("LPIPS", "DISTS"):
        value, note = metrics.score(image, image, [name], tmp_path)[name]
        assert value is None and "weights damaged" in note and "checksum" in note


def test_a_truncated_archive_is_seen_at_once(tmp_path):
    path = tmp_path / "musiq_koniq_ckpt-e95806b9.pth"
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "cut short" in metrics.available(["MUSIQ"], tmp_path)["MUSIQ"]


class _Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_never_executed_and_nothing_is_downloaded_while_pyiqa_builds(tmp_path):
    import timm
    from pyiqa.utils import download_util

    evil, trace, file = tmp_path / "evil.pt", tmp_path / "executed", _niqe_file(tmp_path)
    torch.save(_Touch(trace), evil)
    hub, create, cache = torch.hub.get_dir(), timm.create_model, download_util.DEFAULT_CACHE_DIR
    with pytest.raises(pickle.UnpicklingError), iqa._staged({file.name: file}, (iqa.NIQE_PARAMETERS,)):
        found = download_util.load_file_from_url(iqa.NIQE_PARAMETERS.url)
        assert Path(found).read_bytes() == file.read_bytes()
        assert timm.create_model("resnet18", pretrained=True) is not None  # offline, so it would fail
        torch.load(evil, weights_only=False)
    assert not trace.exists()
    assert (torch.hub.get_dir(), timm.create_model, download_util.DEFAULT_CACHE_DIR) == (hub, create, cache)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.slow
def test_lpips_from_given_files_equals_the_lpips_package(tmp_path, image, monkeypatch):
    """A random AlexNet stands in for the published one; both implementations get the same file."""
    import lpips
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.alexnet()
    torch.save(network.state_dict(), tmp_path / iqa.ALEXNET.name)
    unchecked = tuple(dataclasses.replace(file, sha256=None) for file in METRICS.get("LPIPS").weights)
    spec = dataclasses.replace(METRICS.get("LPIPS"), weights=unchecked)
    monkeypatch.setattr(METRICS, "_entries", {**METRICS._entries, "LPIPS": spec})
    darker = write_png(tmp_path / "darker.png", read_image(image) ** 2)

    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    for index, layer in enumerate(network.features[:12]):
        part = next(s for s in reference.net.children() if str(index) in s._modules)
        part._modules[str(index)] = layer
    with torch.no_grad():
        a, b = (2 * read_image(path) - 1 for path in (darker, image))
        expected = float(reference(a, b))
    value, note = metrics.score(darker, image, ["LPIPS"], tmp_path)["LPIPS"]
    assert note == ""
    assert value == pytest.approx(expected, rel=1e-5) and value > 0


# --- downloads, from a server on this machine --------------------------------------------------------


@pytest.fixture
def hub_server(online, monkeypatch):
    """A hub that serves `content` at every path under /good; its address replaces the public one."""
    content = b"parameters"

    class Handler(http.server.BaseHTTPRequestHandler):
        def _reply(self, body: bytes) -> None:
            found = self.path == "/" or self.path.startswith("/good")
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body) if found else 0))
            self.end_headers()
            if found and self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self):
            self._reply(b"")

        def do_GET(self):
            self._reply(content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield content
    server.shutdown()
    server.server_close()


def _served(monkeypatch, folder: str, sha256: str | None) -> None:
    file = WeightFile(f"https://huggingface.co/{folder}/resolve/main/w.bin", "pyiqa", sha256)
    size = MetricSpec("SIZE", "NR", True, "", lambda paths: lambda a, b: paths["w.bin"].stat().st_size, weights=(file,))
    monkeypatch.setattr(METRICS, "_entries", {**METRICS._entries, "SIZE": size})


def test_reachable_weights_are_fetched_once_into_the_cache(hub_server, monkeypatch, image, tmp_path):
    _served(monkeypatch, "good", hashlib.sha256(hub_server).hexdigest())
    assert metrics.available(["SIZE"]) == {"SIZE": None}
    assert metrics.score(image, None, ["SIZE"])["SIZE"] == (len(hub_server), "")
    assert (tmp_path / "hub/pyiqa/w.bin").read_bytes() == hub_server


@pytest.mark.parametrize(("folder", "sha256"), [("good", "0" * 64), ("missing", None)])
def test_a_failed_or_wrong_download_is_a_note(hub_server, monkeypatch, image, tmp_path, folder, sha256):
    _served(monkeypatch, folder, sha256)
    value, note = metrics.score(image, None, ["SIZE"])["SIZE"]
    assert value is None and "the download of w.bin failed" in note
    assert not (tmp_path / "hub/pyiqa/w.bin").exists()
    assert socket.getdefaulttimeout() is None


def test_checksums_are_those_that_the_addresses_state():
    files = {name: METRICS.get(name).weights for name in METRICS if METRICS.get(name).weights}
    assert list(files) == NEEDY
    stated = {file.name: file.sha256 for metric in files.values() for file in metric if file.sha256}
    assert stated.pop("RN50.pt") == "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
    assert all(name.split("-")[-1] == f"{sha256}.pth" for name, sha256 in stated.items()) and len(stated) == 5
