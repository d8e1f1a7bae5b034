"""A promoted model in another home: the next study stands on it as on a stage of its own, a server answers as it did, and an
alias that moves builds anew what stands on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import tiny
from command import alignflow, planned
from mlflow.tracking import MlflowClient
from servers import Servers, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FIRST = """\
version: 1
name: small
seed: 3
models: {base: {source: ./model, precision: fp32}}
data:
  prompts: {source: ./prompts.jsonl, format: prompt, split: {train: 8, eval: 4}}
rewards: {gold: {kind: length}}
stages:
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 4, max_new_tokens: 8}
  pairs: {do: label, responses: rolls, reward: gold}
  tuned: {do: sft, from: base, data: pairs, learning_rate: 0.01}
  other: {do: sft, from: base, data: pairs, learning_rate: 0.02}
  best: {do: decode, method: best_of_n, from: tuned, reward: gold, n: 2}
  again: {do: sample, from: tuned, prompts: prompts.eval, max_new_tokens: 8}
"""
NEXT = """\
version: 1
name: next
seed: 3
models: {base: {source: "models:/small@champion"}}
data:
  prompts: {source: ./prompts.jsonl, format: prompt, split: {train: 8, eval: 4}}
rewards: {gold: {kind: length}}
stages:
  again: {do: sample, from: base, prompts: prompts.eval, max_new_tokens: 8}
  more: {do: sft, from: base, data: pairs}
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 4, max_new_tokens: 8}
  pairs: {do: label, responses: rolls, reward: gold}
  table:
    do: evaluate
    policies: [more]
    against: base
    prompts: prompts.eval
    rewards: [gold]
    budget: {max_new_tokens: 8}
    resamples: 100
"""


@dataclass(frozen=True)
class Places:
    """Two homes that share an MLflow server, and a Prefect server."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, home: str, *arguments: str, status: int = 0) -> str:
        done = alignflow(self.folder, *arguments, ALIGNFLOW_HOME=str(self.folder / home), **self.environment)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def stage(self, home: str, study: str, name: str) -> Path:
        return self.folder / home / "studies" / study / name


@pytest.fixture(scope="module")
def places(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("promoted")
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(12)])
    (folder / "first.yaml").write_text(FIRST)
    (folder / "next.yaml").write_text(NEXT)
    named = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_URI")
    made = Places(folder, {name: servers.environment()[name] for name in named})
    made("here", "run", "first.yaml", "--quiet")
    made("here", "promote", "small", "tuned", "--alias", "champion", "--ungated")
    made("here", "promote", "small", "best", "--alias", "best", "--ungated")
    return made


def test_it_is_what_it_was_and_what_stands_on_it_has_the_fingerprint_of_one_study(places: Places) -> None:
    first, *others = planned(places("there", "plan", "next.yaml").splitlines())
    assert first[:3] == ["fetch", "base", "models:/small@champion"]
    assert ["run", "again"] in [row[:2] for row in others]
    places("there", "run", "next.yaml", "--quiet")
    here, there = (places.stage(*place, "again") for place in (("here", "small"), ("there", "next")))
    assert here.resolve().name == there.resolve().name  # one fingerprint
    assert (here / "responses.jsonl").read_bytes() == (there / "responses.jsonl").read_bytes()
    kept = places.folder / "there" / "store" / "sft" / places.stage("here", "small", "tuned").resolve().name
    mine, its = (json.loads((f / "record.json").read_bytes()) for f in (places.stage("here", "small", "tuned"), kept))
    assert mine == its
    evaluation = json.loads((places.stage("there", "next", "table") / "evaluation.json").read_bytes())
    assert [policy["copied"] for policy in evaluation["policies"]] == [{}, {}]  # not all that they learnt from is here
    assert places("there", "gc").splitlines()[-1].startswith("0 artifacts")
    assert "models:/small/1" in json.dumps(
        json.loads((places.stage("there", "next", "more") / "record.json").read_bytes())["study"]
    )
    # A replay has a database of its own, and the model from where it was.
    said = places("there", "replay", "next")
    assert "the same to the bit" in said or "agrees: " in said
    # What was made of it can be promoted in its turn, and holds all that it stands on.
    places("there", "promote", "next", "more", "--alias", "champion", "--ungated")
    text = NEXT.replace("models:/small@champion", "models:/next@champion")
    (places.folder / "third.yaml").write_text(text.replace("name: next", "name: third"))
    places("elsewhere", "run", "third.yaml", "--quiet")
    assert len(list((places.folder / "elsewhere" / "store" / "sft").glob("*"))) == 3


def test_an_alias_that_moves_builds_anew_what_stands_on_it_and_a_number_does_not(places: Places) -> None:
    (places.folder / "pinned.yaml").write_text(NEXT.replace("models:/small@champion", "models:/small/1"))
    places("moved", "run", "next.yaml", "--quiet")
    places("here", "promote", "small", "other", "--alias", "champion", "--ungated")
    try:
        (again,) = [r for r in planned(places("moved", "plan", "next.yaml").splitlines()) if r[:2] == ["run", "again"]]
        assert " ".join(again).endswith("changed: from (base)")
        assert {r[0] for r in planned(places("moved", "plan", "pinned.yaml").splitlines())} == {"cached"}
    finally:
        places("here", "promote", "small", "tuned", "--alias", "champion", "--ungated")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("models:/smal@champion", "there is no registered model `smal` in MLflow at .*; did you mean `small`\\?"),
        ("models:/small@champio", "`small` has no alias `champio`; did you mean `champion`\\?"),
        ("models:/small/99", "`small` has no version 99"),
        (
            "models:/small@best",
            "is a decoding rule, which has no weights of its own to train; `alignflow serve models:/small@best`",
        ),
    ],
)
def test_what_cannot_be_had_is_told_where_it_is_named(places: Places, source: str, told: str) -> None:
    (places.folder / "bad.yaml").write_text(NEXT.replace("models:/small@champion", source))
    said = places("there", "check", "bad.yaml", status=2)
    assert re.search(rf"^bad\.yaml:4:25  models\.base\.source  .*{told}", said), said
    assert places("there", "plan", "bad.yaml").startswith("blocked  again")


def test_a_base_that_is_not_here_or_not_what_it_was_is_told(places: Places) -> None:
    model = places.folder / "model"
    model.rename(places.folder / "away")
    try:
        assert "it stands on `" in (said := places("new", "check", "next.yaml", status=2)) and "no such folder" in said
        tiny.language_model(model, seed=1)
        assert "which is not what it was when it was promoted" in places("new", "check", "next.yaml", status=2)
        shutil.rmtree(model)
    finally:
        (places.folder / "away").rename(model)


def test_files_that_are_not_what_was_promoted_are_not_taken(places: Places) -> None:
    places("here", "promote", "small", "other", "--alias", "spoilt", "--name", "spoilt", "--ungated")
    client = MlflowClient(places.environment["MLFLOW_TRACKING_URI"])
    model = client.get_logged_model(client.get_model_version_by_alias("spoilt", "spoilt").tags["alignflow.model"])
    fingerprint = places.stage("here", "small", "other").resolve().name
    (places.folder / "adapter_config.json").write_text("{}")
    client.log_model_artifact(model.model_id, str(places.folder / "adapter_config.json"), f"sft/{fingerprint}/adapter")
    head, _, stages = NEXT.replace("models:/small@champion", "models:/spoilt@spoilt").partition("stages:\n")
    (places.folder / "spoilt.yaml").write_text(f"{head}stages:\n{stages.splitlines()[0]}\n")
    said = places("spoilt", "run", "spoilt.yaml", status=1)
    told = "is not what was promoted; delete that version in MLflow, and promote its policy again"
    assert f"adapter/adapter_config.json {told}" in said
    assert not list((places.folder / "spoilt" / "store" / "sft").glob("[0-9a-f]*"))
    client.delete_model_version("spoilt", "1")
    places("here", "promote", "small", "other", "--alias", "spoilt", "--name", "spoilt", "--ungated")
    places("spoilt", "run", "spoilt.yaml", "--quiet")


def answers(url: str, model: str, prompts: list[str]) -> list[str]:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    assert [m.id for m in client.models.list()] == [model]
    return [
        str(
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": p}], seed=5, max_tokens=8, n=1
            ).choices[0].message.content
        )
        for p in prompts
    ]  # fmt: skip


def served(places: Places, home: str, *arguments: str, model: str) -> list[str]:
    """What a server of its own answers."""
    log = places.folder / f"{home}-{model}.log"
    environment: dict[str, Any] = os.environ | places.environment | {"ALIGNFLOW_HOME": str(places.folder / home)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "serve", *arguments, "--port", "0"],
            cwd=places.folder, env=environment, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        until(lambda: "/v1" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return answers(log.read_text().split(" at ")[-1].strip(), model, ["Why?", "How?"])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def test_an_alias_is_served_under_the_name_of_its_model_with_the_answers_of_the_study(places: Places) -> None:
    its = served(places, "served", "models:/small@best", model="small")
    assert its == served(places, "here", "first.yaml", "--policy", "best", model="best")
    said = places("served", "serve", "models:/small@best", "--policy", "best", status=2)
    assert said == "models:/small@best is itself the policy, as it was promoted; leave --policy and --set out\n"
    assert "name it by --policy" in places("here", "serve", "first.yaml", status=2)
