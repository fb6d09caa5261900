"""Profiles and paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images import metrics
from qartsr_lib.study import evaluator
from qartsr_lib.study.profiles import PROFILES, NotReady, get_profile, missing_metric_weights, missing_weights


def test_the_four_profiles():
    assert list(PROFILES) == ["smoke", "tiny", "study", "paper"]
    tiny = get_profile("tiny")
    assert (tiny.backbones, tiny.timesteps) == (("embedded", "embedded-scaled"), (1000, 500, 1))
    assert tiny.bits == ("W8A8", "W6A6", "W4A4", "W3A3", "W2A2")
    assert not tiny.downloads, "tiny regenerates the same tables on every machine"


def test_unknown_profile_lists_the_known_ones():
    with pytest.raises(QartsrError, match="smoke, tiny, study, paper"):
        get_profile("huge")


def test_overrides():
    profile = get_profile("tiny", max_images=2, bits=["W4A4"], backbones="embedded", metrics=None)
    assert (profile.max_images, profile.bits, profile.backbones) == (2, ("W4A4",), ("embedded",))
    assert profile.metrics == PROFILES["tiny"].metrics
    with pytest.raises(QartsrError, match="no setting 'bit'"):
        get_profile("tiny", bit=["W4A4"])


def test_metric_names_are_registered():
    for profile in PROFILES.values():
        for name in profile.metrics:
            assert name in metrics.METRICS


def test_missing_weights_only_where_weights_are_needed(home):
    for name in ("smoke", "tiny", "study"):
        assert missing_weights(get_profile(name)) == []


def test_missing_weights_name_place_and_what_they_block(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_WEIGHTS", str(tmp_path))
    profile = get_profile("paper", metrics=("PSNR",))
    missing = missing_weights(profile)
    assert [row[0] for row in missing] == [file.name for file in profile.weights]
    assert all(place.is_relative_to(tmp_path) and blocks for _, place, blocks in missing)
    place = missing[-1][1]
    place.parent.mkdir(parents=True)
    place.touch()
    assert len(missing_weights(profile)) == len(missing) - 1


def test_missing_metric_weights_are_listed_once_per_file(monkeypatch):
    monkeypatch.setattr("qartsr_lib.images.metrics.weights.locate", lambda file, folder: None)
    monkeypatch.setattr("qartsr_lib.images.metrics.weights.reachable", lambda: False)
    rows = missing_metric_weights(get_profile("paper", metrics=("PSNR", "MUSIQ")))
    assert [blocks for _, _, blocks in rows] == ["the metric MUSIQ"]
    assert missing_metric_weights(get_profile("study")) == []


def test_home_is_the_checkout_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("QARTSR_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (paths.home() / "qartsr_lib").is_dir()
    assert paths.results_dir("tiny") == paths.home() / "results" / "tiny"


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    assert paths.data_root() is None
    assert paths.data_root("") is None
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert paths.data_root() == tmp_path.resolve()
    with pytest.raises(QartsrError, match="no such folder"):
        paths.data_root(Path(tmp_path, "absent"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"seeds": []}, "setting seeds of profile 'tiny' is empty; name at least one"),
        ({"backbones": []}, "backbones of profile 'tiny' is empty"),
        ({"finetune_bits": ["W4A4", "W9A9"]}, "profile 'tiny': bits 'W9A9': each width must be 2 to 8"),
        ({"bits": ["4 bits"]}, "bits of profile 'tiny': bits '4 bits': write weights and activations as in W4A4"),
        ({"bits": ["W32A32"]}, "names W32A32, full precision, which every table has; leave it out"),
        ({"deployed": [["qartsr", "W4A4"], ["qartsr", "w4a4"]]}, r"names \('qartsr', 'W4A4'\) twice"),
        ({"seeds": [0, -1]}, "seeds of profile 'tiny' names -1; choose whole numbers of at least 0"),
        ({"calibration_size": 0}, "setting calibration_size of profile 'tiny' is 0 and must be at least 1"),
        ({"timing_rounds": 0}, "timing_rounds of profile 'tiny' is 0 and must be at least 1"),
        ({"component_steps": -1}, "component_steps of profile 'tiny' is -1 and must be at least 0"),
        ({"max_images": 0}, "max_images of profile 'tiny' is 0 and must be at least 1"),
        ({"seeds": [0, 1, 0]}, "seeds of profile 'tiny' names 0 twice; name it once"),
        ({"methods": ["lsq", "lsq"]}, "methods of profile 'tiny' names 'lsq' twice"),
        ({"finetune_models": [["embedded", 1], ["embedded", 1]]}, r"names \('embedded', 1\) twice"),
        ({"outside": "outputs"}, "outside of profile 'tiny' is 'outputs' and must be a mapping of names to folders"),
        ({"outside": ["outputs"]}, "must be a mapping of names to folders"),
        ({"setting": [["eightbit", "first-last"]]}, "names 'eightbit'; did you mean 'eight_bit'"),
    ],
)
def test_settings_that_no_notebook_can_use_are_told(overrides, told):
    with pytest.raises(QartsrError, match=told):
        get_profile("tiny", **overrides)


def test_bits_are_named_as_tables_name_them():
    profile = get_profile("tiny", bits="w4a4", component_bits=["W04a4"], deployed=[["lsq", "w3a3"]])
    assert (profile.bits, profile.component_bits, profile.deployed) == (("W4A4",), ("W4A4",), (("lsq", "W3A3"),))


def test_the_fair_model_is_the_last_of_table_3():
    assert get_profile("study").fair_model == ("embedded-scaled", 1)
    with pytest.raises(NotReady, match="finetune_models is empty, or the weights of none of them are here"):
        assert get_profile("tiny", finetune_models=[]).fair_model


def test_lists_that_may_be_empty():
    assert get_profile("tiny", finetune_models=[], networks=[], budget_curve=[]).finetune_models == ()
    assert get_profile("tiny", setting=[["eight_bit", "first-last"]]).setting == (("eight_bit", "first-last"),)


@pytest.mark.parametrize(("name", "value"), [("max_images", 3), ("max_side", 64), ("metrics", ["PSNR"])])
def test_notebooks_of_tables_3_and_4_tell_which_setting_they_read(name, value):
    profile = get_profile("tiny", **{name: value})
    with pytest.raises(QartsrError, match=f"reads finetune_{name.removeprefix('max_')}, not {name}; give it that"):
        profile.for_finetuning()
    own = {f"finetune_{name.removeprefix('max_')}": value}
    shown = get_profile("tiny", **own).for_finetuning()
    assert getattr(shown, name) == (tuple(value) if name == "metrics" else value) and shown.for_finetuning() == shown


@pytest.mark.parametrize(
    ("given", "bits", "read"),
    [
        ({"bits": ["W4A4"]}, "ablation_bits", "ablation_bits, not bits"),
        ({"finetune_bits": ["W3A3"]}, "ablation_bits", "ablation_bits, not finetune_bits"),
        ({"bits": ["W3A3"]}, "finetune_bits", "finetune_bits, not bits"),
        ({"timesteps": [1]}, "finetune_bits", "finetune_models, not timesteps"),
    ],
)
def test_bits_and_timesteps_that_a_notebook_does_not_read_are_refused(given, bits, read):
    with pytest.raises(QartsrError, match=f"this notebook reads {read}; give it that"):
        get_profile("study", **given).for_finetuning(bits)
    for accepted in ({"ablation_bits": ["W4A4"]}, {"finetune_models": [["embedded", 1]], "timesteps": [1]}):
        get_profile("study", **accepted).for_finetuning(bits)


def test_a_profile_that_may_fetch_weights_does_after_one_that_may_not(monkeypatch):
    """As in a kernel or a cluster's worker that lives on; what the user says stays."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(evaluator, "_kept_offline", False)
    for name, offline in (("study", None), ("tiny", "1"), ("smoke", "1"), ("study", None), ("tiny", "1")):
        evaluator.default_parts(get_profile(name))
        assert os.environ.get("HF_HUB_OFFLINE") == offline, name
    monkeypatch.setattr(evaluator, "_kept_offline", False)
    evaluator.default_parts(get_profile("study"))
    assert os.environ["HF_HUB_OFFLINE"] == "1", "the user's"
