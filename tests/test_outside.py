"""Outside systems: a folder of outputs becomes rows like ours, or one clear line says what is wrong."""

import shutil

import numpy as np
import pytest
from PIL import Image
from study_fakes import PROFILE, fake_parts, sweep

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import sha256
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.show import tables as reports
from qartsr_lib.study import outside, results


@pytest.fixture
def folder(home):
    """Outputs for all photographs, also those that the run leaves out."""
    target = home / "outputs"
    target.mkdir()
    for pair in DATASETS.get("samples").pairs():
        image = Image.open(pair.hr).convert("RGB")
        Image.fromarray(255 - np.asarray(image) // 2).save(target / f"{pair.id}_LR4.png")
    return target


def find(folders, name="DiffBIR"):
    return outside.find_outputs({name: folders}, PROFILE)


def test_rows_have_intervals_notes_and_the_files_hashes(folder):
    systems = find(str(folder))
    run = outside.add_rows(sweep(), systems, PROFILE, parts=fake_parts())
    row = run.table[(run.table["method"] == "DiffBIR") & (run.table["metric"] == "PSNR")].iloc[0]
    assert (row["backbone"], row["timestep"], row["bits"]) == ("outside", 0, "W32A32")
    assert row["n_images"] == 3 and row["ci_low"] < row["value"] < row["ci_high"]
    assert row["note"] == "outside system; interval over fewer than ten photographs"
    missing = run.table[(run.table["method"] == "DiffBIR") & (run.table["metric"] == "ABSENT")].iloc[0]
    assert np.isnan(missing["value"]) and missing["note"] == "outside system; weights not found"
    record = next(record for record in run.records if record["run_id"] == row["run_id"])
    astronaut = folder / "astronaut_LR4.png"
    assert record["outputs"]["astronaut_LR4.png"] == sha256(astronaut)
    assert len(record["outputs"]) == 3 and str(folder) not in str(record)
    assert run.images[systems[0].experiment, "astronaut"] == astronaut


def test_written_with_the_others_and_read_again(folder):
    run = outside.add_rows(sweep(), find({"samples": folder}), PROFILE, parts=fake_parts())
    run.write("table3")
    table = results.read_table("smoke", "table3")
    assert set(table["method"]) == {"FP", "MaxMin", "DiffBIR"}
    assert set(table.loc[table["method"] == "DiffBIR", "timestep"]) == {0}
    values = results.read_per_image("smoke", "table3").query("method == 'DiffBIR'")
    assert len(values) == 3
    again = outside.add_rows(sweep(), find({"samples": folder}), PROFILE, parts=fake_parts())
    assert again.table["run_id"].tolist() == run.table["run_id"].tolist()


def test_another_image_is_another_run(folder):
    first = outside.add_rows(sweep(), find(folder), PROFILE, parts=fake_parts())
    size = Image.open(folder / "astronaut_LR4.png").size
    Image.new("RGB", size, (9, 9, 9)).save(folder / "astronaut_LR4.png")
    second = outside.add_rows(sweep(), find(folder), PROFILE, parts=fake_parts())
    rows = [run.table[run.table["method"] == "DiffBIR"].iloc[0] for run in (first, second)]
    assert rows[0]["run_id"] != rows[1]["run_id"] and rows[0]["value"] != rows[1]["value"]


def test_a_folder_per_data_set_or_subfolders(folder):
    (folder.parent / "nested").mkdir()
    shutil.copytree(folder, folder.parent / "nested" / "samples")
    assert find(folder.parent / "nested")[0].files["astronaut"].parent.name == "samples"
    assert find({"samples": folder})[0].files["astronaut"].parent.name == "outputs"
    assert outside.find_outputs({}, PROFILE) == []


def test_other_data_sets_of_the_system_are_left_out_and_named(folder, capsys):
    assert find({"RealSR": folder}) == []
    assert "RealSR is not part of this run" in capsys.readouterr().out


def _no_folder(folder):
    return folder / "absent", "absent: no such folder"


def _image_missing(folder):
    (folder / "astronaut_LR4.png").unlink()
    return folder, r"has no image for astronaut.png \(1 missing\)"


def _wrong_size(folder):
    Image.new("RGB", (64, 48)).save(folder / "astronaut_LR4.png")
    return folder, "astronaut_LR4.png is 64x48 and .*astronaut.png is 320x320"


def _damaged(folder):
    (folder / "astronaut_LR4.png").write_bytes(b"no image")
    return folder, "astronaut_LR4.png: not a readable image"


def _stray(folder):
    (folder / "astronaut_LR4.png").rename(folder / "other.png")
    return folder, r"has no image for astronaut.png \(1 missing\).*left out: other.png \(no reference has its name\)"


def _unknown_data_set(folder):
    return {"sample": folder}, "unknown data set 'sample'; did you mean 'samples'"


def _no_path(folder):
    return 3, "3 is no folder"


def _no_path_of_a_data_set(folder):
    return {"samples": None}, "None is no folder"


BROKEN = [_no_folder, _image_missing, _wrong_size, _damaged, _stray, _unknown_data_set, _no_path]
BROKEN += [_no_path_of_a_data_set]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda function: function.__name__)
def test_bad_input_is_one_line_that_names_option_and_file(folder, broken):
    folders, message = broken(folder)
    with pytest.raises(QartsrError, match=message) as caught:
        find(folders)
    assert str(caught.value).startswith("outside system 'DiffBIR': ") and "\n" not in str(caught.value)


def test_the_name_of_a_method_is_taken(folder):
    with pytest.raises(QartsrError, match="outside system 'QArtSR': name the system otherwise"):
        find(folder, name="QArtSR")


def test_outside_systems_have_no_rank(folder):
    run = outside.add_rows(sweep(), find(folder), PROFILE, parts=fake_parts())
    assert list(reports.ranks(run.table).columns) == ["MaxMin"]
