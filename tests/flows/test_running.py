"""Studies run for real: tiny models, real gradients, a real Prefect server, a real MLflow database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

pytestmark = pytest.mark.slow

STUDY = """\
version: 1
name: small
seed: 3
models:
  base: {source: ./model, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt, split: {train: 8, eval: 4}}
rewards:
  gold: {kind: length}
  mine: {kind: python, target: my_reward:score}
stages:
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 4, max_new_tokens: 16}
  pairs: {do: label, responses: rolls, reward: gold, pairs_per_prompt: 2}
  sft: {do: sft, from: base, data: pairs, learning_rate: 1e-3}
  rm: {do: reward_model, from: sft, data: pairs, test: pairs, learning_rate: 1e-3, beta: 2.0, lora: {rank: 4, alpha: 8}}
  bon: {do: decode, method: best_of_n, from: base, reward: rm, sweep: {n: [2, 4]}}
  greedy: {do: decode, method: greedy, from: sft}
  table:
    do: evaluate
    policies: [base, sft, bon, greedy]
    against: base
    prompts: prompts.eval
    rewards: [rm, gold, mine]
    budget: {max_new_tokens: 16, samples_per_prompt: 2}
    resamples: 200
"""
REWARD = "def score(prompts, responses):\n    return [float(len(p) - len(r)) for p, r in zip(prompts, responses)]\n"


def make_folder(folder: Path, study: str = STUDY) -> Path:
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(12)])
    (folder / "my_reward.py").write_text(REWARD)
    (folder / "s.yaml").write_text(study)
    for name in ("tasks", "registry", "datasets", "prefect"):  # what people have lying about is nobody's but theirs
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the current folder was imported')\n")
    return folder


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("alignflow")), *arguments]


def alignflow(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": url},
        capture_output=True,
        text=True,
        timeout=280,
    )


def outcome(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, prefect_server: str) -> tuple[Path, dict[str, Any]]:
    """A folder in which the study ran once, and how that ended."""
    folder = make_folder(tmp_path_factory.mktemp("run"))
    done = alignflow(folder, prefect_server, "run", "s.yaml", "--json")
    assert done.returncode == 0, done.stderr
    return folder, outcome(done)


def record(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / ".alignflow" / "studies" / "small" / stage / "record.json").read_text())


def mlflow_runs(folder: Path, parent: str) -> tuple[Any, Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / '.alignflow' / 'mlflow.db'}")
    run = client.get_run(parent)
    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    # `search_runs` leaves model inputs out; `get_run` has them.
    return client, run, [client.get_run(child.info.run_id) for child in children]


def test_every_stage_is_built_and_recorded(ran) -> None:
    folder, ended = ran
    assert set(ended["stages"].values()) == {"done"}
    assert ended["failed"] == {} == ended["failed"]
    assert ended["untracked"] == []
    rm = record(folder, "rm")
    assert rm["provenance"]["packages"]["torch"].startswith("2.")
    assert rm["metrics"]["pairs"] == record(folder, "pairs")["metrics"]["pairs"]
    assert 0 <= rm["metrics"]["test/accuracy"] <= 1
    assert "test/length_baseline" in rm["metrics"]
    assert (folder / ".alignflow" / "studies" / "small" / "bon[n=4]" / "rule.json").exists()


def test_no_pickles_and_no_scratch_are_kept(ran) -> None:
    folder, _ = ran
    names = [p.name for p in (folder / ".alignflow" / "store").rglob("*")]
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl", ".building")) or n == "scratch"]


def test_a_second_run_builds_nothing_and_shows_cached(ran, prefect_server: str) -> None:
    folder, _ = ran
    before = {p: p.stat().st_mtime_ns for p in (folder / ".alignflow" / "store").rglob("record.json")}
    done = alignflow(folder, prefect_server, "run", "s.yaml", "--json")
    assert done.returncode == 0
    assert set(outcome(done)["stages"].values()) == {"cached"}
    assert {p: p.stat().st_mtime_ns for p in (folder / ".alignflow" / "store").rglob("record.json")} == before
    _, parent, children = mlflow_runs(folder, outcome(done)["mlflow"]["run"])
    assert children == []
    assert parent.data.tags["alignflow.cached.rm"] == record(folder, "rm")["mlflow"]["run"]


def test_another_study_with_equal_stages_shares_the_artifacts(ran, prefect_server: str) -> None:
    folder, _ = ran
    text = STUDY.replace("name: small", "name: twin").replace("rolls", "responses_of_mine").replace("greedy:", "g:")
    (folder / "twin.yaml").write_text(text.replace("greedy]", "g]"))
    done = alignflow(folder, prefect_server, "run", "twin.yaml", "--json")
    assert set(outcome(done)["stages"].values()) == {"cached"}


def test_mlflow_holds_a_run_for_each_stage_with_lineage(ran) -> None:
    folder, ended = ran
    client, parent, children = mlflow_runs(folder, ended["mlflow"]["run"])
    assert parent.info.status == "FINISHED"
    by_stage = {c.data.tags["alignflow.stage"]: c for c in children}
    assert set(by_stage) == set(ended["stages"])
    assert {c.info.status for c in children} == {"FINISHED"}
    rm = by_stage["rm"]
    assert rm.data.tags["alignflow.fingerprint"] == record(folder, "rm")["fingerprint"]
    assert rm.data.params["beta"] == "2.0"
    assert rm.data.tags["prefect.flow_run_id"] == parent.data.tags["prefect.flow_run_id"] != ""
    assert len(client.get_metric_history(rm.info.run_id, "train/loss")) >= 2
    assert [m.model_id for m in rm.outputs.model_outputs] == [record(folder, "rm")["mlflow"]["model"]]
    assert [m.model_id for m in rm.inputs.model_inputs] == [record(folder, "sft")["mlflow"]["model"]]
    assert [d.dataset.name for d in by_stage["rolls"].inputs.dataset_inputs] == ["prompts.train"]
    assert len(by_stage["table"].data.tags["alignflow.input.policies"].split(", ")) == 5
    names = {f.path for f in client.list_artifacts(by_stage["table"].info.run_id)}
    assert {"generations.json", "evaluation.json", "figures"} <= names
    figures = {f.path for f in client.list_artifacts(by_stage["table"].info.run_id, "figures")}
    assert {"figures/table.difference.gold.svg", "figures/table.kl.mine.svg"} <= figures
    assert "bon-n-4/reward/gold" in by_stage["table"].data.metrics
    assert "spec.yaml" in {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert "report.html" in {f.path for f in client.list_artifacts(parent.info.run_id)}


def test_prefect_shows_stages_by_name_and_the_report(ran, prefect_server: str) -> None:
    folder, ended = ran
    _, parent, _ = mlflow_runs(folder, ended["mlflow"]["run"])
    flow_run = parent.data.tags["prefect.flow_run_id"]

    def ask(path: str, body: dict[str, Any]) -> Any:
        import urllib.request

        request = urllib.request.Request(
            f"{prefect_server}/{path}/filter", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    only = {"flow_runs": {"id": {"any_": [flow_run]}}}
    assert ask("flow_runs", only)[0]["name"] == "small"
    assert {t["name"] for t in ask("task_runs", only)} == set(ended["stages"])
    artifacts = {a["key"]: a for a in ask("artifacts", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})}
    assert {"stages", "report", "mlflow"} <= set(artifacts)
    assert "| bon[n=4] | gold |" in artifacts["report"]["data"]


def test_the_report_is_one_file_with_the_numbers_beside_it(ran) -> None:
    _, ended = ran
    report = Path(ended["report"])
    text = report.read_text()
    # Of each of three rewards: differences, divergence, compute, a pair, the best of n draws; and two trainings.
    assert {path.name.split(".")[1] for path in report.parent.glob("table.*.svg")} == {
        "difference", "kl", "compute", "rewards", "best_of",
    }  # fmt: skip
    assert len(list(report.parent.glob("table.*.svg"))) == 5 * 3
    assert {"sft.loss.svg", "rm.loss.svg"} <= {path.name for path in report.parent.iterdir()}
    curve = (report.parent / "table.best_of.csv").read_text().splitlines()
    assert curve[0] == "policy,judged_by,n,kl_bound,reward,reward_low,reward_high" and len(curve) > 3
    assert "http" not in text.replace("http-equiv", "")
    table = (report.parent / "table.csv").read_text().splitlines()
    assert len(table) == 1 + 5 * 3
    assert table[0].startswith("policy,against,judged_by,reward_had_part,reward,reward_low,reward_high,difference")
    assert (report.parent / "rm.csv").read_text().startswith(("loss,", "grad_norm,", "step,", "epoch,"))


def test_the_reference_ties_with_itself_and_best_of_n_rises_under_its_own_reward(ran) -> None:
    folder, _ = ran
    results = json.loads((folder / ".alignflow" / "studies" / "small" / "table" / "evaluation.json").read_text())
    base, _, two, four, _ = results["policies"]
    for reward in base["rewards"]:
        assert reward["win_rate"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
        assert reward["difference"]["estimate"] == 0
    # The draws are nested, so more candidates can only raise the reward that chooses.
    assert base["rewards"][0]["reward"]["estimate"] <= two["rewards"][0]["reward"]["estimate"]
    assert two["rewards"][0]["reward"]["estimate"] <= four["rewards"][0]["reward"]["estimate"]


def test_a_missed_expectation_is_exit_status_3_and_needs_no_new_work(ran, prefect_server: str) -> None:
    folder, _ = ran
    bars = "stages.table.expect={greedy: {length: '< 1'}, bon: {win_rate.rm: '>= 0'}}"
    done = alignflow(folder, prefect_server, "run", "s.yaml", "--set", bars)
    assert done.returncode == 3
    assert "missed: table: greedy length is 1" in done.stdout
    assert "win_rate" not in done.stdout.split("missed:", 1)[1].splitlines()[0]
    assert done.stdout.count("stored already") == 8


def test_a_failed_stage_is_exit_status_1_names_the_cause_and_keeps_the_rest(ran, prefect_server: str) -> None:
    folder, _ = ran
    (folder / "my_reward.py").write_text("def score(prompts, responses):\n    raise KeyError('colour')\n")
    try:
        done = alignflow(folder, prefect_server, "run", "s.yaml")
    finally:
        (folder / "my_reward.py").write_text(REWARD)
    assert done.returncode == 1
    assert "failed: table: the reward `mine` failed: KeyError: 'colour' (my_reward.py:2)" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("stored already") == 7


def test_a_failure_fails_what_needs_it_and_nothing_else(tmp_path: Path, prefect_server: str) -> None:
    text = STUDY.replace("reward: gold, pairs", "reward: mine, pairs").replace(
        "  table:", "  more: {do: sample, from: base, prompts: prompts.eval}\n  table:"
    )
    folder = make_folder(tmp_path, text)
    (folder / "my_reward.py").write_text("def score(prompts, responses):\n    return [0.0]\n")
    ended = outcome(alignflow(folder, prefect_server, "run", "s.yaml", "--json"))
    assert {n for n, s in ended["stages"].items() if s == "done"} == {"rolls", "more"}
    assert ended["failed"]["pairs"].startswith("the reward `mine` returned 1 scores for 32 responses")
    assert ended["failed"]["table"] == "an input failed"
    _, parent, children = mlflow_runs(folder, ended["mlflow"]["run"])
    assert parent.info.status == "FAILED"
    assert {c.data.tags["alignflow.stage"]: c.info.status for c in children} == {
        "rolls": "FINISHED", "more": "FINISHED", "pairs": "FAILED",
    }  # fmt: skip


def test_an_interrupt_ends_at_130_at_once_and_the_next_run_goes_on(tmp_path: Path, prefect_server: str) -> None:
    slow = "import time\ndef score(prompts, responses):\n    time.sleep(120)\n"
    folder = make_folder(tmp_path, STUDY)
    (folder / "my_reward.py").write_text(slow)
    text = STUDY.replace("reward: gold, pairs", "reward: mine, pairs")
    (folder / "s.yaml").write_text(text)
    run = subprocess.Popen(
        command("run", "s.yaml"),
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": prefect_server},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    for line in run.stdout:
        if "scoring" in line:
            break
    started = time.monotonic()
    run.send_signal(signal.SIGINT)
    rest = run.communicate(timeout=60)[0]
    assert run.returncode == 130
    assert time.monotonic() - started < 20
    assert "run the same command to go on" in rest
    store = folder / ".alignflow" / "store"
    assert not list(store.rglob("*.building"))
    (folder / "my_reward.py").write_text(REWARD)
    ended = outcome(alignflow(folder, prefect_server, "run", "s.yaml", "--json"))
    assert ended["stages"].pop("rolls") == "cached"
    assert set(ended["stages"].values()) == {"done"}


def test_a_timeout_fails_the_stage_and_is_not_tried_again(tmp_path: Path, prefect_server: str) -> None:
    folder = make_folder(tmp_path, STUDY.replace("reward: gold, pairs", "reward: mine, pairs"))
    (folder / "my_reward.py").write_text("import time\ndef score(prompts, responses):\n    time.sleep(120)\n")
    done = alignflow(folder, prefect_server, "run", "s.yaml", "--set", "execution.timeout=20s")
    assert done.returncode == 1
    assert "failed: pairs: took longer than 20 s (`execution.timeout`) and was stopped" in done.stdout
    assert done.stdout.count("pairs: started") == 1


def test_a_temporary_server_is_started_where_none_is_configured_and_leaves_no_noise(ran) -> None:
    folder, _ = ran
    done = subprocess.run(command("run", "s.yaml"), cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0
    assert done.stderr == ""
    first, *lines = done.stdout.splitlines()
    assert first.startswith("small: 8 stages, 0 to run")
    assert sum("stored already" in line for line in lines) == 8
    assert not any(word in done.stdout for word in ("Prefect", "prefect", "INFO", "WARNING", "Traceback"))
