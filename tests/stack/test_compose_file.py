"""docker-compose.yml by itself: what it asks for, what is pinned, what can reach what."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import Any

import compose
import pytest
from places import REPOSITORY

FILLED = {name: value or f"a-secret-of-{name}" for name, value in compose.example().items()}
DOCUMENT = compose.read(FILLED)
SERVICES: dict[str, Any] = DOCUMENT["services"]
JOBS = {name for name, service in SERVICES.items() if service["restart"] == "no"}
WORKERS = {"worker", "worker-gpu"}


def texts(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [str(node)]


def test_the_example_names_every_variable_and_gives_no_secret_a_value() -> None:
    assert compose.asked_for() | {"COMPOSE_PROFILES"} == compose.example().keys()
    given = {name: value for name, value in compose.example().items() if value}
    assert given == {"COMPOSE_PROFILES": "cpu", "ALIGNFLOW_COMMIT": "unknown", "ALIGNFLOW_STUDIES": "./studies"}


@pytest.mark.parametrize("name", sorted(compose.asked_for()))
def test_a_variable_that_is_forgotten_or_left_empty_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: see .env.example"):
        compose.read(FILLED | {name: ""})


def test_the_file_with_the_secrets_is_kept_out_of_git_and_out_of_the_image() -> None:
    ignored = subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=REPOSITORY, check=False)
    assert ignored.returncode == 0
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*" and not any(rule.startswith("!.") for rule in rules)


def test_every_image_is_pinned_and_ours_has_the_version_of_the_package() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    ours = {name: service["image"] for name, service in SERVICES.items() if "build" in service}
    assert set(ours.values()) == {f"alignflow:{version}", f"alignflow:{version}-gpu"}
    assert ours["worker-gpu"].endswith("-gpu") and len(set(ours.values()) - {ours["worker-gpu"]}) == 1
    for name in SERVICES.keys() - ours.keys():
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?-[a-z]+", SERVICES[name]["image"])


def test_every_server_says_how_it_is_and_comes_back_and_nothing_begins_before_what_it_needs() -> None:
    assert {"init"} == JOBS
    for name, service in SERVICES.items():
        assert (name in JOBS) != ("healthcheck" in service)
        assert service["restart"] == ("no" if name in JOBS else "unless-stopped")
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and "healthcheck" in SERVICES[needed]


def test_what_is_published_is_published_to_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert sorted(ports) == ["127.0.0.1:4200:4200", "127.0.0.1:5000:5000"]


def test_the_databases_have_a_network_that_reaches_neither_the_worker_nor_the_outside() -> None:
    assert DOCUMENT["networks"]["databases"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["databases"]
    assert {name for name in SERVICES if "databases" in SERVICES[name]["networks"]}.isdisjoint(JOBS | WORKERS)


def test_whatever_a_service_names_it_can_reach_at_that_port() -> None:
    named = set()
    for name, service in SERVICES.items():
        configs = [DOCUMENT["configs"][config["source"]] for config in service.get("configs", ())]
        for text in texts([{key: part for key, part in service.items() if key != "image"}, configs]):
            for host, port in re.findall(rf"\b({'|'.join(SERVICES)}):(\d+)\b", text):
                there = SERVICES[host]
                assert {*service["networks"]} & {*there["networks"]}
                assert port in [p.rsplit(":", 1)[-1] for p in (*there.get("expose", ()), *there.get("ports", ()))]
                named.add((name, host))
    assert {("worker", "prefect"), ("worker", "mlflow"), ("services", "redis"), ("mlflow", "postgres")} <= named


def test_mlflow_answers_to_every_name_that_it_is_called_by() -> None:
    command = SERVICES["mlflow"]["command"]
    allowed = command[command.index("--allowed-hosts") + 1].split(",")
    called = {
        t.removeprefix("http://") for s in SERVICES.values() for t in texts(s) if re.fullmatch(r"http://mlflow:\d+", t)
    }
    assert called and called <= {*allowed}
    assert {f"127.0.0.1:{SERVICES['mlflow']['ports'][0].rsplit(':', 1)[1]}"} <= {*allowed}


def test_prefect_s_server_and_its_services_are_told_the_same_and_share_what_lies_in_redis() -> None:
    services = SERVICES["services"]["environment"]
    server = {key: value for key, value in SERVICES["prefect"]["environment"].items() if key != "PREFECT_UI_API_URL"}
    assert server == services
    in_redis = {key for key, value in services.items() if value.startswith(("prefect_redis.", "redis://"))}
    assert in_redis == {
        "PREFECT_MESSAGING_BROKER", "PREFECT_MESSAGING_CACHE", "PREFECT_REDIS_MESSAGING_URL", "PREFECT_SERVER_DOCKET_URL",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING", "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
    }  # fmt: skip


def test_one_worker_runs_in_each_profile_and_the_one_with_gpus_differs_by_them_alone() -> None:
    assert [SERVICES[name]["profiles"] for name in sorted(WORKERS)] == [["cpu"], ["gpu"]]
    assert all("profiles" not in SERVICES[name] for name in SERVICES.keys() - WORKERS)
    cpu, gpu = SERVICES["worker"], SERVICES["worker-gpu"]
    assert {key for key in gpu if gpu[key] != cpu.get(key)} == {"profiles", "image", "build", "deploy"}
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_the_job_and_the_workers_see_studies_and_home_at_the_same_places_and_studies_cannot_be_written() -> None:
    for name in WORKERS:
        assert SERVICES[name]["volumes"] == SERVICES["init"]["volumes"]
        assert SERVICES["init"]["environment"].items() <= SERVICES[name]["environment"].items()
    assert "./studies:/srv/alignflow/studies:ro" in SERVICES["init"]["volumes"]


def test_every_volume_is_named_and_used() -> None:
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    assert {*mounted} - {"./studies"} == DOCUMENT["volumes"].keys()
    stated = {place for service in SERVICES.values() for place in service.get("environment", {}).values()}
    for place in ("/srv/alignflow/home", "/srv/alignflow/hub"):
        assert place in stated


def test_no_secret_stands_in_a_command_or_in_an_address() -> None:
    secrets = [value for name, value in FILLED.items() if value.startswith("a-secret-of-")]
    for service in SERVICES.values():
        shown = texts([service["command"], service.get("healthcheck", {}), service.get("labels", {})])
        addresses = [text for text in texts(service.get("environment", {})) if "://" in text]
        assert not any(secret in text for secret in secrets for text in (*shown, *addresses))
    assert not any(secret in text for secret in secrets for text in texts(DOCUMENT["configs"]))
