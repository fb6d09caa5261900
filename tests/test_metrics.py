"""Metric values against independent formulas, other packages and the official numbers."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
from skimage.metrics import structural_similarity

from qartsr_lib.backbones.features import pretrained_distance  # registers what VAE-FD is computed with, too
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.provenance import tensors_sha256
from qartsr_lib.images import metrics
from qartsr_lib.images.image import from_uint8, read_image, write_png
from qartsr_lib.images.metrics import METRICS, iqa

WEIGHT_FREE_FR = ["PSNR", "SSIM", "MS-SSIM", "GMSD", "FSIM", "VIF", "PSNR-RGB", "VAE-FD", "CIEDE2000"]
WEIGHT_FREE = [*WEIGHT_FREE_FR, "PIQE"]


pytestmark = pytest.mark.usefixtures("metrics_forgotten")


@pytest.fixture(scope="module")
def photograph() -> torch.Tensor:
    return from_uint8(skimage.data.astronaut()[:200, 100:310])


def _noisy(image: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return ((image + sigma * noise).clamp(0, 1) * 255).round() / 255


def _saved(folder, sr: torch.Tensor, hr: torch.Tensor):
    return write_png(folder / "sr.png", sr), write_png(folder / "hr.png", hr)


def _values(folder, sr, hr, names) -> dict[str, float]:
    scores = metrics.score(*_saved(folder, sr, hr), names)
    assert all(note == "" for _, note in scores.values()), scores
    return {name: value for name, (value, _) in scores.items()}


def _luma(image: torch.Tensor) -> np.ndarray:
    """BT.601 studio-range luma, 16 to 235, in float64."""
    red, green, blue = np.rint(image[0].numpy().astype(np.float64) * 255)
    return 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a - b) ** 2))


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_psnr_and_ssim_agree_with_formulas_written_here(tmp_path, photograph, sigma):
    sr = _noisy(photograph, sigma)
    values = _values(tmp_path, sr, photograph, ["PSNR", "SSIM", "PSNR-RGB"])
    assert values["PSNR"] == pytest.approx(_psnr(_luma(sr), _luma(photograph)), abs=1e-3)
    assert values["PSNR-RGB"] == pytest.approx(
        _psnr(sr.double().numpy() * 255, photograph.double().numpy() * 255), abs=1e-3
    )
    # the standard SSIM: 11x11 Gaussian window of sigma 1.5, whole windows only, luma in integer levels
    _, ssim_map = structural_similarity(
        np.rint(_luma(sr)),
        np.rint(_luma(photograph)),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert values["SSIM"] == pytest.approx(ssim_map[5:-5, 5:-5].mean(), abs=1e-5)


@pytest.mark.parametrize("name", WEIGHT_FREE_FR)
def test_more_noise_is_worse_and_no_error_is_best(tmp_path, photograph, name):
    ladder = [_values(tmp_path, _noisy(photograph, s), photograph, [name])[name] for s in (0.0, 0.02, 0.1, 0.3)]
    assert ladder == sorted(ladder, reverse=METRICS.get(name).higher_is_better)
    assert len(set(ladder)) == 4
    best = {"PSNR": 80, "PSNR-RGB": 80, "GMSD": 0, "VAE-FD": 0, "CIEDE2000": 0}.get(name, 1)
    assert ladder[0] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("name", WEIGHT_FREE)
def test_bit_equal_whatever_the_number_of_threads(tmp_path, photograph, name, threads):
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(_values(tmp_path, _noisy(photograph, 0.05), photograph, [name])[name])
            assert torch.get_num_threads() == count
    assert found[0] == found[1] == found[2]


def test_the_papers_metrics_come_first_and_know_their_direction_and_weights():
    eight = [(n, METRICS.get(n).kind, METRICS.get(n).higher_is_better, bool(METRICS.get(n).weights)) for n in METRICS][
        :8
    ]
    assert eight == [
        ("PSNR", "FR", True, False),
        ("SSIM", "FR", True, False),
        ("LPIPS", "FR", False, True),
        ("DISTS", "FR", False, True),
        ("NIQE", "NR", False, True),
        ("MUSIQ", "NR", True, True),
        ("MANIQA", "NR", True, True),
        ("CLIP-IQA", "NR", True, True),
    ]
    assert {n for n in METRICS if not METRICS.get(n).weights} == set(WEIGHT_FREE)


def test_directions_agree_with_pyiqa():
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    for spec in (METRICS.get(name) for name in METRICS if "pyiqa" in METRICS.get(name).options):
        config = DEFAULT_CONFIGS[spec.options["pyiqa"]]
        assert spec.higher_is_better is not config.get("lower_better", False)
        assert spec.kind == config["metric_mode"]


def test_options_are_those_of_the_field():
    for name in ("PSNR", "SSIM", "MS-SSIM"):
        assert METRICS.get(name).options["color_space"] == "ycbcr"
        assert METRICS.get(name).options["test_y_channel"] is True
    assert METRICS.get("MANIQA").options == {"pyiqa": "maniqa"}  # KonIQ, not PIPAL
    assert METRICS.get("LPIPS").options["net"] == "alex"


@pytest.mark.parametrize("name", WEIGHT_FREE)
def test_the_smallest_size_works_and_a_smaller_one_gets_a_note(tmp_path, photograph, name):
    side = METRICS.get(name).minimum_side
    image = photograph[:, :, :side, : max(side, 2)]
    _values(tmp_path, _noisy(image, 0.05, seed=1), image, [name])
    if side > 1:
        image = photograph[:, :, : side - 1, :]
        value, note = metrics.score(*_saved(tmp_path, image, image), [name])[name]
        assert value is None
        assert "too small" in note and str(side) in note


def test_degenerate_images_get_a_note_and_no_number(tmp_path):
    black = torch.zeros(1, 3, 64, 64)
    value, note = metrics.score(*_saved(tmp_path, black, black), ["PIQE"])["PIQE"]
    assert value is None and "PIQE is not finite" in note


def test_an_exception_inside_a_metric_becomes_a_note(tmp_path, photograph, monkeypatch):
    def explode(sr, hr):
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setattr(metrics, "_load", lambda name, folder: (explode, ""))
    value, note = metrics.score(*_saved(tmp_path, photograph, photograph), ["PSNR"])["PSNR"]
    assert value is None and "LinAlgError" in note and "\n" not in note


def test_without_a_reference_only_no_reference_metrics_have_a_value(tmp_path, photograph):
    path = write_png(tmp_path / "sr.png", photograph)
    scores = metrics.score(path, None, ["PSNR", "PIQE"])
    assert scores["PSNR"] == (None, "needs a reference image")
    assert scores["PIQE"][0] > 0


def test_a_no_reference_metric_is_given_none_beside_a_reference(tmp_path, photograph, monkeypatch):
    monkeypatch.setattr(metrics, "_load", lambda name, folder: (lambda sr, hr: float(hr is None), ""))
    scores = metrics.score(*_saved(tmp_path, photograph, photograph), ["PIQE", "PSNR"])
    assert (scores["PIQE"][0], scores["PSNR"][0]) == (1, 0), "the text for writers of metrics says so"


def test_images_of_different_size_are_refused_with_both_sizes(tmp_path):
    sr, hr = _saved(tmp_path, torch.rand(1, 3, 20, 30), torch.rand(1, 3, 20, 32))
    with pytest.raises(QartsrError, match=r"sr\.png is 30x20 and .*hr\.png is 32x20"):
        metrics.score(sr, hr, ["PSNR"])


def test_unknown_names_are_refused(tmp_path, photograph):
    with pytest.raises(QartsrError, match="did you mean 'PSNR'"):
        metrics.score(*_saved(tmp_path, photograph, photograph), ["PSRN"])
    with pytest.raises(QartsrError, match="unknown metric"):
        metrics.available(["PSNR", "nonsense"])


def test_a_new_metric_is_one_registered_row_and_may_be_registered_again(tmp_path, photograph, monkeypatch):
    METRICS.names()
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    saved = _saved(tmp_path, photograph * 0, photograph * 0 + 0.2)
    for power, expected in ((1, 0.2), (2, 0.04)):  # as a cell of a notebook that was edited

        def build(_, power=power):
            return lambda a, b: float((a - b).abs().pow(power).mean())

        METRICS.register("MAE")(metrics.MetricSpec("MAE", "FR", False, "mean difference", build))
        assert metrics.score(*saved, ["MAE"])["MAE"][0] == pytest.approx(expected, abs=1e-6)


def test_identity_is_json_and_changes_with_the_weights(tmp_path):
    import json

    first = metrics.identity(["PSNR", "NIQE"], tmp_path)
    assert json.loads(json.dumps(first)) == first
    assert first["NIQE"]["weights"] == {"niqe_modelparameters.mat": None} or first["NIQE"]["weights"]
    (tmp_path / "niqe_modelparameters.mat").write_bytes(b"one")
    second = metrics.identity(["NIQE"], tmp_path)
    (tmp_path / "niqe_modelparameters.mat").write_bytes(b"other")
    third = metrics.identity(["NIQE"], tmp_path)
    checksums = [found["NIQE"]["weights"]["niqe_modelparameters.mat"] for found in (second, third)]
    assert checksums[0] != checksums[1] and all(len(checksum) == 64 for checksum in checksums)


def test_pyiqa_is_imported_by_the_first_score_only():
    code = (
        "import sys, qartsr_lib.images.metrics as m, qartsr_lib.images.evaluate, qartsr_lib.backbones; "
        "list(m.METRICS); m.available(m.METRICS); "
        "assert not {'pyiqa', 'timm', 'scipy.signal'} & set(sys.modules), 'slow import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_score_says_what_it_needs_to_be_imported(tmp_path, photograph):
    code = "import sys, qartsr_lib.images.metrics as m; print(m.score(*sys.argv[1:], ['VAE-FD'])['VAE-FD'])"
    words = [sys.executable, "-c", code, *_saved(tmp_path, _noisy(photograph, 0.1), photograph)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "import qartsr_lib.backbones first" in told


# --- the official OSEDiff outputs -------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(shared):
    table = pd.read_csv(shared / "data/RealSR/osediff_reference_metrics.csv", index_col="image")
    assert len(table) == 10
    return shared, table


def _official_scores(official, names) -> pd.DataFrame:
    shared, table = official
    real = shared / "data/RealSR"
    found = {
        image: metrics.score(real / "OSEDiff" / image, real / "HR" / image, names, shared / "weights")
        for image in table.index
    }
    return pd.DataFrame({image: {n: s[n][0] for n in names} for image, s in found.items()}).T.astype(float)


def test_golden_osediff_values(official):
    _, table = official
    found = _official_scores(official, ["PSNR", "SSIM", "NIQE"])
    np.testing.assert_allclose(found["PSNR"], table["PSNR"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["SSIM"], table["SSIM"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["NIQE"], table["NIQE"], rtol=0.01)


@pytest.mark.parametrize("options", [{"test_y_channel": True}, {}], ids=["yiq, pyiqa's default", "rgb"])
def test_golden_fails_with_a_wrong_psnr_colour_space(official, monkeypatch, options):
    _, table = official
    METRICS.names()
    wrong = dataclasses.replace(METRICS.get("PSNR"), build=functools.partial(iqa._build, "psnr", options, ()))
    monkeypatch.setattr(METRICS, "_entries", {**METRICS._entries, "PSNR": wrong})
    found = _official_scores(official, ["PSNR"])
    assert (found["PSNR"] - table["PSNR"]).abs().min() > 0.5


def test_niqe_of_a_flat_image_has_no_value(official, tmp_path):
    shared, _ = official
    flat = torch.full((1, 3, 200, 200), 0.5)
    scores = metrics.score(write_png(tmp_path / "flat.png", flat), None, ["NIQE"], shared / "weights")
    assert scores["NIQE"][0] is None and "degenerate" in scores["NIQE"][1]


def test_niqe_is_worse_for_a_blurred_photograph(official):
    shared, table = official
    image = read_image(shared / "data/RealSR/HR" / table.index[0])
    compute, _ = metrics._load("NIQE", shared / "weights")
    blurred = torch.nn.functional.avg_pool2d(image, 7, 1, 3)
    assert compute(blurred, None) > compute(image, None)


def test_the_features_of_vae_fd_are_those_of_its_version():
    """No key of a cache holds its weights, so that new ones must come with a new version: then change both here."""
    encoder = pretrained_distance("cpu").state_dict()
    assert METRICS.get("VAE-FD").options["version"] == 1
    assert tensors_sha256(encoder) == "75678e5952f8202b328ed3bae4484721e4662968bec77bf71a2aa8d997c9df0a"
