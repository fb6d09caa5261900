"""How much of the study a run covers: four profiles as data.

`smoke` takes seconds and is for tests; `tiny` (the default) needs nothing but the installed packages; `study` runs the
embedded backbones on the real benchmarks, and verdicts rest on it; `paper` is the paper's own and needs its weights.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study.overrides import checked

#: The eight metrics of the paper's tables, in its order.
PAPER_METRICS = ("PSNR", "SSIM", "LPIPS", "DISTS", "NIQE", "MUSIQ", "MANIQA", "CLIP-IQA")
#: Metrics that need no network weights, so that every machine sees structure and naturalness.
WEIGHT_FREE_METRICS = ("MS-SSIM", "GMSD", "FSIM", "VIF", "PIQE", "CIEDE2000")
ALL_METRICS = PAPER_METRICS + WEIGHT_FREE_METRICS
#: Of Tables 3 and 4: the paper's eight, two quick weight-free ones, and the perceptual distance that methods train on.
FINETUNE_METRICS = (*PAPER_METRICS, "GMSD", "CIEDE2000", "VAE-FD")
#: The compared methods, in the paper's order.
SEVEN_METHODS = ("maxmin", "lsq", "q-dm", "efficientdm", "passionsr", "svdquant", "qartsr")


class NotReady(QartsrError):
    """Weights or data are not on this machine: the runner skips the notebook, tells this line, and goes on."""


Missing = tuple[str, Path, str]  # name, where it is expected, what cannot be made without it


@dataclass(frozen=True)
class BackboneFile:
    """A file that a profile needs and that is not shipped."""

    name: str
    place: str  # relative to the weights folder (`paths.weights_dir`)
    blocks: str  # what cannot be made without it
    timestep: int | None = None  # label T whose rows alone need it; None where every row does


#: Settings -> those that stand in their place in the notebooks of Tables 3 and 4.
_OF_FINETUNING = {"metrics": "finetune_metrics", "max_images": "finetune_images", "max_side": "finetune_side"}


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
    finetune_models: tuple[tuple[str, int], ...] = (("embedded", 1000), ("embedded", 1), ("embedded-scaled", 1))
    finetune_bits: tuple[str, ...] = ("W4A4", "W2A2")
    ablation_bits: tuple[str, ...] = ("W4A4", "W2A2")
    #: Metrics, images per data set and max_side of Tables 3 and 4.
    finetune_metrics: tuple[str, ...] = FINETUNE_METRICS
    finetune_images: int | None = None
    finetune_side: int | None = None
    deployed: tuple[tuple[str, str], ...] = ()  # (method, bits) of models that are written to files and timed
    train_images: int = 32  # budget of a trained method, images passed forward and backward
    budget_curve: tuple[int, ...] = ()  # multiples of train_images that notebook 14 trains for, beside 8
    train_batch: int = 1  # images per step
    image_loss: str = "vae-features+mse"  # in `finetuning.losses.IMAGE_LOSSES`, for methods whose paper fixes none
    teacher: str = "float32"  # precision in which trained methods imitate full precision, see `methods.trained.Budget`
    #: What all methods of Tables 3 and 4 share beside the bits: options of `methods.setting.Setting` by name.
    setting: tuple[tuple[str, str], ...] = ()
    #: Train with the papers' learning rates, made for long schedules, instead of the factor on them that was chosen
    #: on BSDS500/val.
    published_rates: bool = False
    max_images: int | None = None  # per data set, by a fixed stride; None for all
    #: Larger photographs are cropped at their centre to this many HR pixels a side; None for whole ones.
    max_side: int | None = None
    component_bits: tuple[str, ...] = ("W4A4", "W2A2")  # of a single layer (03) and of knobs (02)
    component_steps: int = 300
    timed_dataset: str = "samples"  # on whose images notebook 07 compares ways of computing
    timed_side: int = 128  # its image in low-quality pixels
    timing_rounds: int = 9
    timed_floats: tuple[str, ...] = ()  # in which floating-point ways; empty for all of `experiments.deployment.FLOAT`
    #: System -> folder of its images, or {data set: folder}; further rows of Table 3.
    outside: Mapping[str, str | Mapping[str, str]] = dataclasses.field(default_factory=dict, hash=False)
    networks: tuple[str, ...] = ()  # in `images.networks.NETWORKS`; rows of Table 3 too, where they are installed
    pictures: bool = False  # whether a part of Table 3 (KEEP) adds its pictures to the figures and the gallery
    weights: tuple[BackboneFile, ...] = ()
    #: Whether metric weights may be fetched; where not, every machine regenerates the same tables from the installed
    #: packages alone.
    downloads: bool = False

    @property
    def fair_model(self) -> tuple[str, int]:
        """(backbone, T) of notebooks 03 and 07: the last of Table 3, whose UNet does its share of the work."""
        if not self.finetune_models:
            raise NotReady(f"profile {self.name}: finetune_models is empty, or the weights of none of them are here")
        return self.finetune_models[-1]

    def for_finetuning(self, bits: str = "finetune_bits") -> Profile:
        """This profile with the metrics and images of Tables 3 and 4; a QartsrError where an override gave others.

        `bits`: the field whose bit widths the notebook reads.
        """
        whole, reads = PROFILES[self.name], {**_OF_FINETUNING, "backbones": "finetune_models", "bits": bits}
        reads |= {"finetune_bits": bits} if bits != "finetune_bits" else {}
        left = {timestep for _, timestep in self.finetune_models} - set(self.timesteps)
        reads |= {"timesteps": "finetune_models"} if left else {}
        for name, read in reads.items():
            if getattr(self, name) not in (getattr(whole, name), getattr(self, read)):
                raise QartsrError(f"OVERRIDES: this notebook reads {read}, not {name}; give it that")
        return dataclasses.replace(self, **{name: getattr(self, read) for name, read in _OF_FINETUNING.items()})


_BENCHMARKS = ("RealSR", "Urban100", "DIV2K_val")
_SD21 = "every result on the OSEDiff backbone"
_OSEDIFF_FILES = (
    BackboneFile("Stable Diffusion 2.1-base, UNet", "stable-diffusion-2-1-base/unet/config.json", _SD21),
    BackboneFile("Stable Diffusion 2.1-base, VAE", "stable-diffusion-2-1-base/vae/config.json", _SD21),
    BackboneFile("osediff.pkl", "osediff/osediff.pkl", "every result at T = 1000", 1000),
    *(
        BackboneFile(name, f"osediff/{name}", f"every result at T = {t} (qartsr train trq makes it)", t)
        for t, name in ((500, "osediff-T0500.pkl"), (1, "osediff-T0001.pkl"))
    ),
)

_PROFILES = (
    Profile(
        name="smoke",
        n_calibration=2,
        backbones=("embedded",),
        timesteps=(1000, 1),
        bits=("W8A8", "W4A4"),
        metrics=("PSNR", "SSIM"),
        methods=("maxmin", "lsq", "qartsr"),  # contract tests run all, the quickstart SVDQuant
        finetune_models=(("embedded", 1),),
        finetune_metrics=("PSNR", "SSIM"),
        finetune_bits=("W4A4",), ablation_bits=("W4A4",), component_bits=("W4A4",),
        train_images=2, max_images=1, finetune_images=1, component_steps=5,
        deployed=(("maxmin", "W4A4"),),
        timed_side=32, timing_rounds=2, timed_floats=("fp32", "bf16"),
    ),
    Profile(
        name="tiny",
        n_calibration=48,
        methods=(*SEVEN_METHODS, "lsq-qat"),
        finetune_bits=("W4A4",),  # 32 training images bear no method to W2A2: all fail, which decides nothing
        ablation_bits=("W4A4",),
        deployed=(("qartsr", "W4A4"), ("qartsr", "W2A2"), ("maxmin", "W4A4"), ("svdquant", "W4A4")),
        finetune_images=10, component_steps=60, timing_rounds=5,
    ),
    Profile(
        name="study",
        datasets=("samples", "samples-realistic", *_BENCHMARKS),
        seeds=(0, 1, 2),
        calibration="BSDS500", n_calibration=128,
        methods=(*SEVEN_METHODS, "lsq-qat", "svdquant-released", "groupwise-untrained"),
        finetune_bits=("W4A4", "W3A3", "W2A2"),
        deployed=tuple(itertools.product(("qartsr", "maxmin", "svdquant"), ("W8A8", "W4A4", "W2A2"))),
        finetune_images=30,
        finetune_side=320,  # as large as the samples; whole photographs would take days
        train_images=256, budget_curve=(4, 16),
        image_loss="lpips+mse",
        networks=("DAT-light", "SPAN", "Real-ESRGAN"),
        timed_dataset="RealSR",
        downloads=True,
    ),
    Profile(
        name="paper",
        backbones=("osediff",),
        datasets=("samples", *_BENCHMARKS),
        metrics=PAPER_METRICS,
        calibration="DIV2K_train", n_calibration=512, calibration_size=128,
        finetune_models=(("osediff", 1000), ("osediff", 1)),
        finetune_bits=("W4A4", "W3A3", "W2A2"),
        deployed=(("qartsr", "W4A4"), ("qartsr", "W2A2")),
        train_images=16384,
        image_loss="lpips+mse",
        teacher="bfloat16",
        published_rates=True,
        downloads=True,
        weights=_OSEDIFF_FILES,
    ),
)
PROFILES = {profile.name: profile for profile in _PROFILES}


def get_profile(name: str, **overrides: object) -> Profile:
    """The profile called `name`, with fields replaced by the `overrides` that are not None.

    Lists become tuples, a lone value a tuple of one. A QartsrError for an unknown profile or field, or a value of
    another kind.
    """
    if name not in PROFILES:
        raise QartsrError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return dataclasses.replace(PROFILES[name], **checked(PROFILES[name], overrides))


def missing_weights(profile: Profile) -> list[Missing]:
    """Every backbone file that `profile` needs and this machine lacks."""
    return [(file.name, paths.weights_dir() / file.place, file.blocks) for file in _absent(profile)]


def ready(profile: Profile) -> Profile:
    """`profile` without the timesteps whose weights this machine lacks; NotReady where all of it needs some."""
    absent = _absent(profile)
    gone = {file.timestep for file in absent}
    timesteps = tuple(timestep for timestep in profile.timesteps if timestep not in gone)
    models = tuple(model for model in profile.finetune_models if model[1] not in gone)
    blocking = [paths.weights_dir() / file.place for file in absent if file.timestep is None or not timesteps]
    if blocking:
        others = f" and {len(blocking) - 1} more" if len(blocking) > 1 else ""
        raise NotReady(
            f"profile {profile.name} needs the weights {blocking[0]}{others}; put them there "
            "(notebook 00 lists all) or use PROFILE=tiny"
        )
    return dataclasses.replace(profile, timesteps=timesteps, finetune_models=models)


def needed(data_root: Path | None, folder: str) -> Path:
    """`data_root`, once it holds `folder`; NotReady where it does not."""
    if data_root is None or not (data_root / folder).is_dir():
        raise NotReady(f"this needs {folder} under {data_root or 'DATA_ROOT'}; put it there, or set DATA_ROOT")
    return data_root


def _absent(profile: Profile) -> list[BackboneFile]:
    return [file for file in profile.weights if not (paths.weights_dir() / file.place).exists()]


def missing_metric_weights(profile: Profile) -> list[Missing]:
    """The same for metric weights that are neither here nor to be fetched.

    Only for profiles that need backbone files too: elsewhere an unavailable metric is a row marked n/a, and nothing is
    missing.
    """
    from qartsr_lib.images import metrics  # takes seconds, and a profile is mostly needed for its names
    from qartsr_lib.images.metrics.weights import FOLDER_VARIABLE, locate, reachable, weights_folder

    if not profile.weights:
        return []
    given, blocks = weights_folder(), {}
    for name in profile.metrics:
        for file in metrics.METRICS.get(name).weights:
            if locate(file, given) is None and not reachable():
                blocks.setdefault(file.name, []).append(name)
    place = given or Path("$" + FOLDER_VARIABLE)
    return [(name, place / name, f"the metric {', '.join(blocked)}") for name, blocked in blocks.items()]
