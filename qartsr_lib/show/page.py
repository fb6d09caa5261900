"""The whole study on one page, figures/index.html, and README's tables: from result files alone, nothing computed."""

from __future__ import annotations

import argparse
import base64
import io
import json
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
from qartsr_lib.show.tables.render import place, read_frame, to_html, words
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
MACHINE = {"device": "{}", "threads": "{} thread(s)"}


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
    picture = partial(_picture, embed=single_file)
    content = {
        "profiles": names,
        "verdicts": _verdicts(names),
        "tables": [_table(name, names, runs) for name in TABLES],
        "gallery": _gallery(names, picture),
        "figures": _figures(names, picture),
    }
    blocks = {"trim_blocks": True, "lstrip_blocks": True}  # no lines and indentation of the template's own
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, **blocks)
    text = environment.get_template("page.html.j2").render(content, runs=runs, folder="../figures/" * single_file)
    return write_text(paths.home() / ("build/index-single.html" if single_file else "figures/index.html"), text)


class Runs:
    """Run records, and which of them the page links to."""

    def __init__(self) -> None:
        self.linked: dict[str, dict[str, Any]] = {}

    def href(self, profile: str, run: str) -> str:
        """The record's place relative to the page; "" where there is none."""
        path, href = paths.results_dir(profile) / "runs" / f"{run}.json", f"../results/{profile}/runs/{run}.json"
        if href not in self.linked:
            if not path.is_file():
                return ""
            self.linked[href] = _json(path, "a run record; restore it from git or make the table again")
        return href

    def links(self, profile: str, ids: str) -> list[str]:
        """Places of the records that there are, of run ids between blanks."""
        return list(filter(None, (self.href(profile, run) for run in ids.split())))

    def made(self) -> list[tuple[str, int]]:
        """(git revision, processor, threads and versions; number of records), most first."""
        return Counter(map(_origin, self.linked.values())).most_common()


def _origin(record: Mapping[str, Any]) -> str:
    git, machine = record.get("git") or {}, record.get("environment") or {}
    versions = machine.get("versions") or {}
    parts = [(git.get("revision") or "unknown")[:12] + " with uncommitted changes" * bool(git.get("dirty"))]
    parts += [text.format(machine[key]) for key, text in MACHINE.items() if key in machine]
    return ", ".join(parts + [f"{key} {versions[key]}" for key in ("torch", "pyiqa") if key in versions])


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
    titles = {"The paper's claims": PAPER, "Our own questions": STUDY}
    groups = [(title, claims.counts(ledger, asked), claims.cards(ledger, asked)) for title, asked in titles.items()]
    return {"profile": profile, "kinds": claims.KINDS, "groups": [group for group in groups if group[2]]}


def _results_table(sections: Callable, profile: str, name: str) -> tuple[list, list[str]]:
    """Sections and notes of a table by the results contract.

    The paper's data sets come first; sample photographs are left out where there are real data sets.
    """
    frame = results.read_table(profile, name)
    sets = sorted(frame["dataset"].unique(), key=lambda key: key not in set(paper_table(int(name[-1]))["dataset"]))
    chosen = [dataset for dataset in sets if not dataset.startswith("samples")] or sets
    rows = pd.concat([frame[frame["dataset"] == dataset] for dataset in chosen])
    metrics = quality.with_values(rows, rows["metric"].unique())
    left = [dataset for dataset in sets if dataset not in chosen]
    found = sections(rows, metrics)
    notes = [quality.table4_note(found)] if name == "table4" else []
    notes += [quality.absent_note(rows)]
    said = {note for text in rows.loc[rows["metric"].isin(metrics), "note"] for note in text.split("; ")}
    notes += [note[0].upper() + note[1:].rstrip(".") + "." for note in sorted(said - {""})]
    notes += [f"{', '.join(left)}: in the whole table." for _ in left[:1]]
    return found, [note for note in notes if note]


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
        settings = [
            {"title": setting["title"], "pictures": _entries(index, setting, places)} for setting in index["settings"]
        ]
        data = {"photographs": index["photographs"], "settings": settings, "files": list(files.values())}
    except (KeyError, TypeError, AttributeError) as error:
        raise QartsrError(f"{folder / 'index.json'}: is not a gallery's index; run notebook 05 again") from error
    return {"profile": profile, "data": data}


def _entries(index: Mapping, setting: Mapping, places: Mapping[str, int]) -> dict[str, list[tuple[str, str, int]]]:
    """Photograph -> (label, PSNR, place among the files or -1) of each picture of the setting's models;
    original, bicubic and outside systems are in every setting."""
    found: dict[str, list] = {photograph["id"]: [] for photograph in index["photographs"]}
    for item in index["pictures"]:
        own = item["backbone"] not in ("", OUTSIDE)
        model = (setting["backbone"], setting["timesteps"].get(item["method"]))
        if own and (item["backbone"], item["timestep"]) != model:
            continue
        differ = own and len(set(setting["timesteps"].values())) > 1
        label = NAMES.get(item["method"], f"{item['method']} {item['bits']}") + f", T = {item['timestep']}" * differ
        psnr = "" if item["psnr_y"] is None else f"{item['psnr_y']:.2f} dB"
        found[item["photograph"]].append((label, psnr, places.get(item["file"], -1)))
    return found


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


def _picture(path: Path, embed: bool) -> str:
    """A picture's place beside the page; with `embed` a data URI: charts lossless, a PNG of photographs not quite.

    Raises:
        QartsrError: it is not there.
    """
    if not path.is_file():
        raise QartsrError(f"{path}: the gallery's index names it; run notebook 05 again")
    if not embed:
        return path.relative_to(paths.home() / "figures").as_posix()
    content = path.read_bytes()
    if path.suffix == ".png":
        options = {"lossless": True, "quality": 40, "method": 2} if len(content) <= CHART_BYTES else {"quality": 90}
        stream = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(stream, "WEBP", **options)
        content = stream.getvalue()
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
