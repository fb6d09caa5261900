"""The full-size measurement, on the tiny configuration: the record, and the way through files."""

import json
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from int8_cuda_reference import reference_encode, reference_multiply, reference_normalize
from osediff_stand_in import UNET_CONFIG, VAE_CONFIG

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import write_png
from tests.benchmarks import fullsize, fullsize_deployment, fullsize_training
from tests.benchmarks.gpu import compile_ahead, gpu_contestants, gpu_race, int8_cuda
from tests.benchmarks.gpu.gpu_contestants import Models

TINY = {"unet_config": UNET_CONFIG, "vae_config": VAE_CONFIG}


@pytest.fixture
def image(tmp_path):
    return write_png(tmp_path / "cat.png", torch.rand(1, 3, 140, 150, generator=torch.Generator().manual_seed(0)))


def test_record(home, image, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fullsize, "random_osediff", partial(fullsize.random_osediff, **TINY))
    assert fullsize.main(["--image", str(image), "--timestep", "1", "--out", str(tmp_path / "out.png")]) == 0
    record = json.loads((home / "results/paper" / fullsize.RECORD).read_text())
    assert record["input"] == [128, 128] and record["output"] == [512, 512] and record["finite"]
    assert record["timestep"] == 1 and record["within_limit"] and 0 < record["peak_memory_gib"] < 24
    assert set(record["seconds"]) == {"encode", "UNet", "decode", "total"}
    assert record["git"] and record["environment"]["versions"] and record["image"] == "cat"
    assert (tmp_path / "out.png").is_file() and "random weights" in record["what"]
    assert not torch.equal(*(fullsize.random_osediff(seed=seed).unet.conv_in.weight for seed in (0, 1)))


def test_through_files(home, image, tmp_path):
    files = fullsize.write_random_files(tmp_path / "files", timestep=500, **TINY)
    record = fullsize.run(partial(load_backbone, "osediff", None, **files), image)
    assert record["timestep"] == 500 and record["finite"] and "from files" in record["what"]
    merged = load_backbone("osediff", 500, **files)
    plain = fullsize.random_osediff(500, **TINY)
    assert torch.equal(merged.prompt_embedding, plain.prompt_embedding)
    assert not torch.equal(merged.unet.conv_out.weight, plain.unet.conv_out.weight)


def test_small_photograph(home, tmp_path):
    small = write_png(tmp_path / "small.png", torch.rand(1, 3, 100, 200))
    with pytest.raises(QartsrError, match="smaller than 128x128"):
        fullsize.photograph(small)
    assert fullsize.main(["--image", str(small)]) == 2


def test_training_record(home, monkeypatch):
    monkeypatch.setattr(fullsize, "random_osediff", partial(fullsize.random_osediff, **TINY))
    monkeypatch.setattr("qartsr_lib.training.finetuning.engine.LARGE", 0)
    assert fullsize_training.main(["--side", "16", "--crops", "1", "--et-images", "1"]) == 0
    record = json.loads((home / "results/paper/qartsr_fullsize_cpu.json").read_text())
    assert record["image"] == [64, 64] and record["teacher"] == "bfloat16" and record["bits"] == "W4A4"
    assert len(record["seconds_per_rpq_step"]) > 10 and len(record["seconds_per_et_step"]) == 1
    assert 0 < record["peak_memory_gib"] < 24 and record["projected"]["hours_at_this_image_size"] > 0
    assert record["environment"]["versions"] and record["git"]


def test_projection():
    history = [{"phase": 0, "seconds": 1.0}, {"phase": 1, "seconds": 3.0}, {"phase": 2, "seconds": 5.0}]
    hours = fullsize_training.projected_hours(3, history, images=720, start=4.0, crops=2, drawn=180)
    assert hours == pytest.approx((360 * 2.0 + 360 * 5.0 + 360) / 3600)
    assert fullsize_training.main(["--side", "4"]) == 2


class _Border:
    def __init__(self, table, row_class, column_class):
        self.table, self.row_class, self.column_class = table, row_class, column_class


def test_deployment_record(home, monkeypatch):
    """Everything but what only a GPU has; who fails is named and does not stop the others."""
    kernels = int8_cuda.Kernels(reference_encode, reference_multiply, _Border, reference_normalize)
    monkeypatch.setattr(int8_cuda, "triton_kernels", lambda: kernels)
    monkeypatch.setattr(gpu_race, "warmed_up", lambda call: 0.0 * float(call().sum()))
    monkeypatch.setattr(gpu_race, "graphed", lambda call: call)
    monkeypatch.setattr(gpu_race, "milliseconds", lambda call: 1.0 + 0.0 * float(call().sum()))
    monkeypatch.setattr(gpu_race, "peak_mib", lambda call: 1.0)
    monkeypatch.setattr(gpu_race, "breakdown", lambda call: {"ms": 1.0})
    models = fullsize_deployment.Models("cpu", torch.rand(1, 3, 16, 16), TINY)
    monkeypatch.setattr(fullsize_deployment.Models, "bf16", property(lambda _: int("none")))
    monkeypatch.setattr(gpu_contestants, "_compiled", lambda model: model)
    kept, deadline = [], gpu_race.Deadline(600)
    ahead = {"something": subprocess.Popen([sys.executable, "-c", "pass"])}
    record = fullsize_deployment.measure(models, 2, deadline, lambda found: kept.append(json.dumps(found)), ahead)
    assert record["compiled_ahead"]["something"]["done"] and record["first_rounds_ms"]["int8"]["rounds"] == 2 + 1
    assert record["output"] == [64, 64] and len(kept) > len(record["contestants"])
    assert record["contestants"]["bf16"]["failed"].startswith("ValueError: invalid literal")
    assert record["contestants"]["int8"]["weights_mib"] > 0 and "failed" in record["contestants"]["bf16, compiled"]
    assert record["ms"]["int8, graph"]["rounds"] == 2 and record["times_as_fast_as"]["fp32"]["int8"] == 1.0
    assert record["agreement"]["layers"]["layers"] > 300 and record["agreement"]["layers"]["integer"]["worst"] < 1e-5
    assert "failed" in record["agreement"]["images"] and set(record["breakdown"]) == {"int8"}


def test_deployment_needs_a_gpu(home, capsys):
    assert fullsize_deployment.main(["--device", "cpu"]) == 2
    assert "no CUDA device here" in capsys.readouterr().err


def test_nothing_is_begun_without_time(home, monkeypatch):
    """Agreement and breakdown, too, are named as left out."""
    models, kept = fullsize_deployment.Models("cpu", torch.rand(1, 3, 16, 16), TINY), []
    record = fullsize_deployment.measure(models, 2, gpu_race.Deadline(0), kept.append)
    failed = [*record["contestants"].values(), *record["agreement"].values()]
    assert len(failed) == len(gpu_contestants.CONTESTANTS) + 2 and record["breakdown"] == record["ms"] == {}
    assert all(entry["failed"].startswith("TimeoutError: no time left") for entry in failed)


def test_compiling_ahead(monkeypatch):
    """The processes are ended when the time for them is over, and when nobody waited for them."""
    with monkeypatch.context() as patch:
        patch.setattr(compile_ahead.sys, "executable", "sleep")  # `sleep -m ...` ends with an error
        with compile_ahead.compiling_ahead("cuda", 16) as processes:
            assert compile_ahead.waited(processes["bf16, compiled"], 60)["done"] is False
    assert all(process.poll() is not None for process in processes.values())
    process = subprocess.Popen(["sleep", "60"])
    assert compile_ahead.waited(process, -1.0)["done"] is False and process.poll() is not None


def test_what_is_compiled_ahead(monkeypatch):
    monkeypatch.setattr(compile_ahead, "Models", lambda *given: Models(*given, TINY))
    monkeypatch.setattr(gpu_contestants, "_compiled", lambda model: (called.append(model), model)[1])
    called = []
    compile_ahead.compile_once("cpu", 16, "bf16, compiled")
    assert len(called) == 1
    monkeypatch.setattr(Models, "int8_fp32", property(lambda models: lambda image: called.append(image.shape)))
    compile_ahead.compile_once("cpu", 16, "int8 in float32")
    assert called[1] == (1, 3, 64, 64)


def test_time_limit():
    deadline = gpu_race.Deadline(0.2)
    with pytest.raises(TimeoutError, match="not ready after"), deadline.within(reserve=0.1):
        time.sleep(5)
    with pytest.raises(TimeoutError, match="no time left"), deadline.within(reserve=10):
        pass
    calls = {"slow": lambda: None}
    assert gpu_race.by_turns(calls, 3, gpu_race.Deadline(-1)) == ({"slow": []}, {})
    assert gpu_race.ratio([], []) is None and gpu_race.ratio([4.0, 6.0], [2.0, 2.0]) == 2.5
    assert gpu_race.kind_of("void cutlass_80_wmma_gemm") == "convolutions and matrix products"
    assert gpu_race.by_turns(calls, 3, gpu_race.Deadline(9))[1]["slow"] and not calls
