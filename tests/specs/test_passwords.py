"""Passwords in addresses: none in a study file, none in a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.load import load
from specs.problems import SpecError, without_password, without_user

STUDY = """\
version: 1
name: s
tracking: {uri: "URI"}
data:
  prompts: {source: quickstart-eval, format: prompt}
models:
  base: {source: smollm2-135m-instruct}
stages:
  rolls: {do: sample, from: base, prompts: prompts}
"""


@pytest.mark.parametrize(
    ("text", "shown", "bare"),
    [
        ("http://me:pw@host:5000/a", "http://me:***@host:5000/a", "http://host:5000/a"),
        ("postgresql+psycopg://me:p@w@host/db", "postgresql+psycopg://me:***@host/db", "postgresql+psycopg://host/db"),
        ("http://:pw@host", "http://:***@host", "http://host"),
        ("at http://me:pw@one:1, not http://me:pw@two", "at http://me:***@one:1, not http://me:***@two", None),
        ("http://me@host:5000", "http://me@host:5000", "http://host:5000"),
        ("postgresql://me:p/w:d@host/db", "postgresql://me:***@host/db", None),
        ("postgresql://me:12/34@host/db", "postgresql://me:***@host/db", None),
        ("postgresql://host/db?user=me&password=p%20w&a=b", "postgresql://host/db?user=me&password=***&a=b", None),
        ("http://host?SSLPassword=pw", "http://host?SSLPassword=***", None),
        (
            "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dpw%3BEncrypt%3Dyes",
            "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D***%3BEncrypt%3Dyes",
            None,
        ),
        ("http://host?api_key=pw#x", "http://host?api_key=***", None),
        ("cannot connect with password=pw to host", "cannot connect with password=*** to host", None),
        ("http://host:5000/a@b", "http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
    ],
)
def test_the_password_goes_and_the_rest_stays(text: str, shown: str, bare: str | None) -> None:
    assert without_password(text) == shown
    assert without_password(shown) == shown
    if bare is not None:
        assert without_user(text) == without_user(shown) == bare


def test_a_password_written_in_a_study_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(STUDY.replace("URI", "postgresql://me:geheim@host/db"))
    with pytest.raises(SpecError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem.path == ("tracking", "uri")
    assert problem.message.endswith("write `${env:NAME}` for it")
    assert "geheim" not in str(problem)


def test_a_tracking_address_may_name_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(STUDY.replace("URI", "postgresql://me:${env:PW}@host/db"))
    assert load(path, environment={"PW": "x"}).study.tracking.uri == "postgresql://me:${env:PW}@host/db"
    with pytest.raises(SpecError, match="the environment variable `PW` is not set"):
        load(path, environment={})
