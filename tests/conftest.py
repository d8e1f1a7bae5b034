"""What every test shares: a home of its own, no telemetry, no hub, and the way to the real data where it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from servers import Servers

# How long an example takes depends on what else runs on the machine.
settings.register_profile("alignflow", deadline=None)
settings.load_profile("alignflow")
# Tiny models are slower on several threads, and many times slower where the threads wait for other work's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="alignflow-hf-")
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "alignflow-tests-cache")
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="alignflow-prefect-")
os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "ALIGNFLOW_HOME", "PREFECT_PROFILE"):
    os.environ.pop(name, None)

import huggingface_hub.constants  # noqa: E402, F401  (it keeps where its cache is from the first import on, whichever test makes it)
from places import SHARED  # noqa: E402  (no test imports this file: a second import would give the home another place)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests may take longest begin first: with `--no-loadscope-reorder` no worker ends with one of them alone."""
    longest: dict[Path, float] = {}
    for item in items:
        marks = [float(mark.args[0]) for mark in item.iter_markers("timeout")]
        allowed = max(marks, default=300.0 if item.get_closest_marker("slow") else 0.0)
        longest[item.path] = max(longest.get(item.path, 0.0), allowed)
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ALIGNFLOW_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data, which lie beside the repository on some machines only."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a real Prefect server, one for all tests."""
    from flows import server

    log = tmp_path_factory.mktemp("prefect") / "server.log"
    url = server.start_temporary(log)
    server.wait_for(url, log)
    return url


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers of a team, for all tests that ask them."""
    import servers

    with servers.running() as made:
        yield made
