"""Language models from their artifacts: precision, adapters folded in, tokenizers, and what is said of a bad folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from registry.artifacts import ADAPTER, WEIGHTS, Artifact
from registry.language_models import (
    LanguageModel,
    context_length,
    load_language_model,
    load_tokenizer,
    own_precision,
    root,
)
from registry.models import fact
from specs.models import Model
from specs.problems import UserError
from specs.training import SFT

IDS = torch.tensor([[40, 41, 42, 1, 0, 77, 260, 12]])


def model(folder: Path, precision: str = "fp32", **fields: Any) -> Artifact:
    payload = {"spec": {}, "facts": {"precision": precision}}
    return Artifact("base", Model(source=str(folder), **fields), payload, fingerprint="base")


def trained(below: Artifact, folder: Path) -> Artifact:
    entry = SFT.model_validate({"do": "sft", "from": below.name, "data": "rows"})
    return Artifact(
        f"on-{below.name}", entry, {"spec": {}}, f"on-{below.fingerprint}", folder=folder, inputs={"from": (below,)}
    )


def adapter(causal: Any, folder: Path, seed: int, scale: float = 1.0) -> Any:
    """Writes an adapter that does something, and gives the model with it beside the weights."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(causal, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data *= scale
    adapted.save_pretrained(folder / ADAPTER)
    return adapted.eval()


def outputs(causal: Any) -> torch.Tensor:
    with torch.inference_mode():
        return causal(IDS.to(causal.device)).logits.float().cpu()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_model_is_loaded_in_the_precision_its_source_names(folder: Path, precision: str, dtype: torch.dtype) -> None:
    loaded = load_language_model(model(folder, precision))
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    assert loaded.precision == precision
    assert not loaded.model.training
    stored = load_file(folder / "model.safetensors")
    for name, weight in stored.items():
        assert torch.equal(loaded.model.get_parameter(name).cpu(), weight.to(dtype))


def test_a_precision_that_is_asked_for_wins(folder: Path) -> None:
    loaded = load_language_model(model(folder, "bf16"), precision="fp32")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.precision == "fp32"


def test_a_merged_adapter_equals_the_adapter_beside_the_weights(folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = outputs(base)
    beside = outputs(adapter(base, tmp_path, seed=1))
    merged = load_language_model(trained(model(folder), tmp_path)).model
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(outputs(merged), beside, atol=1e-4, rtol=1e-4)
    assert (beside - plain).abs().max() > 1


def test_adapters_upon_adapters_are_all_folded_in(folder: Path, tmp_path: Path) -> None:
    first = adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "1", seed=1)
    one = outputs(first)
    both = outputs(adapter(first.merge_and_unload(), tmp_path / "2", seed=2))
    below = trained(model(folder), tmp_path / "1")
    above = trained(below, tmp_path / "2")
    torch.testing.assert_close(outputs(load_language_model(above).model), both, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs(load_language_model(below).model), one, atol=1e-4, rtol=1e-4)
    assert (both - one).abs().max() > 1
    assert root(above).name == "base"
    assert own_precision(above) == "fp32"


def test_beside_bf16_weights_an_adapter_does_what_it_did_in_training(folder: Path, tmp_path: Path) -> None:
    """Nothing of it is rounded away: updates of this size would lose most of themselves in bf16 weights."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    plain = outputs(base)
    small = adapter(base, tmp_path, seed=1, scale=2**-10)
    with torch.autocast("cpu", torch.bfloat16):
        as_trained = outputs(small)
    loaded = load_language_model(trained(model(folder, "bf16"), tmp_path)).model
    assert torch.equal(outputs(loaded), as_trained)
    assert not torch.equal(as_trained, plain)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(loaded.get_parameter(name).cpu(), weight.bfloat16())


def test_adapters_upon_adapters_lie_beside_bf16_weights(folder: Path, tmp_path: Path) -> None:
    first = adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "1", seed=1).merge_and_unload()
    both = outputs(adapter(first, tmp_path / "2", seed=2))
    above = trained(trained(model(folder, "bf16"), tmp_path / "1"), tmp_path / "2")
    apart = outputs(load_language_model(above).model) - both
    assert float(apart.norm() / both.norm()) < 0.02  # what bf16 rounds


def test_training_goes_on_above_adapters_that_lie_beside_the_weights(folder: Path, tmp_path: Path) -> None:
    adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "1", seed=1)
    start = load_language_model(trained(model(folder, "bf16"), tmp_path / "1")).model
    before = outputs(start)
    further = peft.get_peft_model(start, peft.LoraConfig(r=4, target_modules="all-linear"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(outputs(further.eval()), before)
        further(IDS, labels=IDS).loss.backward()
    learning = [p.grad for name, p in further.named_parameters() if "lora_B" in name]
    assert len(learning) == 14 and all(grad is not None and grad.any() for grad in learning)


def test_a_stage_that_trained_all_weights_brings_its_own(folder: Path, tmp_path: Path) -> None:
    other = tiny.language_model(tmp_path / "sft" / WEIGHTS, seed=7)
    found = load_language_model(trained(model(folder, "bf16"), tmp_path / "sft"))
    expected = AutoModelForCausalLM.from_pretrained(other, dtype=torch.bfloat16)
    assert torch.equal(outputs(found.model), outputs(expected))
    # Its tokenizer, template and precision are those of the model at the bottom.
    assert found.precision == "bf16"
    assert found.tokenizer.chat_template == tiny.CHAT
    # An adapter on top of it is an adapter on those weights.
    beside = outputs(adapter(AutoModelForCausalLM.from_pretrained(other), tmp_path / "up", seed=3))
    above = trained(trained(model(folder), tmp_path / "sft"), tmp_path / "up")
    torch.testing.assert_close(outputs(load_language_model(above).model), beside, atol=1e-4, rtol=1e-4)


def test_every_token_that_may_end_an_answer_ends_it(folder: Path) -> None:
    loaded = load_language_model(model(folder))
    for configured, expected in ((None, (1,)), (7, (1, 7)), ([9, 7, 1], (1, 7, 9))):
        loaded.model.generation_config = GenerationConfig(eos_token_id=configured)
        assert LanguageModel(loaded.model, loaded.tokenizer, "fp32").eos_ids == expected
    loaded.tokenizer.eos_token = None
    assert LanguageModel(loaded.model, loaded.tokenizer, "fp32").eos_ids == (1, 7, 9)


def test_the_context_is_the_models_own(folder: Path) -> None:
    assert context_length(load_language_model(model(folder)).model) == 512


def test_a_missing_folder_and_one_that_is_no_model_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(UserError, match=rf"^base: cannot be loaded from {place}: ") as caught:
            load_language_model(model(place))
        assert "\n" not in str(caught.value)


def test_broken_weights_are_one_line(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match=rf"^base: cannot be loaded from {copy}: ") as caught:
        load_language_model(model(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("instead", [torch.ones(7), None])
def test_weights_that_do_not_fit_the_configuration_are_named(
    folder: Path, tmp_path: Path, instead: torch.Tensor | None
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors") | {"model.norm.weight": instead}
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"^base: its weights do not fit .*such as `model\.norm\.weight`") as caught:
        load_language_model(model(copy))
    assert "\n" not in str(caught.value)


def test_no_pickle_is_read_whatever_lies_there(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    load_language_model(model(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^base: cannot be loaded .*safetensors"):
        load_language_model(model(copy))


def test_an_adapter_in_the_folder_does_not_bring_another_model_in(folder: Path, tmp_path: Path) -> None:
    copy, other = shutil.copytree(folder, tmp_path / "copy"), tiny.language_model(tmp_path / "other", seed=9)
    adapter(AutoModelForCausalLM.from_pretrained(other), tmp_path, seed=1)
    shutil.copytree(tmp_path / ADAPTER, copy, dirs_exist_ok=True)
    with pytest.raises(UserError, match="holds an adapter"):
        load_language_model(model(copy))


def test_a_folder_called_as_a_hub_model_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.language_model(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    found = fact(Model(source="org/model", revision="0" * 40), tmp_path, gpus=0, offline=False)
    assert found.problem is not None and "`org/model` is also a folder here" in found.problem


def test_code_that_a_model_brings_is_not_run(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = (copy / "config.json").read_text()
    auto = '"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Own"}, "model_type": "own"'
    (copy / "config.json").write_text(config.replace('"model_type": "llama"', auto))
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Own: ...\n")
    with pytest.raises(UserError, match=r"^base: cannot be loaded"):
        load_language_model(model(copy))
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_needs_a_chat_template_or_a_named_one(tmp_path: Path) -> None:
    bare = tiny.language_model(tmp_path / "bare", chat_template=None)
    with pytest.raises(UserError, match=r"^models\.base: its tokenizer has no chat template; add `template: hh`"):
        load_tokenizer(model(bare))
    assert "Human:" in load_tokenizer(model(bare, template="hh")).chat_template


def test_a_named_padding_token_must_be_one_of_the_tokenizers(tmp_path: Path) -> None:
    without = tiny.language_model(tmp_path / "without", pad=False)
    assert load_tokenizer(model(without, pad_token="<pad>")).pad_token_id == 0
    with pytest.raises(UserError, match=r"^models\.base\.pad_token: `<none>` is not one of its tokenizer's tokens$"):
        load_tokenizer(model(without, pad_token="<none>"))


def test_an_answer_ends_where_the_template_ends_it_too(tmp_path: Path) -> None:
    """As of base models whose tokenizer ends texts otherwise than its chat template ends turns."""
    tiny.language_model(tmp_path, eos_token_id=4)
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "<|system|>"
    tokenizer.save_pretrained(tmp_path)
    assert load_language_model(model(tmp_path)).eos_ids == (1, 4)


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m['content'] }}\n{% endfor %}", None])
def test_a_template_without_a_special_end_adds_none(tmp_path: Path, template: str | None) -> None:
    tiny.language_model(tmp_path)
    tiny.tokenizer(chat_template=template).save_pretrained(tmp_path)
    assert load_language_model(model(tmp_path)).eos_ids == (1,)
