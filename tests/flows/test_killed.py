"""Kill -9 in the middle of a deployed run: of its worker, of either server, and of everything at once. Nothing stays marked as
running, and the next run goes on with what was there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
from going_up import Up, going_up
from servers import until

from registry.claims import living

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

STUDY = """\
version: 1
name: small
seed: 3
models: {base: {source: ./model, precision: fp32}}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
rewards: {mine: {kind: python, target: my_reward:score}}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 2, max_new_tokens: 4}
  pairs: {do: label, responses: rolls, reward: mine}
"""
# It says that it is at work, and gives no answer while there is a file `hold` beside it.
REWARD = """\
import os, time
from pathlib import Path

HERE = Path(__file__).parent

def score(prompts, responses):
    (HERE / f"scoring.{os.getpid()}").touch()
    while (HERE / "hold").exists():
        time.sleep(0.05)
    return [float(i) for i, _ in enumerate(responses)]
"""


@dataclass
class Home:
    """One home, whose servers and worker go up again after each death."""

    folder: Path
    _stack: ExitStack
    seed: int = 3

    def up(self) -> Up:
        """Everything up, whatever was before."""
        self._stack.close()
        worker = self.folder / "home" / "logs" / "up" / "worker.log"
        before = worker.read_text().count("started!") if worker.exists() else 0
        up = self._stack.enter_context(going_up(self.folder))
        until(lambda: worker.exists() and worker.read_text().count("started!") > before, 60)
        return up

    def in_the_middle(self, up: Up) -> tuple[str, list[int]]:
        """Starts a run of which nothing is stored, and waits until its second stage is at work. The run, and the processes of
        it and its stage."""
        self.seed += 1
        (self.folder / "hold").touch()
        run = up.start("small", seed=self.seed)
        until(lambda: list(self.folder.glob("scoring.*")), 150)
        (mark,) = self.folder.glob("scoring.*")
        mark.unlink()
        (note,) = living(self.folder / "home")
        assert {"small", "rolls", "pairs"} >= {name.split()[0] for name in up.marked_open()} >= {"small", "pairs"}
        return run, [note["process"], int(mark.suffix[1:])]

    def goes_on(self, up: Up) -> None:
        """Nothing is marked as running, and the next run builds what was not built."""
        assert up.marked_open() == []
        (self.folder / "hold").unlink()
        run = up.start("small", seed=self.seed)
        assert up.ended(run)["type"] == "COMPLETED"
        assert up.stages(run) == {"rolls": "Cached", "pairs": "Completed"}
        assert up.marked_open() == [] and living(self.folder / "home") == []
        for mark in self.folder.glob("scoring.*"):
            mark.unlink()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("killed")
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": "Why?"}, {"prompt": "Why not?"}])
    (folder / "my_reward.py").write_text(REWARD)
    (folder / "s.yaml").write_text(STUDY)
    with ExitStack() as stack:
        yield Home(folder, stack)


@pytest.fixture(scope="module")
def first(home: Home) -> Up:
    """What is up first, the study deployed."""
    up = home.up()
    done = up.run("deploy", "s.yaml")
    assert done.returncode == 0, done.stderr
    return up


@pytest.fixture(scope="module")
def ups(first: Up) -> list[Up]:
    """What is up, last: each test begins with what the one before left."""
    return [first]


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill(*processes: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("part", ["worker", "prefect", "mlflow"])
def test_when_a_part_is_killed_the_run_ends_and_up_says_so(part: str, home: Home, ups: list[Up]) -> None:
    run, processes = home.in_the_middle(ups[-1])
    kill(ups[-1].parts[part])
    assert ups[-1].process.wait(120) == 1
    assert f"{part} has ended; its log is " in ups[-1].printed
    until(lambda: all(map(is_gone, processes)), 30)
    ups.append(home.up())
    until(lambda: ups[-1].state(run)["type"] == "CRASHED", 30)  # of a dead server its worker hears, once it is back
    home.goes_on(ups[-1])


def test_when_everything_is_killed_at_once_the_next_start_sets_it_right(home: Home, ups: list[Up]) -> None:
    run, processes = home.in_the_middle(ups[-1])
    kill(ups[-1].process.pid, *ups[-1].parts.values(), *processes)
    until(lambda: all(map(is_gone, processes)), 30)
    # Without the servers a run by hand closes what MLflow keeps, and leaves Prefect's part for when it is up again.
    (note,) = (home.folder / "home" / "claims").glob("*.json")
    assert json.loads(note.read_text())["prefect"] == "up"
    ups.append(home.up())
    until(lambda: ups[-1].state(run)["type"] == "CRASHED", 30)
    home.goes_on(ups[-1])


def test_ctrl_c_stops_a_run_and_both_servers_hear_of_it(home: Home, ups: list[Up]) -> None:
    run, processes = home.in_the_middle(ups[-1])
    ups[-1].process.send_signal(signal.SIGINT)
    assert ups[-1].process.wait(90) == 130
    assert all(map(is_gone, processes))
    ups.append(home.up())
    assert ups[-1].state(run)["type"] in ("CRASHED", "CANCELLED", "FAILED")
    home.goes_on(ups[-1])
