"""The engine: its losses against hooks on the plain network, the cache against the plain loop, resuming."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from quant_stand_in import lq_images, tiny_backbone

from qartsr_lib.backbones.features import FeatureDistance
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.methods import METHODS
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.scheme import SHARED_SETTING, parse_bits
from qartsr_lib.quant.states import QuantState, calibrate, quant_modules
from qartsr_lib.training.finetuning import engine
from qartsr_lib.training.finetuning.engine import FinetuneConfig, Finetuner
from qartsr_lib.training.finetuning.flows import Room
from qartsr_lib.training.finetuning.losses import normalized_mse, perceptual_and_squared, weights_of_flat
from qartsr_lib.training.finetuning.phases import Phase, Term, batch_orders, block_groups, in_order, split
from tests.benchmarks.bench import PlainLoop

RATES = (("side", 1e-3), ("merged", 1e-3), ("phi", 1e-3), ("bounds", 1e-3))
IMAGE = Term("image")


@pytest.fixture(scope="module")
def teacher():
    return tiny_backbone()


@pytest.fixture(scope="module")
def start(teacher):
    """A calibrated W4A4 copy with the layers of Eq. 9, before training."""
    torch.manual_seed(0)
    student = copy.deepcopy(teacher)
    quantize_(student, replace(SHARED_SETTING.at("W4A4"), layer_kind="finetune"))
    calibrate(student, student.upscale, lq_images(2))
    for module in quant_modules(student):
        module.start()
    return student


@pytest.fixture(scope="module")
def exact(teacher, start):
    """Both in float64, for comparisons of the training path with the evaluation path.

    Their kernels add in different orders; in float32 that flips a code on some processors, and a low-bit network
    gives another image then.
    """
    return copy.deepcopy(teacher).double(), copy.deepcopy(start).double()


def finetuner(teacher, student, loss=F.mse_loss, checkpoint=None, kind=Finetuner, **config):
    dtype = teacher.prompt_embedding.dtype
    batches = [torch.cat(lq_images(2, seed=seed)).to(dtype) for seed in (1, 2)]
    return kind(teacher, student, batches, loss, FinetuneConfig(RATES, **config), "test", checkpoint)


def orders(run, phases):
    return batch_orders(phases, run.sizes, run.config.seed)


def reverse_phases(model, images=4, order="reverse"):
    groups = in_order(block_groups(model), order, seed=0)
    return [Phase(group, images, (Term("features", group[-1]), IMAGE)) for group in groups]


#: Whether blocks are computed again for the backward pass, and the room for flows in GiB.
WAYS = {
    "cached": (False, 1.0),
    "partly cached": (False, 0.0005),  # most is computed again
    "nothing kept": (False, 0),
    "less memory": (True, 1.0),
}


@pytest.mark.parametrize("order", ["reverse", "inference", "random"])
def test_the_cache_changes_nothing_but_the_time(teacher, start, order):
    phases = reverse_phases(teacher, 2, order)
    plain = copy.deepcopy(start)
    expected = finetuner(teacher, plain, kind=PlainLoop).run(phases)
    for way, (recompute, memory) in WAYS.items():
        run = finetuner(teacher, model := copy.deepcopy(start))
        run.recompute, run.room = recompute, Room(memory * 2**30)
        history = run.run(phases)
        assert [{**record, "seconds": 0} for record in history] == [{**record, "seconds": 0} for record in expected], (
            way
        )
        end = plain.state_dict()
        assert all(torch.equal(tensor, end[key]) for key, tensor in model.state_dict().items()), way


def test_recomputing_keeps_less_for_the_backward_pass(teacher, start):
    def kept(recompute: bool) -> int:
        run, sizes = finetuner(teacher, copy.deepcopy(start)), []
        run.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            run.run([Phase(tuple(run.network.names), 2, (IMAGE,))])
        return sum(sizes)

    assert kept(True) < kept(False) / 3


@pytest.mark.parametrize("block", ["vae.decoder.up_blocks.0", "unet.mid_block", "vae.encoder.down_blocks.0"])
def test_losses_against_hooks(exact, block):
    """Eq. 8 at the first step, by forward hooks on the networks as they are called in evaluation."""
    teacher, start = exact
    names = [name for name, _ in teacher.blocks_in_order()]
    quantized = tuple(names[names.index(block) :])
    phase = Phase(quantized, 2, (Term("features", block), IMAGE))
    run = finetuner(teacher, copy.deepcopy(start))
    (record,) = run.run([phase])

    reference, outputs = copy.deepcopy(start), []
    for module in quant_modules(reference):
        inside = module.name.startswith(tuple(f"{name}." for name in quantized)) or module.name in quantized
        module.set_state(QuantState.QUANTIZED if inside else QuantState.FULL_PRECISION)
    batch = run.network.upscaled[orders(run, [phase])[0][0]]
    images = []
    for network in (reference, teacher):
        hook = network.get_submodule(block).register_forward_hook(lambda module, given, output: outputs.append(output))
        with torch.no_grad():
            images.append(network(batch))
        hook.remove()
    features = F.mse_loss(*outputs) / outputs[1].var()
    assert record["features_loss"] == pytest.approx(float(features), rel=1e-5) and float(features) > 0
    assert record["image_loss"] == pytest.approx(float(F.mse_loss(*images)), rel=1e-5)
    assert record["loss"] == pytest.approx(record["features_loss"] + record["image_loss"], rel=1e-6)


def test_noise_term_against_the_stages(exact):
    teacher, start = exact
    run = finetuner(teacher, copy.deepcopy(start))
    unet = tuple(name for name in run.network.names if name.startswith("unet."))
    phase = Phase(unet, 2, (Term("noise"),))
    (record,) = run.run([phase])
    reference = copy.deepcopy(start)
    for module in quant_modules(reference.vae):
        module.set_state(QuantState.FULL_PRECISION)
    batch = run.network.upscaled[orders(run, [phase])[0][0]]
    with torch.no_grad():
        student, target = reference.stages(batch).eps, teacher.stages(batch).eps
    assert record["loss"] == pytest.approx(float(F.mse_loss(student, target) / target.var()), rel=1e-5)


def test_every_term_counts(exact):
    """Two terms of one quantity (z_L and the image, as Q-DM has) are both in the loss."""
    teacher, start = exact
    names = tuple(name for name, _ in teacher.blocks_in_order())
    ends = [Term("features", "vae.quant_conv"), Term("noise"), Term("features", names[-1])]
    alone = [finetuner(teacher, copy.deepcopy(start)).run([Phase(names, 2, (term,))])[0]["loss"] for term in ends]
    (record,) = finetuner(teacher, copy.deepcopy(start)).run([Phase(names, 2, tuple(ends))])
    assert min(alone) > 0 and record["loss"] == pytest.approx(sum(alone), rel=1e-5)
    assert record["features_loss"] == pytest.approx(alone[0] + alone[2], rel=1e-5)


def test_only_what_a_phase_names_is_trained(teacher, start):
    run = finetuner(teacher, model := copy.deepcopy(start))
    decoder = tuple(name for name in run.network.names if "decoder" in name or "post" in name)
    last = decoder[-1:]
    run.run([Phase(decoder, 2, (IMAGE,), trained=last, kinds=("bounds",))])
    before, after = start.state_dict(), model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("vae.decoder.conv_out.") and key.endswith("_units") for key in changed)


@pytest.mark.parametrize("kind", [Finetuner, PlainLoop])
def test_quantized_upstream_that_is_no_longer_trained(exact, kind, monkeypatch):
    """As PassionSR goes: encoder first, then the decoder behind the quantized encoder."""
    teacher, start = exact
    names = [name for name, _ in teacher.blocks_in_order()]
    encoder = tuple(name for name in names if "encoder" in name or "quant_conv" in name)[:-1]
    assert encoder[-1] == "vae.quant_conv"
    decoder = tuple(names[names.index("vae.post_quant_conv") :])
    model = copy.deepcopy(start)
    phases = [
        Phase(encoder, 4, (Term("features", "vae.quant_conv"),)),
        Phase(decoder, 4, (IMAGE,), trained=decoder),
    ]
    monkeypatch.setattr(engine, "DECAY", 1e-9)  # as the first phase alone
    run = finetuner(teacher, model, kind=kind)
    history = run.run(phases)
    reference = copy.deepcopy(start)
    finetuner(teacher, reference).run(phases[:1])
    for module in quant_modules(reference.unet):
        module.set_state(QuantState.FULL_PRECISION)
    batch = run.network.upscaled[orders(run, phases)[1][0]]
    with torch.no_grad():
        expected = F.mse_loss(reference(batch), teacher(batch))
    assert history[2]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_training_reduces_the_loss_and_leaves_the_weights(teacher, start):
    model = copy.deepcopy(start)
    names = tuple(name for name, _ in teacher.blocks_in_order())
    history = finetuner(teacher, model).run([Phase(names, 80, (IMAGE,))])
    first, last = (sum(r["loss"] for r in part) for part in (history[:4], history[-4:]))
    assert last < 0.8 * first
    found = model.state_dict()
    for key, value in teacher.state_dict().items():
        assert torch.equal(found[key], value), key
    assert all(module.state is QuantState.QUANTIZED for module in quant_modules(model))
    assert history[-1]["images"] == 80


class _Stopped(Exception):
    pass


def other_runs(teacher, start, checkpoint):
    """Runs of the same plan with other images, another image loss, and other bits."""
    batches, config = [torch.cat(lq_images(2, seed=seed)) for seed in (1, 2)], FinetuneConfig(RATES)
    yield Finetuner(teacher, start, batches[::-1], F.mse_loss, config, "test", checkpoint)
    yield finetuner(teacher, start, checkpoint=checkpoint, image_loss="another")
    other = copy.deepcopy(start)
    scheme, only = other.quantization.steps[0]
    other.quantization = replace(other.quantization, steps=((replace(scheme, bits=parse_bits("W3A3")), only),))
    yield finetuner(teacher, other, checkpoint=checkpoint)


def test_interrupted_run_ends_with_the_same_numbers(teacher, start, tmp_path):
    phases = reverse_phases(teacher)
    whole = copy.deepcopy(start)
    expected = finetuner(teacher, whole).run(phases)
    for stop_after in (3, 7):
        calls = []

        def loss(images, targets, calls=calls, stop_after=stop_after):
            calls.append(1)
            if len(calls) > stop_after:
                raise _Stopped
            return F.mse_loss(images, targets)

        with pytest.raises(_Stopped):
            finetuner(teacher, copy.deepcopy(start), loss, tmp_path / "state.pt").run(phases)
    resumed = copy.deepcopy(start)
    history = finetuner(teacher, resumed, checkpoint=tmp_path / "state.pt").run(phases)
    assert [r["loss"] for r in history] == [r["loss"] for r in expected]
    found = resumed.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in whole.state_dict().items())
    with pytest.raises(QartsrError, match="state.pt: belongs to another run"):
        finetuner(teacher, resumed, checkpoint=tmp_path / "state.pt").run(phases[:-1])
    for changed in other_runs(teacher, resumed, tmp_path / "state.pt"):
        with pytest.raises(QartsrError, match="state.pt: belongs to another run"):
            changed.run(phases)
    (tmp_path / "state.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(QartsrError, match="state.pt: damaged, or of another version"):
        finetuner(teacher, resumed, checkpoint=tmp_path / "state.pt").run(phases)


def test_mistakes_are_told_in_one_line(teacher, start):
    model = copy.deepcopy(start)
    with pytest.raises(QartsrError, match="no block 'vae.nothing'"):
        finetuner(teacher, model).run([Phase(("vae.nothing",), 2, (IMAGE,))])
    with pytest.raises(QartsrError, match="loss is not finite after 2 images; use smaller rates"):
        finetuner(teacher, model, lambda a, b: F.mse_loss(a, b) * torch.nan).run(reverse_phases(teacher))
    model = copy.deepcopy(start)
    with pytest.raises(Diverged, match="after 2 images: .* holds NaN or infinity; use smaller rates"):
        finetuner(teacher, model, lambda a, b: (0 * a).abs().sqrt().sum()).run(reverse_phases(teacher, images=2)[:1])
    with pytest.raises(QartsrError, match="no learning rate for parameters of kind 'bounds'"):
        Finetuner(teacher, model, lq_images(1), F.mse_loss, FinetuneConfig((("side", 1.0),)), "test")
    with pytest.raises(QartsrError, match="order 'backwards': choose one of reverse"):
        in_order([], "backwards", 0)
    with pytest.raises(QartsrError, match="loss term 'latent': choose one of"):
        Term("latent")


def test_groups_cover_every_block_once_in_order(teacher):
    groups = block_groups(teacher)
    assert [name for group in groups for name in group] == [name for name, _ in teacher.blocks_in_order()]
    assert in_order(groups, "reverse", 0) == groups[::-1] and in_order(groups, "inference", 0) == groups
    shuffled = in_order(groups, "random", 0)
    assert sorted(shuffled) == sorted(groups) and shuffled not in (groups, groups[::-1])
    assert shuffled == in_order(groups, "random", 0) != in_order(groups, "random", 1)


@pytest.mark.parametrize("shares", [[1] * 9, [5, 0, 3, 8], [2, 2, 2]])
def test_whole_batches_never_exceed_the_plan_by_a_batch(teacher, start, shares):
    run = finetuner(teacher, copy.deepcopy(start))  # two batches of two
    schedule = orders(run, [Phase((), share, (IMAGE,)) for share in shares])
    assert sum(shares) <= 2 * sum(len(order) for order in schedule) < sum(shares) + 2
    for number in range(1, len(shares) + 1):
        assert 0 <= 2 * sum(len(order) for order in schedule[:number]) - sum(shares[:number]) < 2
    (both,) = orders(run, [Phase((), 8, (IMAGE,))])
    assert sorted(both) == [0, 0, 1, 1] and sorted(both[:2]) == [0, 1]  # every image once before any twice


def test_split_is_even_and_complete():
    assert split(10, 4) == [3, 3, 2, 2] and sum(split(7, 9)) == 7


def test_feature_distance(teacher):
    distance = FeatureDistance(teacher.vae.encoder)
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    target = torch.rand(1, 3, 16, 16)
    assert float(distance(images, images.detach()).detach()) == 0.0
    value = distance(images, target)
    assert 0 < float(value.detach()) < 4  # two unit vectors differ by at most 2
    assert float(value.detach()) == pytest.approx(float(distance(target, images.detach())), rel=1e-5)
    value.backward()
    assert float(images.grad.abs().sum()) > 0
    both = perceptual_and_squared(distance)(images.detach(), target)
    squared = F.mse_loss(images.detach(), target)
    assert float(both) == pytest.approx(2 * float(value.detach()) + 4 * float(squared), rel=1e-5)


def test_features_of_a_target_are_computed_once_and_go_with_it(teacher):
    distance, calls = FeatureDistance(teacher.vae.encoder), []
    distance.first.register_forward_hook(lambda *_: calls.append(1))
    images, target = torch.rand(2, 1, 3, 32, 32)
    first = distance(images, target)
    assert torch.equal(distance(images, target), first) and len(calls) == 3
    assert torch.equal(distance(images, target.clone()), first) and len(calls) == 5
    assert len(distance._wanted) == 1


def test_normalized_mse_of_a_constant_guess_is_one():
    target = torch.randn(4, 8, 6, 6)
    guess = torch.full_like(target, float(target.mean()))
    assert float(normalized_mse(guess, target)) == pytest.approx(1.0, rel=1e-2)


def test_flat_crops_count_for_as_much_less_as_they_are_flat():
    crops = [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert weights_of_flat(crops) == [1.0] * 8
    white = 1 - 0.01 * crops[0]
    *textured, flat = weights_of_flat([*crops, white])
    assert textured == [1.0] * 8 and flat == pytest.approx(1e-4 * 32 * 9 / 8, rel=0.05)
    assert weights_of_flat([torch.ones(1, 3, 4, 4)]) == [1.0]


def test_the_loss_of_a_flat_crop_is_small(teacher):
    crops = [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    white = 1 - 1e-3 * torch.rand(1, 3, 16, 16)
    history = METHODS.get("q-dm").build(teacher, "W4A4", [*crops, white], images=9, rate=30).history
    assert sorted(record["loss"] < 0.01 for record in history) == [False] * 8 + [True]


def test_lpips_loss_is_lpips_with_vggs_weights(tmp_path, monkeypatch):
    import torchvision

    from qartsr_lib.images.metrics import weights
    from qartsr_lib.training.finetuning import losses

    torch.manual_seed(0)
    features = torchvision.models.vgg16(weights=None).features
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, tmp_path / "vgg16.pth")
    monkeypatch.setattr(weights, "obtain", lambda file, folder: tmp_path / "vgg16.pth")
    seen = []
    monkeypatch.setattr(losses, "perceptual_and_squared", lambda distance: seen.append(distance) or distance)
    distance = losses.lpips_and_mse(torch.device("cpu"))
    network = distance.network
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(network.net(x).relu3_3, features[:16](x))
    assert seen and float(distance(x, x)) == 0.0 < float(distance(x, torch.rand(1, 3, 32, 32)))
    images, targets = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)
    wanted = network(images * 2.0 - 1.0, targets * 2.0 - 1.0).mean()  # the package's own way
    found = distance(images, targets)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    gradients = [torch.autograd.grad(value, images)[0] for value in (found, wanted)]
    assert torch.allclose(*gradients, atol=1e-7 + 1e-4 * float(gradients[1].abs().max()))
    assert torch.equal(distance(images, targets), found)  # targets are remembered by now


def test_features_of_targets_are_remembered_as_long_as_these_live_and_there_is_room():
    from qartsr_lib.backbones.features import RememberingDistance

    class Counted(RememberingDistance):
        ROOM, calls = 2 * 48 * 4, 0

        def features(self, images):
            self.calls += 1
            return [images * 1.0]

        def between(self, found, wanted):
            return (found[0] - wanted[0]).square().mean()

    distance, image = Counted(), torch.rand(1, 3, 4, 4)
    targets = [torch.rand(1, 3, 4, 4) for _ in range(3)]
    values = [distance(image, target) for target in targets]
    assert distance.calls == 6 and [distance(image, target) for target in targets] == values
    assert distance.calls == 6 + 3 + 1, "there is room for two"
    del targets[0]
    gc.collect()
    distance(image, targets[1])
    before = distance.calls
    distance(image, targets[1])
    assert distance.calls == before + 1, "the room of the one that is gone is used again"


def test_lpips_loss_without_weights_is_told_in_one_line(monkeypatch):
    from qartsr_lib.images.metrics import weights
    from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES

    monkeypatch.setattr(weights, "locate", lambda file, folder: None)
    monkeypatch.setattr(weights, "reachable", lambda: False)
    with pytest.raises(QartsrError, match=r"lpips\+mse: weights not found: put vgg16.* or choose vae-features"):
        IMAGE_LOSSES.get("lpips+mse")(torch.device("cpu"))


def test_a_gpus_checkpoint_is_continued_on_a_cpu(teacher, start, tmp_path, monkeypatch):
    phases = reverse_phases(teacher)[:2]
    first = finetuner(teacher, copy.deepcopy(start), checkpoint=tmp_path / "state.pt")
    with monkeypatch.context() as patch:  # the file says what one that a GPU wrote does
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        history = first.run(phases)
    again = finetuner(teacher, copy.deepcopy(start), checkpoint=tmp_path / "state.pt")
    assert again.run(phases) == history
    ours, theirs = again.optimizer.state, first.optimizer.state
    assert len(ours) == len(theirs) > 0
    for (one, state), (other, expected) in zip(ours.items(), theirs.items(), strict=True):
        assert torch.equal(one, other) and all(value.device.type == "cpu" for value in state.values())
        assert state["step"] == expected["step"] > 0 and torch.equal(state["exp_avg"], expected["exp_avg"])


def test_a_resumed_run_draws_on_and_keeps_buffers(teacher, start, tmp_path):
    """A method may draw numbers in its layers or keep running statistics: after a break they go on where they were."""
    phases, stopped = reverse_phases(teacher), 3

    def run(model, checkpoint=None, stop=None):
        model.register_buffer("seen", torch.zeros(()))
        calls = []

        def loss(images, targets):
            calls.append(1)
            if len(calls) == stop:
                raise _Stopped
            model.seen += torch.rand(())
            return F.mse_loss(images, targets) * (1 + model.seen)

        return finetuner(teacher, model, loss, checkpoint).run(phases)

    torch.manual_seed(5)
    whole = copy.deepcopy(start)
    expected = run(whole)
    torch.manual_seed(5)
    with pytest.raises(_Stopped):
        run(copy.deepcopy(start), tmp_path / "state.pt", stopped + 1)
    torch.manual_seed(6)
    resumed = copy.deepcopy(start)
    history = run(resumed, tmp_path / "state.pt")
    assert [record["loss"] for record in history] == [record["loss"] for record in expected]
    assert torch.equal(resumed.seen, whole.seen)
