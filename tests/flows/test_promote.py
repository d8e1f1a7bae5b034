"""The promote flow on a real Prefect server and a real registry: gates, a person's decision, what the command tells."""

from __future__ import annotations

import contextvars
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import evaluated
import handmade
import psutil
import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient
from prefect.settings import PREFECT_API_URL, temporary_settings
from servers import until

from flows import promote as flow_module
from flows import server
from flows.candidate import candidate
from flows.promote import promote
from specs.problems import UserError
from tasks.observer import observer

RUN = "aa11" * 8
STUDY = handmade.STUDY.replace(
    "rewards: [gold, tone]}", 'rewards: [gold, tone], expect: {sft: {win_rate.gold: ">= 0.5"}, bon: {length: "<= 20"}}}'
)


@pytest.fixture
def ran(tmp_path: Path, home: Path) -> Path:
    """The home of a study that ran: `sft` meets its bar by the estimate alone (0.531 [0.406, 0.656]), `bon` surely."""
    made = handmade.view(tmp_path, STUDY)
    evaluated.put(made)
    for name in ("rolls", "pairs", "sft", "bon[n=2]", "bon[n=4]"):
        handmade.put(made, name, {"weights.safetensors": name})
    handmade.end(made, RUN)
    return home


@pytest.fixture
def client(ran: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    """The registry of that study, with a Prefect server that is looked at often."""
    monkeypatch.setattr(flow_module, "POLL", 0.2)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield MlflowClient(f"sqlite:///{ran}/mlflow.db")


def promoted(stage: str, **more: Any) -> Any:
    """The state of the flow that promotes a stage as the champion."""
    return promote(run="small", stage=stage, alias="champion", return_state=True, **more)


def champion(client: MlflowClient) -> Any:
    found = client.get_registered_model("small").aliases
    return client.get_model_version("small", found["champion"]) if "champion" in found else None


@contextmanager
def deciding(*answers: dict[str, str]) -> Iterator[list[str]]:
    """A person who answers in the UI of Prefect, as soon as there is a form; what they were shown."""
    from prefect import get_client
    from prefect.flow_runs import resume_flow_run
    from prefect.input.actions import read_flow_run_input

    shown: list[str] = []
    asked, failed = threading.Event(), list[Exception]()
    run: list[str] = []

    def watch(_: str, event: str, content: Any) -> None:
        if event == "waiting":
            run.append(content)
            asked.set()

    def decide() -> None:
        try:
            assert asked.wait(60)
            for answer in answers:
                with get_client(sync_client=True) as prefect:
                    state = prefect.read_flow_run(run[0]).state
                    while state is None or not state.is_paused() or state.id in seen:
                        time.sleep(0.1)
                        state = prefect.read_flow_run(run[0]).state
                    seen.add(state.id)
                    keyset = state.state_details.run_input_keyset
                    assert keyset is not None
                    time.sleep(0.5)  # the form is put beside the state after it
                    shown.append(str(read_flow_run_input(keyset["description"], run[0])))
                resume_flow_run(run[0], run_input=answer)
        except Exception as error:
            failed.append(error)

    seen: set[Any] = set()
    token = observer.set(watch)
    person = threading.Thread(target=contextvars.copy_context().run, args=(decide,))
    person.start()
    try:
        yield shown
    finally:
        observer.reset(token)
        asked.set()
        person.join(60)
    assert not failed, failed


@contextmanager
def cancelling(told: dict[str, Any]) -> Iterator[None]:
    """A person who presses Cancel on the page of the run that waits, as soon as it does."""
    from prefect import get_client
    from prefect.states import Cancelling

    def cancel() -> None:
        with get_client(sync_client=True) as prefect:
            until(lambda: "waiting" in told)
            until(lambda: (state := prefect.read_flow_run(told["waiting"]).state) and state.is_paused())
            prefect.set_flow_run_state(told["waiting"], Cancelling())

    token = observer.set(lambda _, event, content: told.update({event: content}))
    person = threading.Thread(target=contextvars.copy_context().run, args=(cancel,))
    person.start()
    try:
        yield
    finally:
        observer.reset(token)
        person.join(60)


def test_a_policy_that_surely_meets_its_bars_becomes_the_champion(client: MlflowClient) -> None:
    state = promoted("bon[n=4]")
    assert (state.name, state.message) == ("Promoted", "models:/small@champion is version 1")
    version = champion(client)
    told = {k.removeprefix("alignflow."): v for k, v in version.tags.items()}
    assert (told["study"], told["stage"], told["kind"], told["run"]) == ("small", "bon[n=4]", "decode", RUN)
    assert told["gates"] == "table: length is 13 [12.5, 13.5], and its upper end meets <= 20"
    rows = [line for line in version.description.splitlines() if line.startswith("| b")]
    assert [row.split(" | ")[0] for row in rows] == ["| base", "| base", "| bon[n=4]", "| bon[n=4]"]
    assert "| bon[n=4] | gold | guides | 4.000 [3.750, 4.250]" in rows[2]


def test_an_estimate_that_meets_the_bar_is_not_enough(client: MlflowClient) -> None:
    state = promoted("sft")
    assert state.name == "Refused"
    assert state.message == "table: win_rate.gold is 0.5312 [0.4062, 0.6562], and its lower end misses >= 0.5"
    assert client.search_registered_models() == []


def test_a_person_who_agrees_is_kept_with_the_version_and_a_form_without_a_name_is_asked_again(
    client: MlflowClient,
) -> None:
    with deciding({"decision": "promote", "name": "  "}, {"decision": "promote", "name": "Ada"}) as shown:
        assert promoted("bon[n=4]", approve=True).name == "Promoted"
    assert champion(client).tags["alignflow.approved_by"] == "Ada"
    assert "`small@champion` means nothing yet." in shown[0] and "its upper end meets <= 20" in shown[0]
    assert shown[1].startswith("**say who decides**")


def test_a_person_who_refuses_or_does_not_answer_leaves_the_champion_what_it_was(client: MlflowClient) -> None:
    promoted("bon[n=4]")
    with deciding({"decision": "refuse", "name": "Ada"}) as shown:
        state = promoted("bon[n=2]", approve=True)
    assert (state.name, state.message) == ("Refused", "Ada refused it")
    assert "`small@champion` means version 1, `bon[n=4]` of `small` now." in shown[0]
    told = dict[str, Any]()
    token = observer.set(lambda _, event, content: told.update({event: content}))
    state = promoted("bon[n=2]", approve=True, wait="1s")
    observer.reset(token)
    assert told["outcome"]["refused"] == ["nobody decided in time"]
    assert state.message.endswith("and never resumed.")  # so Prefect ends a run that waited too long
    assert champion(client).version == 1 and len(client.search_model_versions("name = 'small'")) == 1


def test_a_promotion_that_is_cancelled_while_it_waits_ends_and_says_so(client: MlflowClient) -> None:
    told = dict[str, Any]()
    with cancelling(told):
        state = promoted("bon[n=4]", approve=True, wait="2m")
    assert told["outcome"]["refused"] == [state.message] == ["it was cancelled in the Prefect UI"]
    assert state.type.value == "CANCELLED" and client.search_registered_models() == []


@pytest.mark.parametrize(
    ("stage", "more", "told"),
    [
        ("sft", {"expect": ["tone >= 1"]}, "`tone` is not a metric"),
        ("rolls", {}, r"`rolls` is no policy \(responses\); there are `sft`, `bon\[n=2\]`, `bon\[n=4\]`"),
        ("sfd", {}, r"no stage `sfd`; did you mean `sft`\?"),
        ("sft", {"alias": "latest"}, "MLflow keeps `latest`"),
        ("sft", {"run": "nobody"}, "knows no run or study `nobody`"),
    ],
)
def test_what_is_wrong_is_told_before_any_server_is_asked(
    ran: Path, stage: str, more: dict[str, Any], told: str
) -> None:
    given = {"run": "small", "stage": stage, "alias": "champion", "name": None, "expect": [], "ungated": False} | more
    with pytest.raises(UserError, match=told):
        candidate(**given)
    assert not (ran / "mlflow.db").exists()


def test_without_a_bar_it_is_to_be_said_that_there_is_none(tmp_path: Path, home: Path) -> None:
    made = handmade.view(tmp_path)
    handmade.put(made, "sft", {"weights.safetensors": "w"})
    handmade.end(made, RUN)
    with pytest.raises(
        UserError,
        match=r"nothing says how good `sft` must be: set a bar .*'win_rate.gold >= 0.5', or promote it --ungated",
    ):
        candidate("small", "sft", "champion", None, [], ungated=False)
    assert (
        candidate("small", "sft", "champion", None, [], ungated=True).description().endswith("No bar was set for it.")
    )


@pytest.mark.slow
def test_the_command_tells_what_became_of_it_and_its_exit_status_says_so_too(
    client: MlflowClient, tmp_path: Path, prefect_server: str
) -> None:
    from command import alignflow

    def told(*arguments: str) -> tuple[int, list[str]]:
        done = alignflow(tmp_path, "promote", *arguments, "--alias", "champion", PREFECT_API_URL=prefect_server)
        return done.returncode, (done.stdout + done.stderr).splitlines()

    status, (gate, line) = told("aa11", "bon[n=4]")
    assert status == 0 and gate.endswith("meets <= 20")
    assert line == "models:/small@champion is version 1: `bon[n=4]` of `small`"
    assert told("s.yaml", "bon[n=4]") == (0, [gate, "models:/small@champion is this policy already (version 1)"])
    status, lines = told("small", "sft")
    assert status == 3 and lines[1:] == ["nothing was promoted"] and "misses >= 0.5" in lines[0]
    assert told("small", "nothing")[0] == 2
    done = alignflow(
        tmp_path, "promote", "small", "bon[n=2]", "--alias", "champion", "--json", PREFECT_API_URL=prefect_server
    )
    assert {k: v for k, v in json.loads(done.stdout).items() if k in ("version", "before", "is_new")} == {
        "version": "2", "before": "1", "is_new": True,
    }  # fmt: skip
    done = alignflow(tmp_path, "promote", "small", "sft", "--alias", "champion", "--approve", PREFECT_API_URL="")
    assert done.returncode == 4 and "--approve asks in the Prefect UI, and there is none" in done.stderr


WORDS = ["promote", "small", "bon[n=4]", "--alias", "champion"]


@contextmanager
def asking(folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], UUID]]:
    """The command that waits for a person, and its run."""
    line = [str(Path(sys.executable).with_name("alignflow")), *WORDS, "--approve"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=folder, env=os.environ | environment, text=True, **pipes) as waiting:
        assert waiting.stdout is not None
        told = waiting.stdout.readline()
        assert told.startswith("waits for a decision")
        yield waiting, UUID(told.strip().rpartition("/")[2])


@pytest.mark.slow
def test_one_that_is_killed_while_it_waits_is_closed_by_the_next_which_leads_to_the_pages_of_up(
    client: MlflowClient, ran: Path, tmp_path: Path, prefect_server: str
) -> None:
    from command import alignflow
    from prefect import get_client

    with (
        get_client(sync_client=True) as prefect,
        FileLock(ran / server.LOCK),
        server.noted(ran, prefect_server, "http://127.0.0.1:7777"),
    ):
        with asking(tmp_path) as (waiting, run):
            until(lambda: (state := prefect.read_flow_run(run).state) and state.is_paused())
            waiting.kill()
        assert prefect.read_flow_run(run).tags == [f"home:{ran}"]
        done = alignflow(tmp_path, *WORDS, "--json")
        closed = prefect.read_flow_run(run).state
    assert json.loads(done.stdout)["page"] == "http://127.0.0.1:7777/#/models/small/versions/1"
    assert closed is not None and closed.is_crashed()
    assert list((ran / "claims").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_goes_away_for_good_while_a_person_is_asked_is_told_in_a_line(
    client: MlflowClient, tmp_path: Path
) -> None:
    url = server.start_temporary(tmp_path / "server.log")
    server.wait_for(url, tmp_path / "server.log")
    port = url.removesuffix("/api").rpartition(":")[2]
    (serving,) = [p for p in psutil.process_iter(["cmdline"]) if port in (p.info["cmdline"] or ())]
    with asking(tmp_path, PREFECT_API_URL=url, PREFECT_CLIENT_MAX_RETRIES="0") as (waiting, _):
        assert waiting.stderr is not None
        serving.kill()
        told = waiting.stderr.readline()  # behind it Prefect may say what it could not log
        waiting.stderr.read()
    assert waiting.returncode == 4
    assert re.fullmatch(r"environment: Prefect's server went away \(.*\) before it was done; promote again .*\n", told)
    assert client.search_registered_models() == []
