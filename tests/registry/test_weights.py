"""Model folders are looked at before torch is: each fault is one line with its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from registry.models import fact
from registry.weights import folder_digest, folder_problem, safetensors_problem
from specs.models import Model


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in good.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def problem(folder: Path, **options: str) -> str | None:
    return folder_problem(folder, head="ForCausalLM", **options)


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text())
    settings.update(changes)
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def test_a_good_folder_has_no_problem(folder: Path) -> None:
    assert problem(folder) is None


def test_a_missing_folder_mentions_what_a_hub_id_needs(tmp_path: Path) -> None:
    assert "a hub id also needs `revision:`" in str(problem(tmp_path / "none"))


def test_a_file_a_folder_without_config_and_a_broken_config_are_told(folder: Path) -> None:
    assert "is a file; name the folder" in str(problem(folder / "config.json"))
    (folder / "config.json").write_text("{")
    assert "is not JSON" in str(problem(folder))
    (folder / "config.json").unlink()
    assert "holds no `config.json`" in str(problem(folder))


def test_another_architecture_is_refused_by_name(folder: Path) -> None:
    edit(folder / "config.json", architectures=["BertForMaskedLM"])
    assert problem(folder) == "its architecture is BertForMaskedLM; this takes one that ends in ForCausalLM"


def test_code_that_comes_with_a_model_is_refused(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModel": "evil.Model"})
    assert "code from a model folder is never run" in str(problem(folder))


def test_pickled_weights_are_refused_with_the_reason(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert problem(folder) == "its weights are pickled, and unpickling runs code; save them as safetensors"


@pytest.mark.parametrize("size", [0, 4, 100, 2000])
def test_truncated_safetensors_are_corrupt(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors: " in str(problem(folder))
    assert "fetch or save it again" in str(problem(folder))


def test_a_garbled_header_is_corrupt(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(content)
    assert "its header is not readable" in str(safetensors_problem(path))


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "the shard model-00001-of-00002.safetensors" in str(problem(folder))


def test_a_tokenizer_without_chat_template_asks_for_one(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=None)
    assert "add `template: hh` or `template: text`" in str(problem(folder))
    assert problem(folder, template="text") is None


def test_a_tokenizer_without_padding_token_asks_for_one(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert "add `pad_token:`" in str(problem(folder))
    assert problem(folder, pad_token="<|system|>") is None


def test_the_digest_sees_every_file_of_the_model_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "digests"
    before = folder_digest(folder, cache)
    (folder / "README.md").write_text("words")
    assert folder_digest(folder, cache) == before
    edit(folder / "config.json", rope_theta=1.0)
    assert folder_digest(folder, cache) != before


def test_the_identity_of_a_local_model_is_its_content_and_precision(folder: Path, tmp_path: Path) -> None:
    model = Model(source=str(folder), precision="fp32")
    found = fact(model, tmp_path, gpus=0, offline=True)
    assert found.problem is None
    assert found.identity["precision"] == "fp32"
    moved = folder.rename(tmp_path / "elsewhere")
    assert fact(Model(source=str(moved), precision="fp32"), tmp_path, gpus=0, offline=True) == found


def test_offline_refuses_what_is_not_here(tmp_path: Path) -> None:
    hub = Model(source="org/name", revision="0" * 40)
    assert "is not in the hub cache" in str(fact(hub, tmp_path, gpus=0, offline=True).problem)
    packaged = Model(source="smollm2-135m-instruct")
    assert "was not fetched yet" in str(fact(packaged, tmp_path, gpus=0, offline=True).problem)
    assert fact(packaged, tmp_path, gpus=0, offline=False).problem is None


def test_an_unknown_catalogue_name_suggests_the_nearest(tmp_path: Path) -> None:
    found = fact(Model(source="smollm2-135m"), tmp_path, gpus=0, offline=False).problem
    assert "did you mean `smollm2-135m-instruct`?" in str(found)
