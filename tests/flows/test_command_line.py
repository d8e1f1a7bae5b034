"""The command line as a person meets it: what it prints, and its exit status. No server, no torch."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tiny
from jsonschema import Draft202012Validator

from flows import server
from specs.problems import UnfitError
from specs.yaml_tree import parse_yaml, read_yaml

STUDY = """\
version: 1
name: small
models:
  base: {source: ./model, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt, split: {train: 6, eval: 2}}
rewards:
  gold: {kind: length}
stages:
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 4}
  pairs: {do: label, responses: rolls, reward: gold}
  rm: {do: reward_model, from: base, data: pairs}
"""


def alignflow(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    (tmp_path / "model").symlink_to(model)
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(8)])
    (tmp_path / "s.yaml").write_text(STUDY)
    return tmp_path


def test_check_says_fine_and_writes_nothing(folder: Path) -> None:
    done = alignflow(folder, "check", "s.yaml")
    assert (done.returncode, done.stdout) == (0, "s.yaml: fine\n")
    assert not (folder / ".alignflow").exists()


def test_check_tells_every_mistake_of_every_file_at_once(folder: Path) -> None:
    (folder / "a.yaml").write_text(STUDY.replace("samples: 4", "smaples: 4").replace("reward: gold", "reward: gould"))
    (folder / "b.yaml").write_text(STUDY.replace("./model", "./modle"))
    done = alignflow(folder, "check", "a.yaml", "b.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "a.yaml:10:59  stages.rolls.smaples  unknown key; did you mean `samples`?"
    assert lines[1] == "a.yaml:11:48  stages.pairs.reward  `gould` is not defined; did you mean `gold`?"
    assert lines[2].startswith("b.yaml:4:18  models.base.source  no such folder: ")
    assert lines[3] == "3 errors; nothing was run."
    assert "Traceback" not in done.stderr


def test_one_mistake_in_the_text_hides_no_file_that_is_missing(folder: Path) -> None:
    text = STUDY.replace("./prompts.jsonl", "./none.jsonl").replace("reward: gold", "reward: gould")
    text = text.replace(
        "  gold: {kind: length}", "  gold: {kind: length}\n  own: {kind: python, target: nowhere:score}"
    )
    (folder / "a.yaml").write_text(text)
    for verb in ("check", "plan", "run"):
        told = alignflow(folder, verb, "a.yaml").stderr.splitlines()
        assert [line.split("  ")[1] for line in told[:-1]] == [
            "data.prompts.source",
            "rewards.own.target",
            "stages.pairs.reward",
        ]


def test_a_plan_says_what_this_machine_has_not(folder: Path) -> None:
    done = alignflow(folder, "plan", "s.yaml", "--set", "execution.gpus=8")
    assert done.returncode == 0
    assert "does not fit this machine: `execution.gpus: 8`, and this machine shows " in done.stdout


def test_check_as_json_gives_places(folder: Path) -> None:
    (folder / "a.yaml").write_text(STUDY.replace("samples: 4", "smaples: 4"))
    done = alignflow(folder, "check", "a.yaml", "--json")
    assert done.returncode == 2
    (error,) = json.loads(done.stdout)["errors"]
    assert error["line"] == 10
    assert error["path"] == "stages.rolls.smaples"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "prompts.jsonl").unlink(), "data.prompts.source  there is no file"),
        (lambda f: (f / "prompts.jsonl").write_text(""), "is empty"),
        (
            lambda f: tiny.write_lines(f / "prompts.jsonl", [{"prompt": "a"}, {"prompt": 3}] * 4),
            "`prompt` is neither text nor messages: 4 (first: row 2)",
        ),
        (lambda f: tiny.write_lines(f / "prompts.jsonl", [{"question": "a"}] * 8), "columns: {prompt: "),
        (lambda f: tiny.write_lines(f / "prompts.jsonl", [{"prompt": "a"}]), "8"),
        (
            lambda f: (f / "prompts.jsonl").write_text(
                "".join(f'{{"prompt": "p{i}"}}\n' for i in range(5)) + "{broken\n" + '{"prompt": "z"}\n' * 3
            ),
            "not JSON: 1 (row 6)",
        ),
    ],
    ids=["missing", "empty", "not text", "another column", "too few", "a bad line in the middle"],
)
def test_bad_data_are_told_before_anything_runs(folder: Path, spoil, message: str) -> None:
    spoil(folder)
    done = alignflow(folder, "check", "s.yaml")
    assert done.returncode == 2
    (line, count) = done.stderr.splitlines()
    assert message in line
    assert line.startswith("s.yaml:6:")
    assert count == "1 error; nothing was run."


def test_plan_tells_state_and_reason_and_its_json_is_stable(folder: Path) -> None:
    done = alignflow(folder, "plan", "s.yaml")
    assert done.returncode == 0
    stages, _, summary = done.stdout.partition("\n\n")
    assert [line.split()[0] for line in summary.splitlines()] == ["time", "memory", "disk"]
    assert [line.split()[:2] for line in stages.splitlines()] == [
        ["state", "stage"],
        ["run", "rolls"],
        ["run", "pairs"],
        ["run", "rm"],
    ]
    stages = json.loads(alignflow(folder, "plan", "s.yaml", "--json").stdout)["stages"]
    assert [(s["name"], s["kind"], s["state"], s["inputs"]) for s in stages] == [
        ("rolls", "sample", "run", ["base", "prompts.train"]),
        ("pairs", "label", "run", ["rolls", "gold"]),
        ("rm", "reward_model", "run", ["base", "pairs"]),
    ]
    assert all(len(s["fingerprint"]) == 64 for s in stages)


def test_plan_shows_what_is_blocked(folder: Path) -> None:
    (folder / "prompts.jsonl").unlink()
    done = alignflow(folder, "plan", "s.yaml")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["blocked"] * 3
    assert "there is no file" in done.stdout


def test_check_and_plan_refuse_a_guide_that_reads_other_tokens(folder: Path, model: Path) -> None:
    shutil.copytree(model, folder / "foreign")
    tokens = folder / "foreign" / "tokenizer.json"
    known = json.loads(tokens.read_text())
    numbers = known["model"]["vocab"]
    numbers["a"], numbers["b"] = numbers["b"], numbers["a"]
    tokens.write_text(json.dumps(known))
    mixed = "\n  mixed: {do: decode, method: mod, from: base, policies: {foreign: 0.4}}\n"
    text = STUDY.replace("models:\n", "models:\n  foreign: {source: ./foreign, precision: fp32}\n")
    (folder / "s.yaml").write_text(text.rstrip() + mixed)
    for command in ("check", "plan"):
        done = alignflow(folder, command, "s.yaml")
        assert done.returncode == 2
        assert "stages.mixed.policies" in done.stderr and "`foreign` cannot guide this" in done.stderr


def test_set_changes_the_plan(folder: Path) -> None:
    def prints(*options: str) -> dict[str, str]:
        stages = json.loads(alignflow(folder, "plan", "s.yaml", "--json", *options).stdout)["stages"]
        return {s["name"]: s["fingerprint"] for s in stages}

    before, after = prints(), prints("--set", "stages.pairs.min_gap=0.5")
    assert {n for n in before if before[n] != after[n]} == {"pairs", "rm"}
    assert prints("--set", "execution.threads=1") == before


def test_check_and_plan_import_neither_torch_nor_servers(folder: Path) -> None:
    script = (
        "import sys; sys.argv = ['alignflow', 'plan', 's.yaml']\n"
        "from flows.cli import main\n"
        "main()\n"
        "print([m for m in ('torch', 'prefect', 'mlflow', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_committed_schema_is_current() -> None:
    import specs
    from specs.schema import schema

    committed = Path(specs.__file__).parent / "alignflow.schema.json"
    assert json.loads(committed.read_text()) == schema(), "alignflow schema > specs/alignflow.schema.json"


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("extends: p.yaml\nversion: 1\nname: s\nstages: {judge: {epochs: 3.0}}", True),
        ("version: 1\nname: s\nrewards: {gold: {replace: true, kind: lexicon}}", False),
        ("version: 1\nname: s\nrewards: {gold: {replace: true, kind: lexicon}}\nSTAGES", True),
        ("version: 1\nname: s\nrewards: {gold: {kind: lexicn}}\nSTAGES", False),
        ("version: 1\nname: s\nstages: {a: {do: sample, from: b}}", False),
        ("version: 1\nname: s\nstages: {a: {do: sample, from: b, sweep: {prompts: [c, d]}}}", True),
    ],
    ids=["extended", "no stages", "replaced", "unknown kind", "missing field", "field in a sweep"],
)
def test_the_schema_takes_what_check_takes(text: str, fits: bool) -> None:
    from specs.schema import schema

    tree, _ = parse_yaml(text.replace("STAGES", "stages: {a: {do: sample, from: b, prompts: c}}"), "s.yaml")
    assert Draft202012Validator(schema()).is_valid(tree) == fits


def test_every_recipe_fits_the_schema() -> None:
    import specs
    from specs.schema import schema

    recipes = list((Path(specs.__file__).parent / "recipes").glob("*.yaml"))
    assert len(recipes) >= 2
    for recipe in recipes:
        Draft202012Validator(schema()).validate(read_yaml(recipe)[0])


def test_explain_tells_one_field_and_suggests_the_nearest(folder: Path) -> None:
    done = alignflow(folder, "explain", "stages.reward_model.beta")
    assert done.returncode == 0
    assert done.stdout.startswith("stages.reward_model.beta: number > 0, default 1.0\n")
    wrong = alignflow(folder, "explain", "stages.reward_model.bta")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "`stages.reward_model` has no `bta`; did you mean `beta`?\n"


def test_every_field_of_the_language_is_explained() -> None:
    from specs.schema import schema

    made = schema()
    silent = [
        f"{name}.{key}"
        for name, definition in [("study", made), *made["$defs"].items()]
        for key, field in definition.get("properties", {}).items()
        if not field.get("description") and key not in ("do", "method", "kind", "by", "loss")
    ]
    assert silent == []


def test_every_recipe_is_listed_checks_and_can_be_copied(tmp_path: Path) -> None:
    listed = alignflow(tmp_path, "recipes").stdout.splitlines()
    assert any(line.startswith("quickstart") for line in listed)
    for line in listed:
        name = line.split()[0]
        done = alignflow(tmp_path, "init", name, "copies")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "copies" / "alignflow.schema.json").exists()
        again = alignflow(tmp_path, "init", name, "copies")
        assert again.returncode == 2
        assert "is there already" in again.stderr
    assert alignflow(tmp_path, "check", "copies/quickstart.yaml").stdout == "copies/quickstart.yaml: fine\n"
    assert "did you mean `quickstart`?" in alignflow(tmp_path, "init", "quikstart").stderr


def test_a_home_that_cannot_be_written_is_exit_status_4(folder: Path) -> None:
    (folder / "file").write_text("")
    done = alignflow(folder, "run", "s.yaml", ALIGNFLOW_HOME=str(folder / "file" / "home"))
    assert done.returncode == 4
    assert done.stderr.startswith("environment: the home folder")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "address", "message"),
    [
        ("PREFECT_API_URL", "http://127.0.0.1:9/api", "no Prefect server answers at http://127.0.0.1:9/api"),
        (
            "MLFLOW_TRACKING_URI",
            "http://me:secret@127.0.0.1:9",
            "no MLflow server answers at http://me:***@127.0.0.1:9",
        ),
    ],
)
def test_a_server_out_of_reach_is_exit_status_4_and_no_password_is_shown(
    folder: Path, variable: str, address: str, message: str
) -> None:
    done = alignflow(folder, "run", "s.yaml", **{variable: address})
    assert done.returncode == 4
    assert message in done.stderr
    assert "secret" not in done.stderr + done.stdout


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False), (503, False)])
def test_what_does_not_answer_as_a_server_does_is_none(status: int, there: bool) -> None:
    with answering(lambda _: status) as url:
        if there:
            server.require(url)
        else:
            with pytest.raises(UnfitError, match="no Prefect server answers"):
                server.require(url)


def test_a_server_that_asks_who_is_there_is_told_or_the_person_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Prefect's does: `/health` is open."""
    word = f"Basic {base64.b64encode(b'team:sesame').decode()}"

    def lets_in(request: BaseHTTPRequestHandler) -> int:
        return 200 if request.path.endswith("/health") or request.headers["Authorization"] == word else 401

    with answering(lets_in) as url:
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:sesame")
        server.require(url)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:open")
        with pytest.raises(UnfitError, match="asks who is there; set PREFECT_API_AUTH_STRING"):
            server.require(url)


@contextmanager
def answering(status: Callable[[BaseHTTPRequestHandler], int]) -> Iterator[str]:
    """The address of a server of which only the status of its answers counts."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status(self))
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answers) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/api"
        finally:
            listening.shutdown()


def test_more_gpus_than_there_are_is_exit_status_4(folder: Path) -> None:
    done = alignflow(folder, "run", "s.yaml", "--set", "execution.gpus=8", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 4
    assert "`execution.gpus: 8`, and this machine shows none" in done.stderr


def test_show_and_report_of_what_is_not_built_say_so(folder: Path) -> None:
    assert "never ran" in alignflow(folder, "show", "s.yaml").stdout
    done = alignflow(folder, "report", "s.yaml")
    assert (done.returncode, done.stderr) == (2, "s.yaml: nothing of it is stored yet; `alignflow run s.yaml` first\n")
    assert "did you mean `rolls`?" in alignflow(folder, "show", "s.yaml", "roll").stderr
