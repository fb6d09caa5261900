"""What a notebook's cell ends with is saved, and shown as it was saved."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from qartsr_lib.base import paths
from qartsr_lib.show.shown import show_figures, show_table, shown_once


def test_a_figure_is_saved_closed_and_shown_with_its_files_name(home):
    open_before = plt.get_fignums()
    (picture,) = show_figures("tiny", "bars", {"RealSR": plt.figure(figsize=(1, 1))})
    content, metadata = picture._repr_png_()
    assert metadata == {"saved": "bars_RealSR.png"}
    assert content == (paths.figures_dir("tiny") / "bars_RealSR.png").read_bytes()
    assert plt.get_fignums() == open_before and len(repr(picture)) < 100, "a log of the run holds no pictures"


def test_a_figure_that_is_not_saved_is_a_picture_too():
    content, metadata = shown_once(plt.figure(figsize=(1, 2)))._repr_png_()
    assert Image.open(io.BytesIO(content)).size[1] > 100 and not metadata["saved"]


def test_a_table_is_shown_with_what_stands_in(home):
    sections = [(name, pd.DataFrame({"backbone": ["embedded"], "PSNR (paper)": ["1.00"]})) for name in "ab"]
    shown = show_table("tiny", "table9", sections, "caption", "note", first=1)._repr_markdown_()
    saved = (paths.figures_dir("tiny") / "table9.md").read_text()
    assert "**a**" in shown and "**b**" not in shown and "### b" in saved
    assert "none of their numbers is OSEDiff's" in shown and shown.endswith("note")
    show_table("tiny", "table8", sections, "caption", save=False)
    assert not (paths.figures_dir("tiny") / "table8.md").exists()
