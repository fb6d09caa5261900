"""The gallery's pictures as data for the sliders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.show.gallery_index import BICUBIC, INDEX, ORIGINAL, damaged, gallery_dir, read_index
from qartsr_lib.show.webpage.pictures import data_uri
from qartsr_lib.show.webpage.sources import Records, first_with
from qartsr_lib.study.paper import OUTSIDE

NAMES = {ORIGINAL: "original", BICUBIC: "input, enlarged bicubically", "FP": "full precision"}


@dataclass(frozen=True)
class GalleryView:
    """What the page embeds.

    Attributes:
        data: {"photographs": [{"id", "licence"}], "settings": [{"name", "title"}], "pictures":
            {setting: {photograph: [{"label", "psnr", "record", "file"}]}}, "files": {file: data URI}}.
    """

    profile: str
    data: dict[str, Any]


def read_gallery(profiles: Sequence[str], records: Records) -> GalleryView | None:
    """The gallery of the first profile that has one; None where none has.

    Raises:
        QartsrError: an index that is damaged, or names a file that is not there.
    """
    profile = first_with(profiles, f"gallery/{INDEX}", figures=True)
    if profile is None:
        return None
    folder = gallery_dir(profile)
    try:
        index = read_index(folder / INDEX)
        pictures = {
            setting["name"]: {
                photograph["id"]: [
                    _entry(picture, setting, profile, records)
                    for picture in index["pictures"]
                    if picture["photograph"] == photograph["id"] and _belongs(picture, setting)
                ]
                for photograph in index["photographs"]
            }
            for setting in index["settings"]
        }
        files = {
            picture["file"]: data_uri(folder / picture["file"]) for picture in index["pictures"] if picture["file"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(folder / INDEX) from error
    except FileNotFoundError as error:
        raise QartsrError(f"{error.filename}: the gallery's index names it; run notebook 05 again") from error
    chosen = [{"name": setting["name"], "title": setting["title"]} for setting in index["settings"]]
    data = {"photographs": index["photographs"], "settings": chosen, "pictures": pictures, "files": files}
    return GalleryView(profile, data)


def _belongs(picture: dict[str, Any], setting: dict[str, Any]) -> bool:
    """Whether the picture is of one of the setting's models; original and bicubic are in every setting."""
    if not picture["backbone"]:
        return True
    outside = picture["backbone"] == OUTSIDE
    same = picture["backbone"] == setting["backbone"]
    return outside or same and setting["timesteps"].get(picture["method"]) == picture["timestep"]


def _entry(picture: dict[str, Any], setting: dict[str, Any], profile: str, records: Records) -> dict[str, str]:
    name = NAMES.get(picture["method"], f"{picture['method']} {picture['bits']}")
    differ = len(set(setting["timesteps"].values())) > 1 and picture["backbone"] == setting["backbone"]
    psnr = picture["psnr_y"]
    return {
        "label": name + (f", T = {picture['timestep']}" if differ else ""),
        "psnr": "" if psnr is None else f"{psnr:.2f} dB",
        "record": records.key(profile, picture["run_id"]),
        "file": picture["file"],
    }
