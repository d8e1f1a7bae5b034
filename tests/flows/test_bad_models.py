"""Model folders that cannot serve: told by `check` before anything is loaded, or by the stage that loads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from command import alignflow, planned, stored, told

STUDY = """\
version: 1
name: small
models:
  base: {source: ./model, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
rewards:
  judge: {kind: classifier, source: ./judge, precision: fp32}
stages:
  rolls: {do: sample, from: base, prompts: prompts, max_new_tokens: 4, samples: 2}
  pairs: {do: label, responses: rolls, reward: judge}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.language_model(folder / "model")
    tiny.classifier(folder / "judge")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(2)])
    (tmp_path / "s.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def garble(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"\xff" * 99 + content[107:])


def without_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink(missing_ok=True)
    edit(model / "tokenizer_config.json", chat_template=None)


SHARDS = json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such folder: {model}; a hub id also needs `revision:` (its commit hash)"),
        (
            lambda m: cut(m / "model.safetensors", 5000),
            "model.safetensors: corrupt: 5,000 bytes where its header promises {size:,}; fetch or save it again",
        ),
        (
            lambda m: cut(m / "model.safetensors", 100),
            "model.safetensors: not a safetensors file (its header does not fit in it); fetch or save it again",
        ),
        (
            lambda m: garble(m / "model.safetensors"),
            "model.safetensors: not a safetensors file (its header is not readable); fetch or save it again",
        ),
        (
            lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"),
            "its weights are pickled, and unpickling runs code; save them as safetensors",
        ),
        (
            lambda m: shutil.copytree(m.parent / "judge", m, dirs_exist_ok=True),
            "its architecture is LlamaForSequenceClassification; this takes one that ends in ForCausalLM",
        ),
        (
            lambda m: edit(m / "tokenizer_config.json", pad_token=None),
            "its tokenizer has no padding token; add `pad_token:` with one of its tokens, not the end token",
        ),
        (without_template, "its tokenizer has no chat template; add `template: hh` or `template: text`"),
        (
            lambda m: edit(m / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}),
            "the model brings its own Python code (`auto_map`); code from a model folder is never run",
        ),
        (
            lambda m: (m / "adapter_config.json").write_text("{}"),
            "it holds an adapter, which would be laid on whatever model its settings name; merge and save the whole",
        ),
        (lambda m: (m / "config.json").unlink(), "{model} holds no `config.json`"),
        (lambda m: cut(m / "config.json", 9), "{model}/config.json is not JSON with settings; fetch or save it again"),
        (
            lambda m: (m / "config.json").write_text("[]"),
            "{model}/config.json is not JSON with settings; fetch or save it again",
        ),
        (
            lambda m: edit(m / "config.json", architectures=None),
            "its architecture is none; this takes one that ends in ForCausalLM",
        ),
        (
            lambda m: cut(m / "tokenizer_config.json", 9),
            "{model}/tokenizer_config.json is not JSON with settings; fetch or save it again",
        ),
        (
            lambda m: (m / "tokenizer_config.json").unlink(),
            "{model} holds no tokenizer (`tokenizer_config.json`)",
        ),
        (
            lambda m: (m / "model.safetensors.index.json").write_text(SHARDS),
            "the shard model-00002-of-00002.safetensors that model.safetensors.index.json names is missing",
        ),
        (
            lambda m: (m / "model.safetensors.index.json").write_text("{"),
            "{model}/model.safetensors.index.json is not JSON with settings; fetch or save it again",
        ),
    ],
    ids=[
        "missing folder", "cut off", "cut in its header", "garbled header", "pickled only", "a classifier",
        "no padding token", "no chat template", "auto_map", "an adapter", "no config", "config not JSON", "config a list",
        "no architecture", "tokenizer settings not JSON", "no tokenizer", "missing shard", "index not JSON",
    ],
)  # fmt: skip
def test_a_folder_that_is_no_language_model_is_told_at_the_field_that_names_it(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], message: str
) -> None:
    model = folder / "model"
    size = (model / "model.safetensors").stat().st_size
    spoil(model)
    line = "s.yaml:4:18  models.base.source  " + message.format(model=model, size=size)
    for verb in ("check", "run"):
        assert told(capsys, verb, "s.yaml") == (2, [], [line, "1 error; nothing was run."])
    assert stored(folder / "home") == []


def test_a_name_that_no_folder_can_have_is_told_as_one_that_is_not_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "m" * 300
    (folder / "s.yaml").write_text(STUDY.replace("./model", f"./{long}"))
    status, _, (line, _) = told(capsys, "check", "s.yaml")
    assert (status, line) == (
        2,
        f"s.yaml:4:18  models.base.source  no such folder: {folder}/{long}; a hub id also needs `revision:` (its commit hash)",
    )


def test_a_language_model_is_no_classifier(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.yaml").write_text(STUDY.replace("./judge", "./model"))
    line = "its architecture is LlamaForCausalLM; this takes one that ends in ForSequenceClassification"
    assert told(capsys, "check", "s.yaml")[2][0] == f"s.yaml:8:37  rewards.judge.source  {line}"


def test_the_faults_of_several_models_are_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model" / "config.json").unlink()
    (folder / "judge" / "model.safetensors").unlink()
    status, _, err = told(capsys, "check", "s.yaml")
    assert status == 2
    assert err == [
        f"s.yaml:4:18  models.base.source  {folder}/model holds no `config.json`",
        f"s.yaml:8:37  rewards.judge.source  {folder}/judge holds no safetensors",
        "2 errors; nothing was run.",
    ]


def test_what_is_blocked_says_why_and_what_is_not_is_planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "judge" / "config.json").unlink()
    status, out, _ = told(capsys, "plan", "s.yaml")
    assert status == 0
    rolls, pairs = planned(out)
    assert (rolls[:2], pairs[:2]) == (["run", "rolls"], ["blocked", "pairs"])
    assert " ".join(pairs).endswith(f"{folder}/judge holds no `config.json`")


@pytest.mark.slow
def test_what_only_loading_shows_fails_its_stage_with_one_line(folder: Path, prefect_server: str) -> None:
    """Each model is one stage's; none of them may be half right, which transformers would let pass."""
    spoilt: dict[str, tuple[Callable[[Path], object], str]] = {
        "more_layers": (
            lambda m: edit(m / "config.json", num_hidden_layers=3),
            "its weights do not fit its `config.json`: 9 are missing or of another shape, such as "
            "`model.layers.2.input_layernorm.weight`; fetch or save {model} again",
        ),
        "wider": (
            lambda m: edit(m / "config.json", hidden_size=64),
            "its weights do not fit its `config.json`: 20 are missing or of another shape, such as "
            "`model.embed_tokens.weight`; fetch or save {model} again",
        ),
        "unknown": (lambda m: edit(m / "config.json", model_type="nothing"), "cannot be loaded from {model}: "),
        "wordless": (lambda m: (m / "tokenizer.json").write_text("{}"), "cannot be loaded from {model}: "),
        "unsplit": (lambda m: (m / "tokenizer.json").unlink(), "cannot be loaded from {model}: "),
    }
    head, _, _ = STUDY.partition("rewards:")
    named, stages = "", "stages:\n"
    for name, (spoil, _) in spoilt.items():
        shutil.copytree(folder / "model", folder / name)
        spoil(folder / name)
        named += f"  {name}: {{source: ./{name}, precision: fp32}}\n"
        stages += f"  by_{name}: {{do: sample, from: {name}, prompts: prompts, max_new_tokens: 4}}\n"
    (folder / "s.yaml").write_text(head.replace("data:", f"{named}data:") + stages)
    done = alignflow(folder, "run", "s.yaml", "--json", PREFECT_API_URL=prefect_server)
    assert done.returncode == 1
    failed = json.loads(done.stdout)["failed"]
    assert set(failed) == {f"by_{name}" for name in spoilt}
    for name, (_, message) in spoilt.items():
        line = failed[f"by_{name}"]
        assert line.startswith(f"{name}: {message.format(model=folder / name)}")
        assert "\n" not in line
        assert f"by_{name}: failed: {line}" in done.stderr
    assert stored(folder / "home") == []
