"""What every test shares: a home of its own, no telemetry, no hub, and the way to the real data where it is."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes depends on what else runs on the machine.
settings.register_profile("alignflow", deadline=None)
settings.load_profile("alignflow")
# Tiny models are slower on several threads, and many times slower where the threads wait for other work's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="alignflow-hf-")
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="alignflow-prefect-")
os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "ALIGNFLOW_HOME", "PREFECT_PROFILE"):
    os.environ.pop(name, None)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"


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
