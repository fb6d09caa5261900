"""Parameters that papermill passes to a notebook: what it injects, by each of its ways, against what is declared."""

from __future__ import annotations

import base64

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook
from papermill.cli import papermill as command_line
from papermill.exceptions import PapermillExecutionError

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study.parameters import check_parameters
from qartsr_lib.study.runner import KERNEL, kernel

DECLARED = """PROFILE = "tiny"  # smoke, tiny, study or paper
DATA_ROOT = ""
WORKERS = ""
BITS = None
METHODS = ["maxmin"]
KEEP = False
IMAGES = 4
CROPS = {"chelsea": [1, 2, 3]}
OVERRIDES = {}
"""


def notebook(path, *cells):
    first = new_code_cell(DECLARED, metadata={"tags": ["parameters"]})
    nb = new_notebook(cells=[first, *(new_code_cell(cell) for cell in cells)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, path)
    return str(path)


@pytest.fixture
def checked(tmp_path):
    """checked(arguments of the command papermill): check_parameters in the cell behind the injected one."""

    def check(*arguments: str) -> None:
        out = tmp_path / "out.ipynb"
        call = [notebook(tmp_path / "in.ipynb"), str(out), "--prepare-only", *arguments]
        done = CliRunner().invoke(command_line, call, catch_exceptions=False)
        assert done.exit_code == 0
        names: dict = {"In": [""]}
        for cell in nbformat.read(out, as_version=4).cells:
            names["In"].append(cell.source)
            exec(cell.source, names)
        check_parameters(names)

    return check


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-p", "PROFILE", "smoke", "-p", "KEEP", "True", "-p", "IMAGES", "2"],
        ["-p", "WORKERS", "2", "-p", "DATA_ROOT", "None", "-p", "BITS", "W4A4"],
        ["-y", "{METHODS: [lsq], CROPS: {china: [1]}, KEEP: yes, BITS: null}"],
        ["-b", encoded("METHODS: [lsq]"), "--inject-paths"],
        ["-y", "BITS: [.nan]"],
    ],
)
def test_right_parameters_pass(checked, arguments):
    checked(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "PROFIL", "smoke"], "unknown parameter PROFIL; did you mean 'PROFILE'?"),
        (["-r", "profile", "smoke"], "unknown parameter profile; did you mean 'PROFILE'?"),
        (["-y", "METHOD: [lsq]"], "unknown parameter METHOD; did you mean 'METHODS'?"),
        (["-b", encoded("WORKER: 2")], "unknown parameter WORKER; did you mean 'WORKERS'?"),
        (
            ["-p", "SEEDS", "0", "-p", "KEPT", "1"],
            "unknown parameter SEEDS; it is a setting of the profile: -y 'OVERRIDES: {seeds: ...}'; "
            "unknown parameter KEPT; did you mean 'KEEP'?",
        ),
        (["-p", "COLOUR", "red"], "unknown parameter COLOUR; this notebook has PROFILE, DATA_ROOT, WORKERS, BITS, "),
        (["-y", "OVERRIDES: {bit: [W4A4]}"], "profile 'tiny' has no setting 'bit'; did you mean 'bits'"),
        (["-y", "OVERRIDES: {max_images: '3'}"], "setting max_images of profile 'tiny' is '3' and must be a whole num"),
        (["-y", "OVERRIDES: {seeds: ['1']}"], "setting seeds of profile 'tiny' is ['1'] and must be a list of whole"),
        (["-y", "OVERRIDES: {bits: [4]}"], "setting bits of profile 'tiny' is [4] and must be a list of texts"),
        (["-y", "OVERRIDES: {setting: {a: b}}"], "setting setting of profile 'tiny' is {'a': 'b'} and must be a list"),
        (["-p", "OVERRIDES", "{bits: [W4A4]}"], "parameter OVERRIDES is the text '{bits: [W4A4]}'; write -y 'OVERR"),
        (["-p", "PROFILE", "smokey"], "unknown profile 'smokey'; choose one of smoke, tiny, study, paper"),
        (["-y", "PROFILE: [smoke]"], "parameter PROFILE is ['smoke'] and must be a text"),
        (["-p", "KEEP", "false"], "parameter KEEP is the text 'false'; write -y 'KEEP: false'"),
        (["-p", "KEEP", "1"], "parameter KEEP is 1 and must be true or false, such as -y 'KEEP: false'"),
        (["-p", "BITS", "[W4A4, W2A2]"], "parameter BITS is the text '[W4A4, W2A2]'; write -y 'BITS: [W4A4, W2A2]'"),
        (["-p", "BITS", "none"], "parameter BITS is the text 'none'; write -y 'BITS: null'"),
        (
            ["-p", "METHODS", "lsq"],
            "parameter METHODS is 'lsq' and must be a list, such as -y 'METHODS: [\"maxmin\"]'",
        ),
        (["-p", "IMAGES", "2.5"], "parameter IMAGES is 2.5 and must be a whole number, such as -y 'IMAGES: 4'"),
        (["-p", "CROPS", "chelsea"], "parameter CROPS is 'chelsea' and must be a mapping, such as -y 'CROPS: {\"che"),
    ],
)
def test_wrong_ones_stop_the_notebook_with_one_line(checked, arguments, message):
    with pytest.raises(QartsrError) as caught:
        checked(*arguments)
    assert str(caught.value).startswith(message) and len(str(caught.value).splitlines()) == 1


def test_a_file_of_parameters_is_checked(checked, tmp_path):
    (tmp_path / "parameters.yaml").write_text("PROFILE: smoke\nIMAGE: 2\n")
    with pytest.raises(QartsrError, match="unknown parameter IMAGE; did you mean 'IMAGES'"):
        checked("-f", str(tmp_path / "parameters.yaml"))


@pytest.mark.parametrize(
    "history",
    [
        ["", DECLARED],
        ["", "PROFILE = 'smoke'\nMINE = 1"],
        ["", "%matplotlib inline\nx = = 2", DECLARED.replace("KEEP", "kept")],
        ["", "# Parameters\nPROFILE = 'smoke'\n"],
        ["", DECLARED, "# Parameters\nPROFILE = 'smoke'\n", "table = 1", "# Parameters\nIMAGES = 3\n"],
    ],
    ids=[
        "all cells",
        "edited",
        "other cells first",
        "the injected cell alone",
        "the injected cell edited and run again",
    ],
)
def test_in_jupyterlab_whatever_was_run_before_passes(history):
    check_parameters({"PROFILE": "smoke", "IMAGES": 3, "In": history})


def test_a_notebook_made_into_a_script_passes():
    profile = check_parameters({"PROFILE": "smoke", "OVERRIDES": {"finetune_models": [["embedded", 1000]], "seeds": 3}})
    assert (profile.name, profile.finetune_models, profile.seeds) == ("smoke", (("embedded", 1000),), (3,))


def test_in_a_kernel_the_history_holds_both_cells(tmp_path):
    """papermill's own kernel: the cell that calls the check fails, in one line, and the next is not run."""
    call = "from qartsr_lib.study.parameters import check_parameters\n\ncheck_parameters(globals())"
    source, out = notebook(tmp_path / "in.ipynb", call, "behind = 1"), str(tmp_path / "out.ipynb")
    with kernel(), pytest.raises(PapermillExecutionError) as caught:
        papermill.execute_notebook(
            source, out, {"PROFIL": "smoke"}, kernel_name=KERNEL, progress_bar=False, cwd=str(tmp_path)
        )
    line = "unknown parameter PROFIL; did you mean 'PROFILE'?"
    assert (caught.value.exec_count, caught.value.evalue) == (3, line)
    assert caught.value.traceback == [f"QartsrError: {line}"]
    assert nbformat.read(out, as_version=4).cells[-1].execution_count is None
