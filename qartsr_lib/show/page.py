"""The whole study on one page, figures/index.html, and README's tables: from result files alone, nothing computed."""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.base.machine import run_command
from qartsr_lib.show import readme
from qartsr_lib.show.tables import claims, cost, quality
from qartsr_lib.show.tables.render import is_number, place, read_frame, to_html, words
from qartsr_lib.show.tables.setting import cell_title
from qartsr_lib.study import results
from qartsr_lib.study.experiments.claims.ledger import PAPER, STUDY
from qartsr_lib.study.paper import OUTSIDE, paper_table

ASSETS = Path(__file__).resolve().parent / "assets"
#: Profiles in the order in which a reader wants them; the last is for tests and shown only where it is alone.
ORDER = ("study", "tiny", "paper", "smoke")
NAMES = {"original": "original", "bicubic": "input, enlarged bicubically", "FP": "full precision"}
#: A PNG of more bytes holds photographs.
CHART_BYTES = 400_000


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see `run_command` for the exit status."""
    parser = argparse.ArgumentParser(prog="qartsr report", description=__doc__)
    single = "write build/index-single.html instead: one file with all pictures in it, to send or to publish"
    parser.add_argument("--single-file", action="store_true", help=single)
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> None:
    path = write_page(options.single_file)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    # QARTSR_HOME may be a folder of results alone, without READMEs
    if not options.single_file and all(path.is_file() for path in readme.readme_files()):
        print(*(f"{path}: tables written" for path in readme.write()), sep="\n")


def write_page(single_file: bool = False) -> Path:
    """Write figures/index.html, which links the pictures beside it, or build/index-single.html, which holds them.

    Raises:
        QartsrError: there is no result at all, or a file is damaged (it is named).
    """
    found = [name for name in ORDER if any(paths.results_dir(name).glob("*.csv"))]
    names = [name for name in found if name != "smoke"] or found
    if not names:
        raise QartsrError(f"{paths.home() / 'results'}: holds no tables yet; make reproduce writes them")
    runs = Runs()
    picture = _embedded if single_file else _relative
    content = {
        "profiles": names,
        "verdicts": _verdicts(names),
        "tables": [_table(name, names, runs) for name in TABLES],
        "gallery": _gallery(names, picture),
        "figures": _figures(names, picture),
    }
    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["run_href"] = lambda run, profile: runs.href(profile, run)
    text = environment.get_template("page.html.j2").render(content, runs=runs, folder="../figures/" * single_file)
    return write_text(paths.home() / ("build/index-single.html" if single_file else "figures/index.html"), text)


class Runs:
    """Run records, and which of them the page links to."""

    def __init__(self) -> None:
        self.linked: dict[Path, dict[str, Any]] = {}

    def href(self, profile: str, run: str) -> str:
        """The record's place relative to the page; "" where there is none."""
        path = paths.results_dir(profile) / "runs" / f"{run}.json"
        if path not in self.linked:
            if not path.is_file():
                return ""
            self.linked[path] = _json(path, "a run record; restore it from git or make the table again")
        return f"../results/{profile}/runs/{run}.json"

    def made(self) -> dict[str, int]:
        """Git revision, processor, threads and versions -> number of records, most first."""
        counts: Counter[str] = Counter()
        for record in self.linked.values():
            git, machine = record.get("git") or {}, record.get("environment") or {}
            versions = machine.get("versions") or {}
            parts = [git.get("revision", "unknown")[:12] + " with uncommitted changes" * bool(git.get("dirty"))]
            parts += [str(machine["device"])] if "device" in machine else []
            parts += [f"{machine['threads']} thread(s)"] if "threads" in machine else []
            parts += [f"{key} {versions[key]}" for key in ("torch", "pyiqa") if key in versions]
            counts[", ".join(parts)] += 1
        return dict(counts.most_common())


def _json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise QartsrError(f"{path}: is not {what}") from error


def _first(names: Sequence[str], file: str) -> str:
    """The first profile that has results/<profile>/<file>; "" where none has."""
    return next((name for name in names if (paths.results_dir(name) / file).is_file()), "")


def _verdicts(names: Sequence[str]) -> dict[str, Any]:
    """Claims of the first profile that has some; empty where none has."""
    profile = _first(names, "claims.csv")
    if not profile:
        return {}
    ledger = claims.read_ledger(profile)
    groups = []
    for title, asked_by in (("The paper's claims", PAPER), ("Our own questions", STUDY)):
        counts = [(name, claims.KINDS.get(name, "open"), *more) for name, *more in claims.counts(ledger, asked_by)]
        groups += [{"title": title, "counts": counts, "cards": claims.cards(ledger, asked_by)}] if counts else []
    return {"profile": profile, "groups": groups}


def _results_table(sections: Callable, profile: str, name: str) -> tuple[list, list[str]]:
    """Sections and notes of a table by the results contract.

    The paper's data sets come first; sample photographs are left out where there are real data sets.
    """
    frame = results.read_table(profile, name)
    sets = sorted(frame["dataset"].unique(), key=lambda key: key not in set(paper_table(int(name[-1]))["dataset"]))
    chosen = [dataset for dataset in sets if not dataset.startswith("samples")] or sets
    rows = pd.concat([frame[frame["dataset"] == dataset] for dataset in chosen])
    metrics = list(rows.loc[rows["value"].map(is_number), "metric"].unique())
    absent = [metric for metric in rows["metric"].unique() if metric not in metrics]
    left = [dataset for dataset in sets if dataset not in chosen]
    found = sections(rows, metrics)
    notes = [quality.table4_note(found)] if name == "table4" else []
    notes += [f"No values here for {', '.join(absent)}."] if absent else []
    said = {note for text in rows.loc[rows["metric"].isin(metrics), "note"] for note in text.split("; ")}
    notes += [note[0].upper() + note[1:].rstrip(".") + "." for note in sorted(said - {""})]
    return found, notes + [f"{', '.join(left)}: in the whole table." for _ in left[:1]]


def _table2(profile: str, name: str) -> tuple[list, list[str]]:
    frame = read_frame(profile, name, ("rule", "method", "bits", "run_id"))
    paper, honest = cost.paper_rule_table(frame), cost.honest_rule_table(frame)
    titles = ("By the paper's rule, and what it prints", "Counted completely and like with like")
    return list(zip(titles, (paper, honest), strict=True)), []


def _deployment(profile: str, name: str) -> tuple[list, list[str]]:
    frame = read_frame(profile, name, ("dataset", "backbone", "method", "bits", "runtime", "run_id"))
    return [
        (f"{cell_title(backbone, timestep)}, {dataset}: {title}", table)
        for (dataset, backbone, timestep), rows in frame.groupby(["dataset", "backbone", "timestep"], sort=False)
        for title, table in cost.deployment_sections(rows)
    ], []


#: results/<profile>/<name>.csv -> (profile, name) -> (sections, notes).
TABLES = {
    "table1": partial(_results_table, quality.table1_sections),
    "table2": _table2,
    "table3": partial(_results_table, quality.table3_sections),
    "table4": partial(_results_table, quality.table4_sections),
    "deployment": _deployment,
}


def _table(name: str, names: Sequence[str], runs: Runs) -> dict[str, Any]:
    """A table of the first profile that has it, without blocks where none has."""
    profile = _first(names, f"{name}.csv")
    sections, notes = TABLES[name](profile, name) if profile else ([], [])
    blocks = [(heading, to_html(table, partial(runs.href, profile))) for heading, table in sections]
    whole = f"{profile}/{name}.md" if (paths.figures_dir(profile) / f"{name}.md").is_file() else ""
    return {"name": name, "profile": profile, "words": words(name), "blocks": blocks, "notes": notes, "whole": whole}


def _gallery(names: Sequence[str], picture: Callable[[Path], str]) -> dict[str, Any]:
    """What the sliders show: of the first profile with a gallery, photographs, settings, and the pictures of both.

    Raises:
        QartsrError: an index that is damaged, or names a file that is not there.
    """
    profile = next((name for name in names if (paths.figures_dir(name) / "gallery/index.json").is_file()), "")
    if not profile:
        return {}
    folder = paths.figures_dir(profile) / "gallery"
    index = _json(folder / "index.json", "a gallery's index; run notebook 05 again")
    try:
        files = {item["file"]: picture(folder / item["file"]) for item in index["pictures"] if item["file"]}
        places = {file: number for number, file in enumerate(files)}
        pictures = {
            setting["name"]: {
                photograph["id"]: [
                    _entry(item, setting, places)
                    for item in index["pictures"]
                    if item["photograph"] == photograph["id"] and _belongs(item, setting)
                ]
                for photograph in index["photographs"]
            }
            for setting in index["settings"]
        }
        settings = [{"name": setting["name"], "title": setting["title"]} for setting in index["settings"]]
        data = {"photographs": index["photographs"], "settings": settings, "pictures": pictures}
        data["files"] = list(files.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise QartsrError(f"{folder / 'index.json'}: is not a gallery's index; run notebook 05 again") from error
    return {"profile": profile, "data": data}


def _belongs(item: Mapping[str, Any], setting: Mapping[str, Any]) -> bool:
    """Whether the picture is of one of the setting's models; original, bicubic and outside systems are everywhere."""
    model = (setting["backbone"], setting["timesteps"].get(item["method"]))
    return item["backbone"] in ("", OUTSIDE) or (item["backbone"], item["timestep"]) == model


def _entry(item: Mapping[str, Any], setting: Mapping[str, Any], places: Mapping[str, int]) -> tuple[str, str, int]:
    """(label, PSNR, place among the files or -1) of a picture."""
    name = NAMES.get(item["method"], f"{item['method']} {item['bits']}")
    differ = len(set(setting["timesteps"].values())) > 1 and item["backbone"] == setting["backbone"]
    psnr = "" if item["psnr_y"] is None else f"{item['psnr_y']:.2f} dB"
    return name + (f", T = {item['timestep']}" if differ else ""), psnr, places.get(item["file"], -1)


def _figures(names: Sequence[str], picture: Callable[[Path], str]) -> list[dict[str, Any]]:
    """The figures of all profiles in the order of the captions; one that several have is the first profile's."""
    found: dict[str, tuple[str, Path]] = {}
    for profile in names:
        for path in sorted([*paths.figures_dir(profile).glob("*.png"), *paths.figures_dir(profile).glob("*.webp")]):
            found.setdefault(path.stem, (profile, path))
    figures = []
    for name in sorted(found, key=lambda name: (place(name), name)):
        profile, path = found[name]
        try:
            with Image.open(path) as image:
                size = image.size
        except OSError as error:
            raise QartsrError(f"{path}: not a readable figure; restore it from git or make it again") from error
        figures.append({"profile": profile, "words": words(name), "src": picture(path), "size": size})
    return figures


def _relative(path: Path) -> str:
    """A picture's place beside the page.

    Raises:
        QartsrError: it is not there.
    """
    if not path.is_file():
        raise QartsrError(f"{path}: the gallery's index names it; run notebook 05 again")
    return path.relative_to(paths.home() / "figures").as_posix()


def _embedded(path: Path) -> str:
    """A picture as a data URI; charts as lossless WebP, a PNG of photographs with a loss that is not seen."""
    _relative(path)
    content = path.read_bytes()
    if path.suffix == ".png":
        options = {"lossless": True, "quality": 40, "method": 2} if len(content) <= CHART_BYTES else {"quality": 90}
        stream = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(stream, "WEBP", **options)
        content = stream.getvalue()
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"


if __name__ == "__main__":
    sys.exit(main())
