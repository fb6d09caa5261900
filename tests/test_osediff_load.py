"""Loading OSEDiff: merge against an unmerged forward, every key used, a kept copy, and one clear line for bad files."""

import dataclasses
import json
import shutil
import warnings
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from osediff_stand_in import checkpoint, tiny_networks, write_base, write_checkpoint, write_weights
from safetensors.torch import load_file, save_file
from torch import nn

from qartsr_lib.backbones import load_backbone, osediff
from qartsr_lib.backbones.osediff_checkpoint import read_checkpoint
from qartsr_lib.backbones.osediff_files import load_tensors
from qartsr_lib.base.errors import QartsrError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def base(weights):
    return weights / "stable-diffusion-2-1-base"


@pytest.fixture
def file(weights):
    return weights / "osediff" / "osediff.pkl"


def load(base, file, timestep=None, **options):
    return load_backbone("osediff", timestep, base=base, osediff=file, **options)


def same(model, other):
    """Whether two models have the same tensors, bit by bit."""
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def unmerged(content, scale):
    """UNet and VAE with hooks that add scale B(A(x)) behind every adapted layer: LoRA by its definition."""
    unet, vae = tiny_networks()
    state = content["state_dict_unet"]
    unet.conv_in.load_state_dict({key: state[f"conv_in.base_layer.{key}"] for key in ("weight", "bias")})
    for network, tensors in ((unet, state), (vae, content["state_dict_vae"])):
        for key, a in tensors.items():
            if ".lora_A." not in key:
                continue
            name, b = key.split(".lora_A.")[0], tensors[key.replace("lora_A", "lora_B")]
            network.get_submodule(name).register_forward_hook(_branch(a, b, scale))
    return unet, vae


def _branch(a, b, scale):
    def hook(layer, inputs, output):
        (x,) = inputs
        if isinstance(layer, nn.Linear):
            return output + scale * F.linear(F.linear(x, a), b)
        return output + scale * F.conv2d(F.conv2d(x, a, None, layer.stride, layer.padding), b)

    return hook


def inputs():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(1, 3, 64, 48, generator=generator) * 2 - 1, torch.randn(1, 4, 8, 16, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize(("rank", "scale"), [(4, 2.0), (2, 4.0)])
def test_merged_forward_equals_the_unmerged_one(home, base, tmp_path, rank, scale):
    content = checkpoint(rank)
    model = load(base, write_checkpoint(tmp_path / "osediff.pkl", content))
    unet, vae = unmerged(content, scale)
    image, latent = inputs()
    for ours, theirs in (
        (model.unet(latent, 999, model.prompt_embedding).sample, unet(latent, 999, model.prompt_embedding).sample),
        (model.vae.encode(image).latent_dist.mode(), vae.encode(image).latent_dist.mode()),
        (model.vae.decode(latent).sample, vae.decode(latent).sample),
    ):
        assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))
    plain, _ = tiny_networks()
    assert not torch.allclose(plain(latent, 999, model.prompt_embedding).sample, ours_unet(model, latent), atol=1e-2)


def ours_unet(model, latent):
    return model.unet(latent, 999, model.prompt_embedding).sample


@torch.no_grad()
def test_merged_forward_equals_pefts(home, base, file):
    peft = pytest.importorskip("peft")
    content, model = checkpoint(), load(base, file)
    unet, _ = tiny_networks()
    for part in ("encoder", "decoder", "others"):
        targets = content[f"unet_lora_{part}_modules"]
        config = peft.LoraConfig(r=content["rank_unet"], init_lora_weights="gaussian", target_modules=targets)
        peft.inject_adapter_in_model(config, unet, adapter_name=f"default_{part}")
    names = {name for name, _ in unet.named_parameters() if "lora" in name or "conv_in" in name}
    assert names == set(content["state_dict_unet"])  # the stand-in's keys are PEFT's
    unet.load_state_dict(content["state_dict_unet"], strict=False)
    for layer in unet.modules():
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            layer.set_adapter([f"default_{part}" for part in ("encoder", "decoder", "others")])
    _, latent = inputs()
    theirs = unet(latent, 999, model.prompt_embedding).sample
    assert torch.allclose(ours_unet(model, latent), theirs, atol=1e-5 * float(theirs.abs().max()))


@torch.no_grad()
def test_every_key_of_the_file_changes_its_layer_alone(file):
    plain, base = read_checkpoint(file), tiny_networks()
    for place, (name, tensors) in enumerate(plain.tensors.items()):
        assert tensors.keys() == checkpoint()[f"state_dict_{name}"].keys()
        expected = applied(plain, base)[place]
        for key in [*sorted(tensors)[::9], *(key for key in tensors if "base_layer" in key)]:
            other = dataclasses.replace(plain, tensors=plain.tensors | {name: tensors | {key: tensors[key] + 1}})
            changed = {
                parameter
                for parameter, value in applied(other, base)[place].items()
                if not torch.equal(value, expected[parameter])
            }
            layer = key.split(".lora_")[0] + ".weight" if ".lora_" in key else key.replace(".base_layer.", ".")
            assert changed == {layer}


def applied(read, base):
    networks = deepcopy(base)
    read.apply_(*networks)
    return [network.state_dict() for network in networks]


def test_second_start_reads_the_kept_copy(home, base, file, monkeypatch):
    first = load(base, file)
    for name in ("load_network", "read_checkpoint", "embed_prompt", "sha256"):
        monkeypatch.setattr(osediff, name, lambda *_, name=name: pytest.fail(name))
    second = load(base, file, 1000)
    assert same(first, second)
    assert first.weights_sha256 == second.weights_sha256


def test_kept_copy_belongs_to_its_sources_and_damage_heals(home, base, file, tmp_path):
    first = load(base, file)
    other = checkpoint(seed=9)
    changed = load(base, write_checkpoint(tmp_path / "other.pkl", other))
    assert changed.weights_sha256 != first.weights_sha256
    assert not torch.equal(changed.unet.conv_in.weight, first.unet.conv_in.weight)
    copies = kept_networks(home)
    assert len(copies) == 2
    for copy in copies:
        copy.write_bytes(copy.read_bytes()[:1000])
    assert torch.equal(load(base, file).unet.conv_in.weight, first.unet.conv_in.weight)
    assert not list((home / ".cache/osediff").glob(".*"))


def kept_networks(home):
    """The copies but for those of the prompt's embedding."""
    return [path for path in (home / ".cache/osediff").glob("*.safetensors") if path.stat().st_size > 50_000]


def test_kept_copy_belongs_to_the_files_that_are_read_not_to_others_beside_them(home, base, file, tmp_path):
    other = tmp_path / "base"
    shutil.copytree(base, other)
    whole = other / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    torch.save(state, whole.with_suffix(".bin"))
    whole.rename(whole.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    first = load(other, file)
    torch.save({key: tensor + 0.01 for key, tensor in state.items()}, whole.with_suffix(".bin"))
    second = load(other, file)
    assert not same(first, second) and first.weights_sha256 != second.weights_sha256


def test_full_disk_costs_the_copy_only(home, base, file, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(osediff, "save_file", full)
    with pytest.warns(UserWarning, match="could not be kept: .*the disk is full"):
        model = load(base, file)
    assert model.timestep == 1000 and not list((home / ".cache/osediff").glob("*"))


def test_prompts_are_embedded_once_and_differ(home, base, file, monkeypatch):
    empty, cat = load(base, file), load(base, file, prompt="cat, grass")
    assert empty.prompt_embedding.shape == cat.prompt_embedding.shape == (1, 77, 16)
    assert not torch.equal(empty.prompt_embedding, cat.prompt_embedding)
    assert empty.weights_sha256 != cat.weights_sha256
    monkeypatch.setattr("qartsr_lib.backbones.osediff.embed_prompt", lambda *_: pytest.fail("embedded again"))
    assert torch.equal(load(base, file, prompt="cat, grass").prompt_embedding, cat.prompt_embedding)


def test_empty_prompt_is_padded_as_the_tokenizer_says(home, base, file):
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
    begin, end = encoder.config.bos_token_id, encoder.config.eos_token_id
    with torch.no_grad():
        expected = encoder(torch.tensor([[begin, end] + [0] * 75])).last_hidden_state
    assert torch.allclose(load(base, file).prompt_embedding, expected, atol=1e-6)


def test_without_text_encoder_passionsrs_embedding_serves_the_empty_prompt(home, tmp_path):
    base = write_base(tmp_path / "base", text_encoder=False)
    file = write_checkpoint(tmp_path / "osediff.pkl")
    with pytest.raises(QartsrError, match="text_encoder: missing, the prompt cannot be embedded"):
        load(base, file)
    embedding = torch.randn(77, 16)
    torch.save(embedding, tmp_path / "empty_context_embedding.pt")
    first = load(base, file)
    assert torch.equal(first.prompt_embedding[0], embedding)
    torch.save(embedding + 1, tmp_path / "empty_context_embedding.pt")
    assert load(base, file).weights_sha256 != first.weights_sha256, "another embedding makes other pictures"
    with pytest.raises(QartsrError, match="the prompt cannot be embedded"):
        load(base, file, prompt="cat")
    for wrong in (torch.randn(77, 8), torch.randn(2, 77, 16)):
        torch.save(wrong, tmp_path / "empty_context_embedding.pt")
        with pytest.raises(QartsrError, match="no text embedding of width 16"):
            load(base, file)
    torch.save(embedding.fill_(torch.nan), tmp_path / "empty_context_embedding.pt")
    with pytest.raises(QartsrError, match="empty_context_embedding.pt: embedding holds NaN or infinity; get it again"):
        load(base, file)


def test_another_text_encoder_is_another_model(home, tmp_path):
    file = write_checkpoint(tmp_path / "osediff.pkl")
    base = write_base(tmp_path / "base")
    first = load(base, file)
    again = load(base, file)
    (weights,) = (base / "text_encoder").glob("*.safetensors")
    state = load_file(weights)
    key = next(name for name in state if name.endswith("token_embedding.weight"))
    save_file(state | {key: state[key] + 1}, weights, {"format": "pt"})
    other = load(base, file)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert not torch.equal(first.prompt_embedding, other.prompt_embedding)


def test_default_places_and_timesteps(home, weights, base, file, tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_WEIGHTS", str(weights))
    assert load_backbone("osediff", 1000).timestep == 1000
    with pytest.raises(QartsrError, match=r"osediff-T0001.pkl: no such weights; train it with"):
        load_backbone("osediff", 1)
    with pytest.raises(QartsrError, match="was trained at T = 1000, not at T = 1; choose --timestep 1000"):
        load(base, file, 1)
    retrained = write_checkpoint(tmp_path / "mine.pkl", checkpoint() | {"qartsr": {"timestep": 1}})
    for _ in range(2):  # from the sources, from the kept copy
        assert load(base, retrained).timestep == load(base, retrained, 1).timestep == 1
        with pytest.raises(QartsrError, match="was trained at T = 1, not at T = 500"):
            load(base, retrained, 500)


def drop(entry, key):
    return lambda content: content[entry].pop(key)


def put(entry, key, value):
    return lambda content: content[entry].__setitem__(key, value)


def swap(content):
    content["rank_unet"] = 8


DOWN = "down_blocks.0.resnets.0.conv1"
FACTOR = f"{DOWN}.lora_B.default_encoder.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("state_dict_unet", FACTOR), f"{FACTOR} is missing"),
        (drop("state_dict_unet", "conv_in.base_layer.bias"), "conv_in.base_layer.bias is missing"),
        (
            drop("state_dict_vae", "quant_conv.lora_A.default_encoder.weight"),
            "quant_conv.lora_A.default_encoder.weight is missing",
        ),
        (
            put("state_dict_unet", "conv_in.extra", torch.ones(1)),
            "conv_in.extra is in no layer of the base model's unet",
        ),
        (
            put("state_dict_unet", FACTOR, torch.ones(8, 3, 1, 1)),
            f"{FACTOR} is (8, 3, 1, 1) in the file, but for rank 4",
        ),
        (put("state_dict_unet", FACTOR, torch.ones(9, 4, 1, 1)), f"{FACTOR} is (9, 4, 1, 1) in the file"),
        (put("state_dict_unet", FACTOR, torch.full((8, 4, 1, 1), torch.nan)), f"{FACTOR} holds NaN or infinity"),
        (put("state_dict_unet", "conv_in.lora_magnitude", torch.ones(1)), "conv_in.lora_magnitude is in no layer"),
        (put("state_dict_unet", f"{DOWN}.lora_A.second.weight", torch.ones(1)), "more than one adapter"),
        (put("state_dict_vae", "quant_conv.weight", [1.0]), "quant_conv.weight'] is no tensor"),
        (swap, "but for rank 8 and the base model's unet it has to be (8,"),
        (lambda c: c.pop("state_dict_vae"), "entry 'state_dict_vae' is missing"),
        (lambda c: c.update(optimizer={}), "unknown entry 'optimizer'"),
        (lambda c: c.update(qartsr={"timestep": "one"}), "entry 'qartsr' is damaged"),
    ],
)
def test_wrong_content_is_one_line_that_names_the_key(home, base, tmp_path, change, words):
    content = checkpoint()
    change(content)
    file = write_checkpoint(tmp_path / "osediff.pkl", content)
    with pytest.raises(QartsrError) as raised:
        load(base, file)
    assert words in str(raised.value) and str(file) in str(raised.value) and "\n" not in str(raised.value)


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_run_code_are_refused_and_not_run(home, base, tmp_path, zipped):
    content, mark = checkpoint() | {"rank_vae": Malicious(tmp_path / "ran")}, tmp_path / "ran"
    torch.save(content, tmp_path / "osediff.pkl", _use_new_zipfile_serialization=zipped)
    with pytest.raises(QartsrError, match="osediff.pkl: refused, the file asks for code to be run"):
        load(base, tmp_path / "osediff.pkl")
    assert not mark.exists()


LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 9\n"
)
#: What is found in the place of weights, by what is said of it.
IN_PLACE_OF_WEIGHTS = [
    (lambda data: data[: len(data) // 2], "damaged"),
    (lambda data: data[:100], "damaged"),
    (lambda data: bytes(reversed(data)), "damaged"),
    (lambda data: b"", "empty"),
    (lambda data: LFS_POINTER, "Git LFS pointer"),
    (lambda data: b"\n<!DOCTYPE html>\n<html>not found</html>", "web page"),
    (lambda data: "\ufeff<html><title>Übersicht</title>".encode(), "web page"),
    (lambda data: b"Invalid username or password.", "text in place of the weights ('Invalid username or password.')"),
]


@pytest.mark.parametrize(("spoil", "words"), IN_PLACE_OF_WEIGHTS)
def test_truncated_and_corrupt_files(home, base, file, tmp_path, spoil, words):
    (tmp_path / "osediff.pkl").write_bytes(spoil(file.read_bytes()))
    with pytest.raises(QartsrError) as raised:
        load(base, tmp_path / "osediff.pkl")
    assert words in str(raised.value) and "osediff.pkl: " in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(("spoil", "words"), IN_PLACE_OF_WEIGHTS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_base_files_that_are_none(tmp_path, spoil, words, name):
    state = {"a": torch.ones(100)}
    (save_file if name.endswith("s") else torch.save)(state, tmp_path / name)
    (tmp_path / name).write_bytes(spoil((tmp_path / name).read_bytes()))
    with pytest.raises(QartsrError) as raised:
        load_tensors(tmp_path / name)
    assert words in str(raised.value) and name in str(raised.value) and "\n" not in str(raised.value)


def _safetensors(folder):
    return next(folder.glob("*.safetensors"))


def _rewrite(folder, change):
    state = load_file(_safetensors(folder))
    save_file(change(state) or state, _safetensors(folder))


def missing_key(folder):
    _rewrite(folder, lambda state: {key: state[key] for key in sorted(state)[1:]})


def extra_key(folder):
    _rewrite(folder, lambda state: state | {"other": torch.ones(1)})


def _shard(folder):
    """Cut the weights in two by diffusers; returns the second part."""
    network = AutoencoderKL.from_pretrained(folder)
    _safetensors(folder).unlink()
    network.save_pretrained(folder, max_shard_size=f"{sum(p.numel() for p in network.parameters()) * 3 // 1000}KB")
    assert len(list(folder.glob("*.safetensors"))) == 2
    return max(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("part", "spoil", "words"),
    [
        ("unet", missing_key, "Missing key(s) in state_dict"),
        (
            "unet",
            extra_key,
            'Unexpected key(s) in state_dict: "other"',
        ),
        ("unet", lambda f: _rewrite(f, lambda state: state["conv_in.bias"].__setitem__(1, torch.nan)), "conv_in.bias"),
        ("vae", lambda f: _safetensors(f).write_bytes(b"\0" * 100), "damaged"),
        ("vae", lambda f: _safetensors(f).write_bytes(LFS_POINTER), "Git LFS pointer"),
        (
            "vae",
            lambda f: _safetensors(f).rename(f / "mine.safetensors"),
            "holds no diffusion_pytorch_model.safetensors or",
        ),
        ("vae", lambda f: _shard(f).unlink(), "00002-of-00002.safetensors: missing, though"),
        ("unet", lambda f: (f / "config.json").unlink(), "config.json: missing"),
        ("scheduler", lambda f: _edit(f, prediction_type="v_prediction"), "prediction_type is 'v_prediction'"),
        ("unet", lambda f: (f / "config.json").write_text('{"block_out_channels": 7}'), "config.json: no UNet2D"),
        (
            "unet",
            lambda f: _rewrite(f, lambda state: state.update({"conv_in.bias": torch.ones(3)})),
            "size mismatch for conv_in.bias",
        ),
        ("text_encoder", lambda f: _safetensors(f).write_bytes(b"<html>"), "model.safetensors: a web page"),
        ("tokenizer", lambda f: (f / "vocab.json").write_bytes(b"x"), "text_encoder or tokenizer is damaged"),
        ("text_encoder", shutil.rmtree, "text_encoder: missing"),
    ],
)
def test_wrong_base_models(home, base, file, tmp_path, part, spoil, words):
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    spoil(copy / part)
    with pytest.raises(QartsrError) as raised:
        load(copy, file)
    assert words in str(raised.value) and str(copy) in str(raised.value) and "\n" not in str(raised.value)


def _edit(folder, **changes):
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def older_names(state):
    """Stable Diffusion 2.1-base's own files have query, key, value and proj_attn."""
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for key, value in state.items()}
    return state


def old_and_sharded(base):
    _shard(base / "vae")
    index = base / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": older_names(json.loads(index.read_text())["weight_map"])}))
    for part in (base / "vae").glob("*.safetensors"):
        save_file(older_names(load_file(part)), part)


def pickled(base):
    for part, name in (("text_encoder", "pytorch_model"), ("vae", "diffusion_pytorch_model")):
        torch.save(load_file(_safetensors(base / part)), base / part / f"{name}.bin")
        _safetensors(base / part).unlink()


def of_data_parallel(base):
    _rewrite(base / "unet", lambda state: {f"module.{key}": value for key, value in state.items()})


@pytest.mark.parametrize(
    "change",
    [lambda base: _rewrite(base / "vae", older_names), old_and_sharded, pickled, of_data_parallel],
    ids=["older names", "older names in two parts", "pickles", "DataParallel"],
)
def test_other_layouts_of_the_base_are_the_same_model(home, base, file, tmp_path, change):
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    change(copy)
    for _ in range(2):  # from the sources, from the kept copy
        assert same(load(copy, file), load(base, file))


def test_osediff_file_of_data_parallel(home, base, file, tmp_path):
    content = checkpoint()
    for entry, value in content.items():
        if isinstance(value, dict):
            content[entry] = {f"module.{key}": tensor for key, tensor in value.items()}
        elif isinstance(value, list):
            content[entry] = [f"module.{name}" for name in value]
    assert same(load(base, write_checkpoint(tmp_path / "osediff.pkl", content)), load(base, file))


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_half_precision_is_used_and_said_once(home, base, file, tmp_path, variant):
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    for part in ("unet", "vae", "text_encoder"):
        whole = _safetensors(copy / part)
        half = {key: value.half() for key, value in load_file(whole).items()}
        whole.unlink()
        save_file(half, whole.with_name(f"{whole.stem}{variant}.safetensors"))
    with pytest.warns(UserWarning) as caught:
        ours = load(copy, file)
    said = [str(one.message) for one in caught if "stored as float16; used in float32" in str(one.message)]
    assert len(said) == 3 and all(str(copy / part) in "".join(said) for part in ("unet", "vae", "text_encoder"))
    bias = "decoder.conv_in.bias"
    assert ours.vae.state_dict()[bias].dtype == torch.float32
    assert torch.equal(ours.vae.state_dict()[bias], load(base, file).vae.state_dict()[bias].half().float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(copy, file)  # the kept copy is float32


def test_half_precision_of_osediffs_file_is_said(home, base, tmp_path):
    content = checkpoint()
    content["state_dict_vae"] = {key: value.bfloat16() for key, value in content["state_dict_vae"].items()}
    with pytest.warns(UserWarning, match="osediff.pkl: stored as bfloat16; used in float32"):
        load(base, write_checkpoint(tmp_path / "osediff.pkl", content))


def test_pickles_of_the_text_encoder_are_not_run(home, base, file, tmp_path):
    copy, mark = tmp_path / "base", tmp_path / "ran"
    shutil.copytree(base, copy)
    torch.save({"a": Malicious(mark)}, copy / "text_encoder" / "pytorch_model.bin")
    _safetensors(copy / "text_encoder").unlink()
    with pytest.raises(QartsrError, match="pytorch_model.bin: refused, the file asks for code to be run"):
        load(copy, file)
    assert not mark.exists()


def test_base_that_is_nowhere(home, file, tmp_path):
    with pytest.raises(QartsrError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere", file)
    with pytest.raises(QartsrError, match="--base nobody/nothing: neither a folder here nor to be had from the hub"):
        load("nobody/nothing", file)
