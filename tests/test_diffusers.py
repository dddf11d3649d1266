"""``from_pretrained`` of diffusers on folders that deepcabac compressed: a U-Net, a VAE, and a pipeline of them."""

from __future__ import annotations

import json

import pytest

import deepcabac

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.12")
diffusers = pytest.importorskip("diffusers")

import deepcabac.diffusers  # noqa: E402 - only with diffusers

diffusers.logging.set_verbosity_error()
BLOCKS = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8}


def unet():
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(sample_size=16, down_block_types=down, up_block_types=up, **BLOCKS)


def vae():
    torch.manual_seed(1)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(sample_size=16, **kinds, **BLOCKS)


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("shards", [None, "200KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("make", [unet, vae])
def test_a_folder_loads_like_the_restored_one_and_is_saved_as_a_plain_one(tmp_path, make, shards):
    model = make()
    model.save_pretrained(tmp_path / "plain", **({"max_shard_size": shards} if shards else {}))
    report = deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers")
    assert report.notes == [] and report.file_bytes < 0.3 * report.raw_bytes
    kind = type(model)
    loaded, info = kind.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    deepcabac.decompress_folder(tmp_path / "small", tmp_path / "back")
    assert same(loaded, kind.from_pretrained(tmp_path / "back"))
    half = kind.from_pretrained(tmp_path / "small", torch_dtype=torch.float16)
    assert same(half, kind.from_pretrained(tmp_path / "back", torch_dtype=torch.float16))
    loaded.save_pretrained(tmp_path / "again")
    assert not json.loads((tmp_path / "again" / "config.json").read_text()).get("quantization_config")
    assert same(loaded, kind.from_pretrained(tmp_path / "again"))


def test_a_pipeline_of_parts(tmp_path):
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "plain")
    deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers", lossless=True)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path / "small")
    assert same(loaded.unet, pipeline.unet)
    assert (tmp_path / "small" / "scheduler" / "scheduler_config.json").exists()


def test_damage_is_an_error(tmp_path):
    unet().save_pretrained(tmp_path / "plain")
    deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers")
    path = tmp_path / "small" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(deepcabac.DamagedFileError):
        diffusers.UNet2DModel.from_pretrained(tmp_path / "small")
