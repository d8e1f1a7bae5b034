"""Strict YAML: what each spelling means, and what is refused at which place."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.problems import SpecError
from specs.yaml_tree import MAX_BYTES, parse_yaml, read_yaml


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "s.yaml")
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("5e-5", 5e-5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("1:30", "1:30"),
        ("2026-11-21", "2026-11-21"),
        ("'5'", "5"),
        ('"true"', "true"),
        ("2%", "2%"),
        ("9" * 30, 1e30),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    tree, _ = parse_yaml(f"a: {text}", "s.yaml")
    assert tree["a"] == value
    assert type(tree["a"]) is type(value)


def test_every_key_and_value_knows_its_place() -> None:
    _, places = parse_yaml("a:\n  - x\n  - {b: 1}\n", "s.yaml")
    assert str(places[("a", 1, "b"), "key"]) == "s.yaml:3:6"
    assert str(places[("a", 1, "b"), "value"]) == "s.yaml:3:9"
    assert str(places[("a", 0), "value"]) == "s.yaml:2:5"


def test_a_duplicate_key_is_refused_and_names_the_first() -> None:
    assert problems("a: 1\nb: 2\na: 3\n") == ["s.yaml:3:1  a  the key `a` again; it stands at line 1 already"]


def test_tags_are_refused() -> None:
    assert problems("a: !!python/object:os.system x") == [
        "s.yaml:1:4  a  the tag `tag:yaml.org,2002:python/object:os.system`; tags are not part of the language"
    ]


def test_a_tab_is_named_as_one() -> None:
    assert problems("a:\n\tb: 1\n") == ["s.yaml:2:1  a tab; YAML is indented with spaces"]


def test_numbers_that_are_not_finite_are_refused() -> None:
    assert "`.nan` is not a finite number" in problems("a: .nan")[0]
    assert "`-.inf` is not a finite number" in problems("a: -.inf")[0]


def test_an_empty_file_is_refused() -> None:
    assert "the file is empty" in problems("")[0]
    assert "the file is empty" in problems("# only a comment\n")[0]


def test_a_second_document_is_refused() -> None:
    assert "one file is one study" in problems("a: 1\n---\nb: 2\n")[0]


def test_broken_syntax_is_one_line_with_its_place() -> None:
    (line,) = problems("a: [1, 2\nb: 3\n")
    assert line.startswith("s.yaml:2:")
    assert "\n" not in line


def test_all_problems_of_a_file_are_told_at_once() -> None:
    assert len(problems("a: !x 1\na: 2\nb: .inf\n")) == 3


def test_an_alias_repeats_its_anchor() -> None:
    tree, _ = parse_yaml("a: &x {n: 1}\nb: *x\n", "s.yaml")
    assert tree == {"a": {"n": 1}, "b": {"n": 1}}


def test_an_alias_without_anchor_is_refused() -> None:
    assert "has no anchor before it" in problems("a: *x")[0]


def test_a_bomb_of_aliases_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert any("aliases expand this file" in p for p in problems("\n".join(lines)))


def test_deep_nesting_is_refused() -> None:
    assert "nested more than" in problems("a: " + "[" * 5000 + "]" * 5000)[0]


def test_a_file_that_is_not_utf8_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(SpecError, match=r"s\.yaml:2:7 .*not UTF-8"):
        read_yaml(path)


def test_a_large_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with path.open("wb") as file:
        file.truncate(10 * MAX_BYTES)
    with pytest.raises(SpecError, match=r"the file is 10\.0 MB and a spec is at most 1 MB"):
        read_yaml(path)


def test_a_missing_file_and_a_folder_are_told_plainly(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
