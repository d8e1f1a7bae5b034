"""The limits that a host's GPUs set, kept to how many there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks import gpus

pytestmark = pytest.mark.slow


@pytest.fixture
def client(prefect_server: str) -> Iterator[object]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as made:
        yield made


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    def visible(names: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        gpus.device_names.cache_clear()

    yield visible
    gpus.device_names.cache_clear()


def test_the_limit_of_gpus_follows_their_number(client, see) -> None:
    from flows import pool

    for names, slots in (("0,1", 2), ("0,1,2", 3), ("0", 1)):
        see(names)
        pool.limit_gpus(client)
        assert client.read_global_concurrency_limit_by_name(gpus.limit_name()).limit == slots


def test_a_host_runs_as_many_studies_as_it_has_gpus_and_one_without(see) -> None:
    for names, studies in (("0,1", 2), ("", 1)):
        see(names)
        assert gpus.studies_at_once() == studies


def test_a_pool_is_made_once_and_unserved_until_a_worker_asks(client) -> None:
    from flows import pool

    for _ in range(2):
        pool.make(client)
    assert client.read_work_pool(pool.NAME).type == "process" and not pool.is_served(client)


def test_a_stage_waits_for_a_slot_that_is_taken_says_so_and_can_be_stopped(
    client, see, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from prefect.concurrency.sync import concurrency

    from flows import pool
    from tasks import child, step

    see("0")
    monkeypatch.setattr(gpus, "LEASES", tmp_path / "leases")
    pool.limit_gpus(client)
    told: list[tuple[str, ...]] = []

    def observe(*event: str) -> None:
        told.append(event)
        child.stopping.set()

    study = SimpleNamespace(execution=SimpleNamespace(gpus=1))
    session = SimpleNamespace(study=study, observe=observe, has_slots=True)
    try:
        with (
            concurrency(gpus.limit_name(), occupy=1, strict=True),
            pytest.raises(child.Interrupted),
            step._devices(session, "rm"),  # type: ignore[arg-type]
        ):
            pass
    finally:
        child.stopping.clear()
    assert told == [("rm", "waiting", "the GPUs are taken")]
    with step._devices(session, "rm") as devices:  # type: ignore[arg-type]
        assert devices == "0"
        assert client.read_global_concurrency_limit_by_name(gpus.limit_name()).active_slots == 1
    assert client.read_global_concurrency_limit_by_name(gpus.limit_name()).active_slots == 0
