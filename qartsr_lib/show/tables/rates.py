"""What was tried on BSDS500/val, learning rates, settings and ingredients, as tables for people."""

from __future__ import annotations

import pandas as pd

from qartsr_lib.methods import METHODS
from qartsr_lib.methods.setting import DEFAULT
from qartsr_lib.study.experiments.ingredients import VARIANTS
from qartsr_lib.study.experiments.rates import FIRST_LOOK, choose, criterion
from qartsr_lib.study.experiments.settings import FACTORS, JUDGE, means
from qartsr_lib.study.stats import mean_interval


def rate_sections(tries: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """[(title, text table)] by setting: what was chosen, then the criterion of every try, results/study/tries.csv."""
    first = choose(tries[tries["factor"].isin(FIRST_LOOK)]).get(DEFAULT.label, {})
    sections = []
    for setting, winners in choose(tries).items():
        chosen = [
            {"method": METHODS.get(method).label, "bits": bits, "factor": f"{factor:g}"}
            | ({"first look": f"{first[method][bits]:g}"} if setting == DEFAULT.label else {})
            for method, factors in winners.items()
            for bits, factor in factors.items()
        ]
        values = criterion(tries[tries["setting"] == setting]).droplevel("setting").unstack("factor")
        values = values.sort_index(axis=1).rename(columns="{:g}".format)
        every = values.map("{:.2f}".format).replace("nan", "").rename_axis(columns=None).reset_index()
        every["method"] = every["method"].map(lambda method: METHODS.get(method).label)
        sections.append((f"Chosen factor [{setting}]", pd.DataFrame(chosen)))
        sections.append((f"Logarithm of error times distance, lower is better [{setting}]", every))
    return sections


def spread_sections(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """[(title, text table)] of results/study/spread.csv: a line per method and bit width, a column per seed."""
    means = rows.pivot_table("psnr_fp", ["method", "bits"], "seed", "mean", sort=False)
    table = means.rename(columns="seed {}".format).assign(spread=means.max(axis=1) - means.min(axis=1))
    table = table.map("{:.2f}".format).rename_axis(columns=None).reset_index()
    table["method"] = table["method"].map(lambda method: METHODS.get(method).label)
    return [("PSNR-Y to full precision's image, dB, by seed", table)]


def setting_sections(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """[(title, text table)] of results/study/settings.csv: a line per setting, a column per method and bit width."""
    order = means(rows).index[::-1]
    titles = {
        "psnr_fp": f"PSNR-Y to full precision's image, dB; best mean of {METHODS.get(JUDGE).label} first",
        "psnr_hr": "PSNR-Y to the original, dB",
        "stored_bits": "Stored bits per weight",
    }
    sections = []
    for value, title in titles.items():
        table = means(rows, value).loc[order].map("{:.2f}".format).replace("nan", "")
        table.columns = [f"{METHODS.get(method).label} {bits}" for method, bits in table.columns]
        sections.append((title, table.reset_index().rename(columns=dict(zip(FACTORS, _FACTOR_TITLES, strict=True)))))
    return sections


def ingredient_sections(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """[(model and bits, text table)] of results/study/ingredients.csv: a line for each of VARIANTS.

    Behind each mean stands what it is above the first line's, with the interval of that over photographs.
    """
    sections = []
    for (backbone, bits), part in rows.groupby(["backbone", "bits"], sort=False):
        by_image = part.pivot(index="image", columns="variant", values="psnr_fp")[list(VARIANTS)]
        gains = by_image.iloc[:, 1:].sub(by_image.iloc[:, 0], axis=0)
        stored = part.groupby("variant")["stored_bits"].first().loc[list(VARIANTS)]
        table = pd.DataFrame(
            {
                "variant": by_image.columns,
                "PSNR-Y to full precision, dB": [f"{mean:.2f}" for mean in by_image.mean()],
                "gain": ["", *("{:+.2f} [{:.2f}, {:.2f}]".format(*mean_interval(gains[name])) for name in gains)],
                "bits/weight": stored.map("{:.2f}".format).to_numpy(),
            }
        )
        sections.append((f"{backbone}, {bits}", table))
    return sections


_FACTOR_TITLES = ("8-bit layers", "ranges", "zero-points")
