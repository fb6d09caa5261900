"""figures/index.html: every section, each left out alone, escaping, links that exist, nothing loaded from outside."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import page_fakes
import pytest

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.show.page import main, write_page
from qartsr_lib.study import results

VOID = {"meta", "link", "br", "img", "input"}
#: Elements whose end tags HTML lets out.
OPEN = {"tr", "td", "th", "thead", "tbody", "li"}


class Page(HTMLParser):
    """Attributes of every element, text by section, and whether each element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID | OPEN:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, text):
        if not {"script", "style"} & set(self.open):
            self.texts.append(text)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def attributes(self, tag, name):
        return [attributes[name] for found, attributes in self.elements if found == tag and name in attributes]


@pytest.fixture
def made(home) -> Path:
    page_fakes.write_results(home)
    return write_page()


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def bold(text: str) -> list[str]:
    """Numbers that are marked as the best."""
    return re.findall(r"<td><b>([^<]*)<", text)


def third(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text[text.index('id="table3"') : text.index('id="table4"')]


def test_every_section_is_there_and_links_resolve(made):
    page = read(made)
    assert "Not made yet" not in page.text and "No verdicts yet" not in page.text
    for words in ("2 reproduced", "1 not testable here", "aaaaaaaaaa", "with uncommitted changes"):
        assert words in page.text
    assert "The paper's claims: 3 2 reproduced (1 on part of the checks) 1 not testable here (1" in page.text
    assert "Our own questions: 1 1 reproduced" in page.text
    assert "reproduced (1 of 2 checks measured)" in page.text and "reproduced (2 of 2" not in page.text
    links = [href for href in page.attributes("a", "href") if not href.startswith(("#", "https://github.com/"))]
    assert len(links) > 20
    for href in links:
        record = json.loads((made.parent / href).read_text(encoding="utf-8"))
        assert record["run_id"] == Path(href).stem
    targets = set(page.attributes("section", "id"))
    assert {href[1:] for href in page.attributes("a", "href") if href.startswith("#")} <= targets


def test_a_card_names_its_strongest_and_its_weakest_check(made):
    text = read(made).text
    assert "strongest PSNR: effect 1.5 [1, 2], n = 15, corrected p = 0.010 – holds" in text
    assert "weakest of 2 LPIPS: effect 0.1 [1, 2], n = 15, corrected p = 1.000 – does not hold" in text
    assert text.count("corrected p = 1") == 1


def test_a_card_links_a_few_runs_and_counts_them(home):
    known = page_fakes.write_results(home)
    ids = sorted(path.stem for path in (home / "results/tiny/runs").glob("*.json"))
    assert len(ids) > 4
    results.write_table("tiny", "claims_checks", page_fakes.checks(" ".join(["absent", *ids])), by=())
    assert known in ids and f"; runs: 1 , 2 , 3 of {len(ids)}" in read(write_page()).text


def test_pictures_are_linked_files_and_nothing_is_loaded_from_outside(made):
    text = made.read_text(encoding="utf-8")
    page = read(made)
    sources = [source for source in page.attributes("img", "src") if source]
    assert len(sources) == 3 and all((made.parent / source).is_file() for source in sources)
    assert page.attributes("img", "loading") == ["lazy"] * 3
    files = json.loads(re.search(r'id="pictures">(.*?)</script>', text, re.DOTALL)[1])["files"]
    assert files and all((made.parent / file).is_file() for file in files)
    assert page.attributes("link", "href") == ["data:,"] and not page.attributes("script", "src")
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {"https://github.com/libozhu03/QArtSR"}


def test_a_single_file_holds_its_pictures(made, home):
    path = write_page(single_file=True)
    assert path == home / "build" / "index-single.html"
    page = read(path)
    sources = [source for source in page.attributes("img", "src") if source]
    assert len(sources) == 3 and all(source.startswith("data:image/webp;base64,") for source in sources)
    files = re.search(r'id="pictures">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert all(file.startswith("data:image/webp;base64,") for file in json.loads(files)["files"])
    links = [href for href in page.attributes("a", "href") if not href.startswith(("#", "https://"))]
    assert links and all((path.parent / href).is_file() for href in links)


def test_the_committed_page_is_small():
    page = Path(__file__).resolve().parents[1] / "figures" / "index.html"
    assert page.stat().st_size <= 300_000


def test_names_are_escaped(made):
    text = made.read_text(encoding="utf-8")
    assert page_fakes.NASTY in read(made).text
    assert "<b>\"&'" not in text and "evil <b>" not in text


def test_best_of_the_rows_that_compete(made):
    # Three settings: the paper's (rivals on T = 1000, QArtSR on T = 1), T = 1000 and T = 1; PSNR up, LPIPS down.
    assert bold(third(made)) == ["0.1500", "24.00", "0.1500", "19.00", "0.2000", "24.00"]
    text = made.read_text(encoding="utf-8")
    first = text[text.index('id="table1"') : text.index('id="table2"')]
    assert "15.00" not in bold(first) and "20.00" in bold(first)


def test_bicubic_stands_in_every_setting_and_does_not_compete(made):
    results.write_table("tiny", "table3", page_fakes.bicubic(), by=results.KEYS)
    found = third(write_page())
    assert found.count("<td>Bicubic<") == 3
    assert bold(found) == ["0.1500", "24.00", "0.1500", "19.00", "0.2000", "24.00"]


def test_the_papers_value_stands_beside_its_own_rows(made):
    papers = [value for value in re.findall(r'<td class="paper">([^<]*)', third(made)) if value.strip()]
    assert {"25.27", "16.01"} <= set(papers)  # OSEDiff and MaxMin on RealSR at T = 1000, Table 3 of the paper


def test_values_that_are_not_there(made):
    page = read(made)
    assert "n/a" in page.text and "nan" not in page.text.lower()
    assert "No values here for MUSIQ (1 of " in page.text


def test_sample_photographs_give_way_to_real_data_sets(made):
    rows = page_fakes.comparison()
    results.write_table("tiny", "table3", rows.assign(dataset="RealSR"))
    found = third(write_page())
    assert "RealSR, embedded" in found and "samples, embedded" not in found and "samples: in the whole table" in found


@pytest.mark.parametrize(
    ("file", "remark"),
    [
        ("results/tiny/claims.csv", "No verdicts yet"),
        ("results/tiny/table1.csv", "results/<profile>/table1.csv"),
        ("results/tiny/table2.csv", "results/<profile>/table2.csv"),
        ("results/tiny/table3.csv", "results/<profile>/table3.csv"),
        ("results/tiny/table4.csv", "results/<profile>/table4.csv"),
        ("results/tiny/deployment.csv", "results/<profile>/deployment.csv"),
        ("figures/tiny/gallery/index.json", "No pictures yet"),
    ],
)
def test_a_section_without_its_file_says_so(home, file, remark):
    page_fakes.write_results(home)
    (home / file).unlink()
    page = read(write_page())
    assert remark in page.text
    assert len(re.findall(r"yet: (no|note)", page.text)) == 1


def test_without_figures_or_records(home):
    page_fakes.write_results(home)
    for path in [*home.glob("figures/tiny/*.png"), *home.glob("results/tiny/runs/*.json")]:
        path.unlink()
    page = read(write_page())
    assert "No figures yet" in page.text and "No number of this page has a run record." in page.text
    assert not any("/runs/" in href for href in page.attributes("a", "href"))


def test_figures_have_words(made):
    page = read(made)
    words = [alt for alt in page.attributes("img", "alt") if alt]
    assert words == ["How the error grows with T", "Fig. 3, embedded_T1", "something new"]


def test_the_most_telling_profile_comes_first_and_smoke_only_alone(home):
    page_fakes.write_results(home, "smoke")
    assert "PROFILE=smoke" in read(write_page()).text
    page_fakes.write_results(home, "tiny")
    page_fakes.write_results(home, "study")
    text = read(write_page()).text
    assert text.index("PROFILE=study") < text.index("PROFILE=tiny")
    assert "PROFILE=smoke" not in text and "Profile study." in text


def test_gallery_shows_a_setting_its_own_models(made):
    text = made.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="pictures">(.*?)</script>', text, re.DOTALL)[1])
    labels = {item["title"]: [entry[0] for entry in item["pictures"]["cat"]] for item in data["settings"]}
    assert labels["embedded, T = 1"][2:] == ["full precision", "QArtSR W4A4", f"{page_fakes.NASTY} W4A4"]
    assert labels["mixed"][2:] == ["LSQ W4A4, T = 1000", "QArtSR W4A4, T = 1"]
    assert data["settings"][0]["pictures"]["cat"][-1][2] == -1


def test_the_same_files_give_the_same_page(made):
    before = made.read_bytes()
    assert write_page().read_bytes() == before


def test_problems_are_one_line(home, capsys):
    assert main([]) == 2
    assert "holds no tables yet" in capsys.readouterr().err
    page_fakes.write_results(home)
    (home / "figures/tiny/gallery/cat/0.webp").unlink()
    with pytest.raises(QartsrError, match=r"0\.webp: the gallery's index names it"):
        write_page()
    (home / "figures/tiny/gallery/index.json").write_text("[]")
    with pytest.raises(QartsrError, match="is not a gallery's index"):
        write_page()
    (home / "results/tiny/claims.csv").write_text("id\n1\n")
    with pytest.raises(QartsrError, match=r"claims\.csv: has no column claim"):
        write_page()


def test_command(home, capsys):
    page_fakes.write_results(home)
    assert main([]) == 0 and main(["--single-file"]) == 0
    assert "index.html" in (said := capsys.readouterr().out) and "index-single.html" in said
    (home / "README.md").write_text("<!-- table9 -->\n<!-- end -->\n")
    (home / "notebooks").mkdir()
    (home / "notebooks" / "README.md").touch()
    assert main([]) == 2 and "no table is called 'table9'" in capsys.readouterr().err
    assert results.read_table("tiny", "table3").shape[0] == 26
