"""Gather the sections and render them into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.show.webpage import plain_tables
from qartsr_lib.show.webpage.gallery_view import read_gallery
from qartsr_lib.show.webpage.pictures import read_figures
from qartsr_lib.show.webpage.results_tables import KINDS, profile_blocks
from qartsr_lib.show.webpage.sources import Records, profiles
from qartsr_lib.show.webpage.verdicts import read_verdicts

ASSETS = Path(__file__).resolve().parent / "assets"


def write_page() -> Path:
    """Write figures/index.html from what lies under results/ and figures/.

    Raises:
        QartsrError: there is no result at all, or a file is damaged (it is named).
    """
    found = profiles()
    if not found:
        raise QartsrError(f"{paths.home() / 'results'}: holds no tables yet; make reproduce writes them")
    return write_text(paths.home() / "figures" / "index.html", render(found))


def render(names: list[str]) -> str:
    """The page as text, of the profiles given, the most telling first."""
    records = Records()
    content: dict[str, Any] = {
        "profiles": names,
        "verdicts": read_verdicts(names, records),
        "tables": [
            (kind, _per_profile(names, lambda name, kind=kind: profile_blocks(kind, name, records))) for kind in KINDS
        ],
        # Table 2 counts one network, whatever the profile.
        "table2": _per_profile(names, lambda name: plain_tables.table2(name, records))[:1],
        "deployment": _per_profile(names, lambda name: plain_tables.deployment(name, records)),
        "gallery": read_gallery(names, records),
        "figures": read_figures(names),
    }
    made = {"facts": records.facts(), "revisions": records.revisions(), "environments": records.environments()}
    assets = {name: (ASSETS / name).read_text(encoding="utf-8") for name in ("style.css", "page.js")}
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["href"] = Records.href
    return environment.get_template("index.html.j2").render(**content, **made, assets=assets)


def _per_profile(names: list[str], read: Any) -> list[tuple[str, Any]]:
    """(profile, what it has), without the profiles that have nothing."""
    return [(name, part) for name in names if (part := read(name))]
