"""MLflow's database in a file is there whole or not at all, whoever makes it with whomever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from servers import until

from tasks.tracking_file import made

OPEN = "import sys; from tasks.tracking import Tracker; Tracker(sys.argv[1], 'small', None)"

pytestmark = pytest.mark.slow


def opening(uri: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", OPEN, uri])


@pytest.mark.slow
def test_first_runs_that_begin_together_share_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert [process.wait() for process in [opening(uri) for _ in range(2)]] == [0, 0]
    assert {each.name for each in MlflowClient(uri).search_experiments()} == {"Default", "small"}


@pytest.mark.slow
def test_one_who_is_killed_while_he_makes_it_leaves_no_half_of_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = opening(uri)
    until(lambda: any(path.stat().st_size for path in tmp_path.glob("mlflow.db*")))
    first.kill()
    first.wait()
    assert MlflowClient(made(uri)).get_experiment("0").artifact_location == (tmp_path / "mlartifacts" / "0").as_uri()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "postgresql://nobody@127.0.0.1:1/none", "sqlite:///:memory:"])
def test_what_is_no_file_is_left_alone(uri: str) -> None:
    assert made(uri) == uri
