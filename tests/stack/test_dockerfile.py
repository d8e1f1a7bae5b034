"""The Dockerfile: what a linter would say of it, and that what it copies and installs is the package."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from places import REPOSITORY

TEXT = (REPOSITORY / "Dockerfile").read_text()
STEPS = [line.split(maxsplit=1) for line in re.sub(r"\\\n", "", TEXT).splitlines() if line and line[0] != "#"]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def steps(name: str) -> list[str]:
    return [rest for step, rest in STEPS if step == name]


def test_it_begins_from_an_image_pinned_to_the_patch() -> None:
    (image,) = steps("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", image)


def test_what_runs_is_not_root_and_is_known_by_number() -> None:
    (user,) = steps("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert [step for step, _ in STEPS].index("USER") > max(i for i, (step, _) in enumerate(STEPS) if step == "RUN")


def test_no_secret_is_an_argument_or_a_variable_of_the_image() -> None:
    assert not re.search(
        r"PASSWORD|SECRET|TOKEN|_KEY|CREDENTIAL", " ".join([*steps("ARG"), *steps("ENV")]), re.IGNORECASE
    )


def test_every_installation_keeps_no_cache_and_is_pinned() -> None:
    installs = [part for run in steps("RUN") for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 2
    for install in installs:
        assert "--no-cache-dir" in install
        assert "--constraint constraints.txt" in install or "--no-deps" in install
    assert not any("apt-get" in run for run in steps("RUN"))  # and so no lists of packages to take away again


def test_what_it_installs_is_what_the_package_and_the_stack_ask_for(tmp_path: Path) -> None:
    (run,) = [run for run in steps("RUN") if "requirements.txt" in run]
    line = run.split(" && ")[0].replace("python -c", f"{sys.executable} -c")
    (tmp_path / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["team"]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == wanted


def test_it_copies_the_package_and_what_it_copies_is_let_through_and_nothing_else() -> None:
    copied = [source for copy in steps("COPY") for source in copy.split()[:-1]]
    assert {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]} <= {*copied}
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert {rule[1:] for rule in rules if rule[0] == "!"} == {*copied}
    assert all((REPOSITORY / source).exists() for source in copied)
