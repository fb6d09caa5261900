"""The words of every figure, in the order in which the page shows them.

A pattern is matched against the file's name; its groups stand in braces in the words.
"""

from __future__ import annotations

from dataclasses import dataclass

_SETTING = r"(?P<setting>[^_]+_(T\d+|paper))"


@dataclass(frozen=True)
class Caption:
    """Title and caption as shown, and what is said to readers who do not see the figure."""

    pattern: str
    title: str
    text: str
    alt: str


CAPTIONS = (
    Caption(
        r"table1_psnr_(?P<dataset>.+)",
        "Quality against bits, {dataset}",
        "PSNR-Y of MaxMin over bit widths, one line per timestep, for both recipes; the whole network quantized above, "
        "the UNet alone below.",
        "Line charts of PSNR against bit width on {dataset}, one line per timestep.",
    ),
    Caption(
        r"theorem_laws",
        "How the error grows with T",
        "Error of z_H, with the UNet alone quantized, against the timestep, and three laws fitted to it. The paper's "
        "law is sqrt(1 - alpha_T).",
        "Measured quantization error of z_H over T with three fitted laws per recipe and bit width.",
    ),
    Caption(
        r"error_histograms",
        "Fig. 7's histograms, measured",
        "Size of the quantization error of z_H at three timesteps, for both recipes.",
        "Histograms of the error of z_H at three timesteps.",
    ),
    Caption(
        r"unet_contribution",
        "What the UNet contributes",
        "PSNR-Y with the predicted noise, with the noise set to zero, and with z_L in the place of z_H.",
        "Bars of PSNR with and without the UNet's predicted noise at each timestep.",
    ),
    Caption(
        r"fig5_schedule",
        "Fig. 5: the schedule",
        "The coefficients of Eq. (6) over T. They follow from the noise schedule alone and agree with the paper's.",
        "Curves of alpha_T and the error's coefficient over T.",
    ),
    Caption(
        r"fig7_(?P<backbone>.+)",
        "Fig. 7, {backbone}",
        "Staged outputs at three timesteps and their errors when the UNet alone is quantized to W4A4.",
        "Rows of z_L, predicted noise, z_H and image at three timesteps, with error maps, for {backbone}.",
    ),
    Caption(
        rf"fig1_{_SETTING}",
        "Fig. 1, {setting}",
        "One photograph: original, bicubic, full precision, and QArtSR at each bit width. PSNR-Y is of the whole "
        "photograph.",
        "Crops of one photograph by QArtSR at each bit width beside full precision.",
    ),
    Caption(
        rf"fig2_(?P<dataset>.+)_{_SETTING}",
        "Fig. 2, {dataset}, {setting}",
        "Every metric at one bit width, with 95% intervals over images; dashed lines are full precision and, where it "
        "was measured, bicubic interpolation.",
        "Bar charts of all methods for every metric on {dataset}.",
    ),
    Caption(
        rf"fig3_{_SETTING}",
        "Fig. 3, {setting}",
        "Every method at the lowest bit width shown, the same crop. PSNR-Y is of the whole photograph.",
        "Crops of one photograph by every method at one bit width.",
    ),
    Caption(
        rf"fig6_{_SETTING}",
        "Fig. 6, {setting}",
        "Several photographs, every method, one line per bit width.",
        "Crops of several photographs by every method.",
    ),
    Caption(
        r"table1_samples_(?P<backbone>.+)",
        "MaxMin on sample photographs, {backbone}",
        "The same crop in full precision and at W4A4, at three timesteps.",
        "Crops of sample photographs at three timesteps, full precision and W4A4, for {backbone}.",
    ),
    Caption(
        r"fp_samples",
        "Full precision",
        "Original, bicubic and the backbones in full precision, the same crops.",
        "Crops of sample photographs: original, bicubic and every backbone in full precision.",
    ),
    Caption(
        r"anatomy_ranges",
        "Channel ranges",
        "What the transformation of Eq. (9) does to the ranges of a layer's channels.",
        "Ranges per channel before and after the learned transformation.",
    ),
    Caption(
        r"anatomy_components",
        "The components of Eq. (9)",
        "The error of layers with the side branch, the update and the transformation switched on one by one.",
        "Bars of layer error for each component of the quantizer.",
    ),
    Caption(
        r"anatomy_layers",
        "Error along the network",
        "The error of every layer's output, from the input to the image.",
        "Line chart of the error of each layer's output.",
    ),
    Caption(
        rf"table4_learning_(?P<bits>[^_]+)_{_SETTING}",
        "Learning curves, {bits}, {setting}",
        "Image loss on the training images over the budget, first seed.",
        "Training losses over the budget at {bits}.",
    ),
    Caption(
        r"table2_blocks",
        "Where the cost sits",
        "Weights and operations of every block of the full-size network.",
        "Bars of weights and operations per block of OSEDiff.",
    ),
    Caption(
        r"table2_components",
        "What is left after quantization",
        "Storage and operations by component, by the complete rule.",
        "Stacked bars of storage and operations by component at each bit width.",
    ),
    Caption(
        r"deployment",
        "Worth it?",
        "PSNR-Y against milliseconds and megabytes; up and to the left is better, hollow marks are simulations.",
        "Scatter of PSNR against latency and against file size, one mark per runtime.",
    ),
    Caption(
        r"learning_curves",
        "Training of the embedded backbones",
        "Validation quality over training steps.",
        "Validation curves of the embedded backbones.",
    ),
)
