"""How much of the study a run covers: four profiles as data.

`smoke` takes seconds and is for tests; `tiny` (the default) needs nothing but the installed
packages; `study` runs the embedded backbones on the real benchmarks, and verdicts rest on it;
`paper` is the paper's own setting and needs OSEDiff's weights.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError

#: The eight metrics of the paper's tables, in its order.
PAPER_METRICS = ("PSNR", "SSIM", "LPIPS", "DISTS", "NIQE", "MUSIQ", "MANIQA", "CLIP-IQA")
#: Metrics that need no network weights, so that every machine sees structure and naturalness.
WEIGHT_FREE_METRICS = ("MS-SSIM", "GMSD", "FSIM", "VIF", "PIQE")
ALL_METRICS = PAPER_METRICS + WEIGHT_FREE_METRICS
#: Of Tables 3 and 4: the paper's eight, the quick weight-free one, and the perceptual distance that methods train on.
FINETUNE_METRICS = (*PAPER_METRICS, "GMSD", "VAE-FD")
#: The compared methods, in the paper's order.
SEVEN_METHODS = ("maxmin", "lsq", "q-dm", "efficientdm", "passionsr", "svdquant", "qartsr")


Missing = tuple[str, Path, str]  # name, where it is expected, what cannot be made without it


@dataclass(frozen=True)
class BackboneFile:
    """A file that a profile needs and that is not shipped."""

    name: str
    place: str  # relative to the weights folder (`paths.weights_dir`)
    blocks: str  # what cannot be made without it
    timestep: int | None = None  # label T whose rows alone need it; None where every row does


@dataclass(frozen=True)
class Profile:
    """One column of settings that every notebook reads."""

    name: str  # folder under results/ and figures/
    n_calibration: int  # calibration crops
    calibration: str = "samples"  # name in `datasets.calibration.CALIBRATION_LISTS`
    calibration_size: int = 32  # side of the crops in low-quality pixels
    backbones: tuple[str, ...] = ("embedded", "embedded-scaled")  # names in `backbones.BACKBONES`
    timesteps: tuple[int, ...] = (1000, 500, 1)  # labels T as in the paper
    bits: tuple[str, ...] = ("W8A8", "W6A6", "W4A4", "W3A3", "W2A2")  # of the quantized rows, most bits first
    datasets: tuple[str, ...] = ("samples",)  # in `datasets.DATASETS`; those absent here are skipped and reported
    metrics: tuple[str, ...] = ALL_METRICS  # those that are not available show as n/a with the reason
    seeds: tuple[int, ...] = (0,)  # repetitions of methods with randomness; deterministic methods use the first
    methods: tuple[str, ...] = SEVEN_METHODS  # of the comparison (Table 3), names in `methods.METHODS`
    #: (backbone, T) of Tables 3 and 4; bit widths of Table 3 and of Table 4.
    finetune_cells: tuple[tuple[str, int], ...] = (("embedded", 1000), ("embedded", 1), ("embedded-scaled", 1))
    finetune_bits: tuple[str, ...] = ("W4A4", "W2A2")
    ablation_bits: tuple[str, ...] = ("W4A4", "W2A2")
    #: Metrics, images per data set and max_side of Tables 3 and 4.
    finetune_metrics: tuple[str, ...] = FINETUNE_METRICS
    finetune_images: int | None = None
    finetune_side: int | None = None
    deployed: tuple[tuple[str, str], ...] = ()  # (method, bits) of models that are written to files and timed
    train_images: int = 32  # budget of a trained method, images passed forward and backward
    train_batch: int = 1  # images per step
    image_loss: str = "vae-features+mse"  # in `finetuning.losses.IMAGE_LOSSES`, for methods whose paper fixes none
    teacher: str = "float32"  # precision in which trained methods imitate full precision, see `methods.trained.Budget`
    #: Train with the papers' learning rates, made for long schedules, instead of the factor on them that was chosen
    #: on BSDS500/val.
    published_rates: bool = False
    max_images: int | None = None  # per data set, by a fixed stride; None for all
    #: Larger photographs are cropped at their centre to this many HR pixels a side; None for whole ones.
    max_side: int | None = None
    weights: tuple[BackboneFile, ...] = ()
    #: Whether metric weights may be fetched; where not, every machine regenerates the same tables from the installed
    #: packages alone.
    downloads: bool = False

    def for_finetuning(self) -> Profile:
        """This profile with the metrics and images of Tables 3 and 4."""
        shared = {"metrics": self.finetune_metrics, "max_images": self.finetune_images, "max_side": self.finetune_side}
        return dataclasses.replace(self, **shared)


_BENCHMARKS = ("RealSR", "Urban100", "DIV2K_val")
_SD21 = "every result on the OSEDiff backbone"

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            backbones=("embedded",),
            timesteps=(1000, 1),
            bits=("W8A8", "W4A4"),
            metrics=("PSNR", "SSIM"),
            n_calibration=4,
            finetune_cells=(("embedded", 1),),
            finetune_bits=("W4A4",),
            ablation_bits=("W4A4",),
            deployed=(("maxmin", "W4A4"),),
            finetune_metrics=("PSNR", "SSIM"),
            finetune_images=1,
            train_images=8,
            max_images=1,
        ),
        Profile(
            name="tiny",
            n_calibration=48,
            finetune_bits=("W4A4",),  # 32 training images bear no method to W2A2: all fail, which decides nothing
            ablation_bits=("W4A4",),
            deployed=(("qartsr", "W4A4"), ("qartsr", "W2A2"), ("maxmin", "W4A4"), ("svdquant", "W4A4")),
            finetune_images=4,
        ),
        Profile(
            name="study",
            datasets=("samples", "samples-realistic", *_BENCHMARKS),
            seeds=(0, 1, 2),
            calibration="BSDS500",
            n_calibration=128,
            methods=(*SEVEN_METHODS, "lsq-qat", "svdquant-released"),
            finetune_bits=("W4A4", "W3A3", "W2A2"),
            deployed=tuple(itertools.product(("qartsr", "maxmin", "svdquant"), ("W8A8", "W4A4", "W2A2"))),
            finetune_images=30,
            finetune_side=320,  # as large as the samples; whole photographs would take days
            train_images=256,
            downloads=True,
        ),
        Profile(
            name="paper",
            backbones=("osediff",),
            datasets=("samples", *_BENCHMARKS),
            metrics=PAPER_METRICS,
            calibration="DIV2K_train",
            n_calibration=512,
            calibration_size=128,
            finetune_cells=(("osediff", 1000), ("osediff", 1)),
            finetune_bits=("W4A4", "W3A3", "W2A2"),
            deployed=(("qartsr", "W4A4"), ("qartsr", "W2A2")),
            train_images=16384,
            image_loss="lpips+mse",
            teacher="bfloat16",
            published_rates=True,
            downloads=True,
            weights=(
                BackboneFile("Stable Diffusion 2.1-base, UNet", "stable-diffusion-2-1-base/unet/config.json", _SD21),
                BackboneFile("Stable Diffusion 2.1-base, VAE", "stable-diffusion-2-1-base/vae/config.json", _SD21),
                BackboneFile("osediff.pkl", "osediff/osediff.pkl", "every result at T = 1000", 1000),
                *(
                    BackboneFile(
                        name, f"osediff/{name}", f"every result at T = {t} (qartsr_lib.training.trq trains it)", t
                    )
                    for t, name in ((500, "osediff-T0500.pkl"), (1, "osediff-T0001.pkl"))
                ),
            ),
        ),
    )
}


def get_profile(name: str, **overrides: object) -> Profile:
    """The profile called `name`, with fields replaced by the `overrides` that are not None.

    Notebooks pass their papermill parameters straight through: `get_profile(PROFILE, bits=BITS)`
    with `BITS = None` keeps the profile's own. Lists become tuples, a lone value a tuple of one.

    Raises:
        QartsrError: unknown profile or unknown field.
    """
    if name not in PROFILES:
        raise QartsrError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    changes = {}
    for field, value in overrides.items():
        if field == "name" or not hasattr(profile, field):
            raise QartsrError(f"profile {name!r} has no setting {field!r}; remove that override")
        if value is None:
            continue
        if isinstance(getattr(profile, field), tuple):
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        changes[field] = value
    return dataclasses.replace(profile, **changes)


def missing_weights(profile: Profile) -> list[Missing]:
    """Every backbone file that `profile` needs and this machine lacks."""
    return [missing for missing, _ in _missing(profile)]


def at_hand(profile: Profile) -> tuple[Profile, list[Missing]]:
    """`profile` without the timesteps whose weights this machine lacks, and the missing files that block all of it."""
    gone = _missing(profile)
    lacking = {timestep for _, timestep in gone}
    timesteps = tuple(timestep for timestep in profile.timesteps if timestep not in lacking)
    cells = tuple(cell for cell in profile.finetune_cells if cell[1] not in lacking)
    blocking = [missing for missing, timestep in gone if timestep is None or not timesteps]
    return dataclasses.replace(profile, timesteps=timesteps, finetune_cells=cells), blocking


def _missing(profile: Profile) -> list[tuple[Missing, int | None]]:
    """The files that are not there, with the timestep that needs them."""
    places = [(file, paths.weights_dir() / file.place) for file in profile.weights]
    return [((file.name, place, file.blocks), file.timestep) for file, place in places if not place.exists()]


def missing_metric_weights(profile: Profile) -> list[Missing]:
    """The same for metric weights that are neither here nor to be fetched.

    Only for profiles that need backbone files too: elsewhere an unavailable metric is a row marked
    n/a, and nothing is missing.
    """
    from qartsr_lib.images import metrics  # takes seconds, and a profile is mostly needed for its names
    from qartsr_lib.images.metrics.weights import FOLDER_VARIABLE, locate, reachable, weights_folder

    blocks: dict[str, list[str]] = {}
    given = weights_folder() if profile.weights else None
    for name in profile.metrics if profile.weights else ():
        for file in metrics.METRICS.get(name).weights:
            if locate(file, given) is None and not reachable():
                blocks.setdefault(file.name, []).append(name)
    place = given or Path("$" + FOLDER_VARIABLE)
    return [(name, place / name, f"the metric {', '.join(blocked)}") for name, blocked in blocks.items()]
