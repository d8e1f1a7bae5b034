"""Study files that cannot be read as one: each mistake is one line at its place, whatever the verb, and nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from command import told

STUDY = """\
version: 1
name: small
data:
  prompts: {source: ./prompts.jsonl, format: prompt, split: {train: 6, eval: 2}}
models:
  base: {source: smollm2-135m-instruct}
rewards:
  gold: {kind: length}
stages:
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 4}
  pairs: {do: label, responses: rolls, reward: gold}
"""
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(8)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistakes(folder: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, *options: str) -> list[str]:
    """What `check`, `plan` and `run` all say of a file with this content."""
    (folder / "s.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    answers = []
    for verb in ("check", "plan", "run"):
        status, out, err = told(capsys, verb, "s.yaml", *options)
        assert (status, out) == (2, [])
        answers.append(err)
    assert not (folder / "home").exists()
    assert answers[0] == answers[1] == answers[2]
    *lines, count = answers[0]
    assert count == f"{len(lines)} error{'s' if len(lines) > 1 else ''}; nothing was run."
    return lines


def test_the_study_itself_is_fine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.yaml").write_text(STUDY)
    assert told(capsys, "check", "s.yaml") == (0, ["s.yaml: fine"], [])


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("samples: 4", "smaples: 4", "s.yaml:10:59  stages.rolls.smaples  unknown key; did you mean `samples`?"),
        ("samples: 4", "samples: four", "s.yaml:10:68  stages.rolls.samples  takes a whole number, not the text `four`"),
        ("reward: gold", "reward: gould", "s.yaml:11:48  stages.pairs.reward  `gould` is not defined; did you mean `gold`?"),
        (
            "responses: rolls",
            "responses: base",
            "s.yaml:11:33  stages.pairs.responses  `base` is a language model; this takes responses; "
            "what fits: `rolls`",
        ),
        ("name: small\n", "name: small\nname: again\n", "s.yaml:3:1  name  the key `name` again; it stands at line 2 already"),
        ("  gold:", "\tgold:", "s.yaml:8:1  a tab; YAML is indented with spaces"),
        (
            "{kind: length}",
            "!!python/object:os.system {kind: length}",
            "s.yaml:8:9  rewards.gold  the tag `tag:yaml.org,2002:python/object:os.system`; tags are not part of the language",
        ),
        ("rewards:", "---\nrewards:", "s.yaml:7:1  a second document; one file is one study"),
        ("reward: gold}\n", "reward: gold\n", "s.yaml:12:1  not YAML: expected ',' or '}', but got '<stream end>' "
         "while parsing a flow mapping"),
        ("small", "sm\x07all", "s.yaml:2:9  the character #x0007; YAML allows none like it"),
        ("small", "'${env:NOT_SET_ANYWHERE}'", "s.yaml:2:7  name  a name is a letter followed by letters, digits, `-` and "
         "`_`, not `${env:NOT_SET_ANYWHERE}`"),
        ("version: 1", 'version: "1"', "s.yaml:1:10  version  takes the number 1, not text; leave the quotes out"),
        (
            "{kind: length}",
            "&a {kind: length}\n  more: {<<: *a}",
            "s.yaml:9:10  rewards.more  `<<` merges in YAML 1.1 only; write the fields out, or inherit by `extends:`",
        ),
        (
            "stages:",
            "schedule: {cron: '0 2 * * *', timezone: America}\nstages:",
            "s.yaml:9:41  schedule.timezone  `America` is not in the time zone database",
        ),
        ("version: 1", "version: 1\nextends: " + "m" * 300, "s.yaml:2:10  extends  no such file: {folder}/" + "m" * 300),
        ("  pairs:", '  "pairs\\n":', "s.yaml:11:3  stages.pairs\\n  a name is a letter followed by letters, digits, `-` and `_`"),
        ("  pairs:", "  'pairs[a=../b]':", "s.yaml:11:3  stages.pairs[a=../b]  brackets name the members of a `sweep:`; write "
         "the sweep, or a name without them"),
        ("samples: 4", "sweep: {samples: [../b]}", "s.yaml:10:76  stages.rolls.sweep.samples  each value is a number, a name "
         "or true/false"),
        (
            "./prompts.jsonl",
            "'${env:NOT_SET_ANYWHERE}/prompts.jsonl'",
            "s.yaml:4:21  data.prompts.source  the environment variable `NOT_SET_ANYWHERE` is not set",
        ),
        (
            "stages:",
            "tracking: {uri: '${env:NOT_SET_ANYWHERE}'}\nstages:",
            "s.yaml:9:17  tracking.uri  the environment variable `NOT_SET_ANYWHERE` is not set",
        ),
    ],
    ids=[
        "misspelt key", "wrong type", "unknown reference", "wrong artifact type", "duplicate key", "tab", "tag",
        "second document", "not closed", "control character", "variable in a name", "number in quotes", "merge key",
        "time zone", "a parent no file can be", "line break in a name",
        "brackets in a name", "path in a sweep", "variable in a path",
        "variable in an address",
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_at_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: str
) -> None:
    assert mistakes(folder, capsys, STUDY.replace(old, new, 1)) == [line.replace("{folder}", str(folder))]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "s.yaml:1:1  the file is empty; see `alignflow recipes`"),
        (STUDY.replace("small", "caf\xe9").encode("latin-1"), "s.yaml:2:10  not UTF-8 text; save the file as UTF-8"),
        (
            b"#" * 10_000_000,
            "s.yaml  the file is 10.0 MB and a spec is at most 1 MB; rows belong in files that `data:` names",
        ),
        (BOMB.encode(), "s.yaml:6:10  a5[0]  aliases expand this file to more than 200,000 values"),
        (b"just words\n", "s.yaml:1:1  a study is a mapping: `version`, `name`, `stages`, ..."),
        (b"a: [1,\n", "s.yaml:2:1  not YAML: expected the node content, but found '<stream end>' "
         "while parsing a flow node"),
    ],
    ids=["empty", "not UTF-8", "10 MB", "anchor bomb", "words", "ends in the middle"],
)  # fmt: skip
def test_a_file_that_is_no_study_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes, line: str
) -> None:
    assert mistakes(folder, capsys, content) == [line]


def test_a_cycle_is_told_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = STUDY.replace("from: base", "from: sft") + "  sft: {do: sft, from: base, data: pairs}\n"
    (line,) = mistakes(folder, capsys, text)
    assert line == "s.yaml:11:22  stages.pairs.responses  a cycle: rolls -> sft -> pairs -> rolls"


def test_several_mistakes_are_told_at_once_in_the_order_of_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = STUDY.replace("kind: length", "kind: lenght").replace("gold}", "gould}").replace("samples", "n")
    found = mistakes(folder, capsys, text.replace("version: 1", "version: 2"))
    assert [line.split("  ")[:2] for line in found] == [
        ["s.yaml:1:10", "version"],
        ["s.yaml:8:16", "rewards.gold.kind"],
        ["s.yaml:10:59", "stages.rolls.n"],
        ["s.yaml:11:48", "stages.pairs.reward"],
    ]


def test_a_mistake_on_the_command_line_is_told_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    option = "stages.rolls.smaples=2"
    assert mistakes(folder, capsys, STUDY, "--set", option) == [
        f"--set {option}  stages.rolls.smaples  unknown key; did you mean `samples`?"
    ]
    (line,) = mistakes(folder, capsys, STUDY, "--set", "stages.rolls.samples=[2")
    assert line.startswith("--set stages.rolls.samples=[2:1:5  not YAML: ")


def test_forcing_a_stage_that_is_not_there_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.yaml").write_text(STUDY)
    status, out, err = told(capsys, "run", "s.yaml", "--force", "rols")
    assert (status, out) == (2, [])
    assert err == ["--force rols  there is no such stage; did you mean `rolls`?", "1 error; nothing was run."]
    assert told(capsys, "plan", "s.yaml", "--force", "rols") == (2, [], err)


def test_forcing_a_sweep_forces_its_members(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.yaml").write_text(
        STUDY.replace("samples: 4", "sweep: {samples: [2, 4]}")
        .replace("reward: gold", "reward: gold, min_gap: 1")
        .replace("responses: rolls", "responses: 'rolls[samples=2]'")
    )
    status, out, _ = told(capsys, "plan", "s.yaml", "--force", "rolls")
    assert status == 0
    assert [line.split()[-1] for line in out if " rolls[" in line] == ["forced", "forced"]
