"""Devices: the message for one that is not there, and what a GPU is told."""

import pytest
import torch

from qartsr_lib.base import machine, provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.low_rank import kaiming_start


@pytest.fixture
def flags():
    """The GPU flags of this process, put back afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    yield matmul, cudnn
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(QartsrError, match=f"device '{device}'"):
        machine.checked(device)


def test_cpu_is_there_and_changes_nothing(flags):
    matmul, cudnn = flags
    cudnn.allow_tf32, cudnn.deterministic = True, False
    machine.make_exact(machine.checked("cpu"))
    assert cudnn.allow_tf32 and not cudnn.deterministic


def test_a_gpu_computes_float32_in_float32(flags):
    matmul, cudnn = flags
    matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = True
    machine.make_exact("cuda:0")
    assert not matmul.allow_tf32 and not cudnn.allow_tf32
    assert cudnn.deterministic and not cudnn.benchmark
    assert not provenance._tf32()
    cudnn.allow_tf32 = True
    assert provenance._tf32()


def test_updates_start_alike_whatever_the_device():
    torch.manual_seed(3)
    on_cpu = kaiming_start(2, 5, torch.empty(1))
    torch.manual_seed(3)
    elsewhere = kaiming_start(2, 5, torch.empty(1, device="meta"))
    assert elsewhere.device.type == "meta" and elsewhere.shape == on_cpu.shape
    torch.manual_seed(3)
    wanted = torch.empty(2, 5)
    torch.nn.init.kaiming_uniform_(wanted, a=5**0.5)
    assert torch.equal(on_cpu, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["maxmin", "qartsr"])
def test_a_model_is_the_same_on_a_gpu(method):
    """Quantized, trained for two steps and run on both devices: within twice the noise floor of W4A4 (0.27 dB)."""
    from qartsr_lib.backbones import load_backbone
    from qartsr_lib.images.datasets.calibration import calibration_list
    from qartsr_lib.images.image import luma, psnr
    from qartsr_lib.methods import METHODS
    from qartsr_lib.study.profiles import get_profile

    machine.make_exact("cuda")
    images = calibration_list(get_profile("tiny", n_calibration=4)).images
    options = {"images": 2} if method == "qartsr" else {}
    found = {}
    for device in ("cpu", "cuda"):
        backbone = load_backbone("embedded-scaled", 1, device)
        moved = [image.to(device) for image in images]
        with torch.inference_mode():
            wanted = luma(backbone.upscale(moved[0]).cpu())
        model = METHODS.get(method).build(backbone, "W4A4", moved, seed=0, **options).backbone
        with torch.inference_mode():
            found[device] = psnr(luma(model.upscale(moved[0]).cpu()), wanted)
    assert found["cuda"] == pytest.approx(found["cpu"], abs=0.54)
