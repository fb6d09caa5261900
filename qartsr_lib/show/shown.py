"""What a notebook's cell ends with: a figure or table that is saved to figures/<profile>/ and shown."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.show import figures
from qartsr_lib.show import tables as reports
from qartsr_lib.show.gallery import read_index, write_gallery
from qartsr_lib.show.tables import render
from qartsr_lib.show.tables.pictures import outputs_by_row
from qartsr_lib.show.tables.setting import Setting
from qartsr_lib.study.measured import Measured


@dataclass(frozen=True, repr=False)
class Shown:
    """Markdown in a notebook."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True, repr=False)
class Picture:
    """A PNG in a notebook; pages of executed notebooks link the file `saved` where one is named."""

    content: bytes
    saved: str = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return self.content, {"saved": self.saved}


def shown_once(figure: Figure) -> Picture:
    """A figure that is not saved; closed, as pyplot would show it again."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return Picture(stream.getvalue())


def show_figure(profile: str, name: str, figure: Figure) -> Picture:
    """Save figures/<profile>/<name>.png and show it."""
    path = figures.save(figure, profile, name)
    content = path.read_bytes() if path.suffix == ".png" else shown_once(figure).content
    plt.close(figure)
    return Picture(content, path.name)


def show_figures(profile: str, name: str, parts: Mapping[str, Figure]) -> list[Picture]:
    """The same for several, as figures/<profile>/<name>_<part>.png: `display(*show_figures(...))`."""
    return [show_figure(profile, f"{name}_{part}", figure) for part, figure in parts.items()]


#: Figure of the paper -> what it shows, and the side of a crop in inches.
PHOTOGRAPHS = {
    "fig1": (reports.figure1_blocks, 1.7),
    "fig3": (reports.figure3_blocks, 1.5),
    "fig6": (reports.figure6_blocks, 1.2),
}


def show_photographs(
    name: str,
    run: Measured,
    pairs: Sequence[Pair],
    boxes: Mapping[str, Sequence[int]],
    settings: Sequence[Setting],
    bits: Sequence[str],
    save: bool,
) -> list[Picture]:
    """One of PHOTOGRAPHS for each of the settings that gets pictures; nothing without `save`."""
    make, crop = PHOTOGRAPHS[name]
    pictured = [setting for setting in settings if setting.pictured and save]
    blocks = {setting.name: make(run, pairs, boxes, setting, bits) for setting in pictured}
    drawn = {setting: figures.photograph_blocks(found, crop) for setting, found in blocks.items() if found}
    return show_figures(run.profile, name, drawn)


def show_table(
    profile: str,
    name: str,
    sections: Sequence[tuple[str, pd.DataFrame]],
    caption: str,
    note: str = "",
    save: bool = True,
    first: int | None = None,
) -> Shown:
    """Save figures/<profile>/<name>.md, and show the sections.
    Without `save` they are only shown: a part must not replace a table. `first`: show so many sections; None for all.
    """
    if save:
        render.save_table(profile, name, sections, caption, note)
    parts = [f"**{title}**\n\n{render.to_markdown(table)}" for title, table in sections[:first]]
    text = "\n".join([caption, *parts])
    return Shown("\n\n".join(filter(None, [*parts, render.stand_ins(text), note])))


def show_text(profile: str, name: str, text: str) -> Shown:
    """Save figures/<profile>/<name>.md and show it."""
    render.save_text(profile, name, text)
    return Shown(text)


def show_gallery(
    run: Measured, pairs: Sequence[Pair], settings: Sequence[Setting], wanted: Sequence[str], keep: bool, save: bool
) -> pd.DataFrame:
    """Write the gallery of the web page (`gallery.write_gallery`) if `save`, and list its pictures.

    It stays as it is where the run has no sample photographs."""
    if not save or not outputs_by_row(run):
        return pd.DataFrame()
    index = read_index(write_gallery(run, pairs, [setting for setting in settings if setting.pictured], wanted, keep))
    return pd.DataFrame(index["pictures"]).groupby(["photograph", "method"], sort=False).size().unstack(0)
