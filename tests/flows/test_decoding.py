"""`alignflow decode`: a policy asked at the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import tiny
from asked import Asked
from command import told
from mlflow import MlflowClient

from registry.rows import Prompt
from specs.load import load
from tasks.view import View

STUDY = """\
version: 1
name: asked
seed: 3
execution: {threads: 1}
models: {base: {source: ./model, precision: fp32}}
data: {pairs: {source: ./pairs.jsonl, format: preference}}
rewards: {words: {kind: length}, joy: {kind: classifier, source: ./classes, precision: fp32}}
stages:
  greedy: {do: decode, method: greedy, from: base}
  best: {do: decode, method: best_of_n, from: base, reward: words, n: 3}
  rm: {do: reward_model, from: base, data: pairs}
  args: {do: decode, method: args, from: base, reward: rm}
  glad: {do: decode, method: args, from: base, reward: joy, candidates: 3, strength: 40.0}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.language_model(tmp_path / "model")
    tiny.classifier(tmp_path / "classes", initializer_range=1.0)
    tiny.write_lines(tmp_path / "pairs.jsonl", tiny.TEN)
    (tmp_path / "study.yaml").write_text(STUDY.replace("./", f"{tmp_path}/"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    return tmp_path / "study.yaml"


def expected(study: Path, policy: str, *texts: list[dict[str, str]], samples: int = 1) -> list[list[str]]:
    view = View.of(load(study).study, study.parent / "home", study.parent, offline=True)
    prompts = [Prompt(tuple(turns)) for turns in texts]
    return Asked(view, policy, prompts=prompts, samples=samples, seed=3, max_new_tokens=8)[policy]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def decode(capsys: pytest.CaptureFixture[str], study: Path, *arguments: str) -> tuple[int, list[str], list[str]]:
    return told(capsys, "decode", str(study), "--max-new-tokens", "8", *arguments)


def test_a_prompt_is_answered_as_the_policy_answers_it_anywhere(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((answer,),) = expected(study, "greedy", [user("Why?")])
    status, out, err = decode(capsys, study, "--policy", "greedy", "--prompt", "Why?")
    assert (status, out, err) == (0, answer.splitlines(), [])


def test_several_samples_of_several_prompts_are_a_line_of_json_each(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = expected(study, "best", [user("Why?")], [user("And you?")], samples=2)
    (study.parent / "some.txt").write_text("Why?\n\nAnd you?\n")
    tiny.write_lines(study.parent / "some.jsonl", [{"prompt": "Why?"}, {"prompt": "And you?"}])
    for file in ("some.txt", "some.jsonl"):
        path = str(study.parent / file)
        status, out, _ = decode(capsys, study, "--policy", "best", "--file", path, "--samples", "2", "--json")
        rows = [json.loads(line) for line in out]
        assert status == 0 and [row["prompt"] for row in rows] == ["Why?", "And you?"]
        assert [[a["text"] for a in row["answers"]] for row in rows] == answers
        assert all(a["finished"] or a["tokens"] == 8 for row in rows for a in row["answers"])


def test_in_a_dialogue_the_policy_reads_what_was_said(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((first,),) = expected(study, "greedy", [user("Why?")])
    ((second,),) = expected(study, "greedy", [user("Why?"), {"role": "assistant", "content": first}, user("So?")])
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\n\nSo?\n"))
    status, out, err = decode(capsys, study, "--policy", "greedy")
    assert (status, out, err) == (0, f"{first}\n{second}".splitlines(), [])


def test_a_trace_says_what_was_looked_at_and_goes_to_mlflow(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, plain, _ = decode(capsys, study, "--policy", "greedy", "--prompt", "Why?")
    status, out, err = decode(capsys, study, "--policy", "greedy", "--prompt", "Why?", "--trace")
    where = err[-1]  # MLflow speaks of its new database before
    assert status == 0 and "\n".join(out).endswith("\n".join(plain))
    steps = [line for line in out if line.endswith("<-")]
    assert 1 <= len(steps) <= 8 and all("share 1.000" in line for line in steps)
    run = where.split("/")[-1]
    client = MlflowClient(f"sqlite:///{study.parent / 'home' / 'mlflow.db'}")
    assert where.startswith("trace: http") and client.get_run(run).info.status == "FINISHED"
    trace = json.loads(Path(client.download_artifacts(run, "trace.json")).read_text())
    (answer,) = trace["answers"]
    assert len(answer["steps"]) == len(steps)
    for step in answer["steps"]:
        (chosen,) = (c for c in step["candidates"] if c["chosen"])
        assert chosen["log_prob"] == max(c["log_prob"] for c in step["candidates"])


def test_a_trace_of_a_guided_policy_names_who_scored(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = decode(capsys, study, "--policy", "glad", "--prompt", "Why?", "--trace")
    assert status == 0
    run = err[-1].split("/")[-1]
    client = MlflowClient(f"sqlite:///{study.parent / 'home' / 'mlflow.db'}")
    (answer,) = json.loads(Path(client.download_artifacts(run, "trace.json")).read_text())["answers"]
    for step in answer["steps"]:
        guided = {c["log_prob"] + 40 * c["scores"]["joy"]: c["chosen"] for c in step["candidates"]}
        assert len(step["candidates"]) == 3 and guided[max(guided)]
    assert sum("joy" in line for line in out) == 3 * len(answer["steps"])


def test_a_trace_of_best_of_n_is_of_the_draw_that_was_chosen(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = decode(capsys, study, "--policy", "best", "--prompt", "Why?", "--samples", "2", "--trace")
    run = err[-1].split("/")[-1]
    client = MlflowClient(f"sqlite:///{study.parent / 'home' / 'mlflow.db'}")
    answers = json.loads(Path(client.download_artifacts(run, "trace.json")).read_text())["answers"]
    assert status == 0 and len(answers) == 2
    decoded = tiny.tokenizer().decode
    for answer in answers:
        *steps, last = answer["steps"]
        chosen = [next(c["id"] for c in step["candidates"] if c["chosen"]) for step in steps]
        text = decoded(chosen, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
        assert text.strip() == answer["answer"]
        assert len(last["draws"]) == 3
        assert [d["text"] for d in last["draws"] if d["chosen"]] == [answer["answer"]]
        assert max(d["reward"] for d in last["draws"]) == next(d["reward"] for d in last["draws"] if d["chosen"])
    assert sum(line.startswith("draw ") for line in out) == 6


def test_a_dialogue_loads_its_reward_once(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import models

    loaded: list[str] = []
    real = models.scorer
    monkeypatch.setattr(
        models, "scorer", lambda reward, **options: loaded.append(reward.name) or real(reward, **options)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\nSo?\nAnd?\n"))
    status, _, _ = decode(capsys, study, "--policy", "best")
    assert status == 0 and loaded == ["words"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "gredy", "--prompt", "a"], "`gredy` is not a policy of this study; did you mean `greedy`?"),
        (["--policy", "args", "--prompt", "a"], "`args` is made of what is not there yet: `rm`; run the study first"),
        (["--policy", "base", "--prompt", "a", "--file", "b"], "--prompt and --file are two ways to ask; give one"),
        (["--policy", "base", "--file", "nowhere.txt"], "nowhere.txt: there is no such file"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(
    study: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert decode(capsys, study, *arguments) == (2, [], [words])
