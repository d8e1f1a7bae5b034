"""Where a model comes from is told by the form of its source; what was promoted is named in full, and used as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refusals

from specs.sources import Promoted, origin, promoted

STUDY = """\
version: 1
name: small
models: {{base: {{source: {source}}}}}
data: {{asked: {{source: ./prompts.jsonl, format: prompt}}}}
stages: {{told: {{do: sample, from: base, prompts: asked}}}}
"""


def test_the_form_of_the_text_decides() -> None:
    sources = ("smollm2", "./smollm2", "models:/policy@champion", "models/policy", "/models:/policy")
    assert [origin(s, None) for s in sources] == ["catalogue", "path", "registry", "path", "path"]
    assert origin("org/model", "0" * 40) == "hub"


def test_a_version_is_meant_by_an_alias_or_by_its_number() -> None:
    assert promoted("models:/policy@champion") == Promoted("policy", "champion", None)
    assert promoted("models:/my policy.v2/13") == Promoted("my policy.v2", None, "13")
    assert [str(promoted(s)) for s in ("models:/a@b", "models:/a/3")] == ["models:/a@b", "models:/a/3"]


@pytest.mark.parametrize(
    "text", ["models:/policy", "models:/policy/latest", "models:/policy@", "models://policy@x", "models:/p/0"]
)
def test_what_may_mean_another_version_each_time_or_none_is_refused_where_it_stands(text: str, tmp_path: Path) -> None:
    (told,) = refusals(tmp_path, STUDY.format(source=f'"{text}"'))
    assert (
        told
        == f"models.base.source  a promoted model is written `models:/NAME@ALIAS` or `models:/NAME/3`, not `{text}`"
    )


def test_a_promoted_model_brings_its_own_template_and_precision(tmp_path: Path) -> None:
    (told,) = refusals(tmp_path, STUDY.format(source='"models:/a@b", template: hh, precision: fp32'))
    assert told == "models.base  a promoted model is used as it was made; leave out `precision`, `template`"
    assert refusals(tmp_path, STUDY.format(source='"models:/a@b"')) == []
