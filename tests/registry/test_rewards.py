"""Rewards as scorers: what each measures, and what becomes of one that misbehaves."""

from __future__ import annotations

import ast
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from registry.artifacts import Artifact
from registry.python_source import python_fact
from registry.reading import noting
from registry.rewards import scorer
from specs.base import Entry
from specs.plan import Fact
from specs.problems import UserError
from specs.rewards import Classifier, Length, Lexicon, PythonReward, Weighted

PROMPT = ({"role": "user", "content": "How was it?"},)


def artifact(entry: Entry, name: str = "r", **more) -> Artifact:
    payload = {"spec": entry.model_dump(mode="json"), "facts": {"precision": "fp32"}}
    return Artifact(name, entry, more.pop("payload", payload), fingerprint=name, **more)


def score(reward: Artifact, *responses: str, batch: int = 4) -> list[float]:
    return scorer(reward, batch=batch)([PROMPT] * len(responses), responses)


@pytest.fixture
def python_reward(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(body: str, module: str) -> Artifact:
        (tmp_path / f"{module}.py").write_text(f"def score(prompts, responses):\n    {body}\n")
        return artifact(PythonReward(kind="python", target=f"{module}:score"), "mine")

    return made


def test_the_lexicon_orders_sentiments_within_minus_one_and_one() -> None:
    low, neutral, high = score(
        artifact(Lexicon(kind="lexicon")), "A horrible, sad mess.", "A table.", "Wonderful, I love it!"
    )
    assert -1 <= low < -0.5 < neutral == 0 < 0.5 < high <= 1


def test_length_counts_words_and_may_reward_brevity() -> None:
    assert score(artifact(Length(kind="length")), "", "one", "one  two\nthree") == [0, 1, 3]
    assert score(artifact(Length(kind="length", per_word=-0.5)), "one two") == [-1]


def test_a_weighted_reward_is_the_weighted_sum() -> None:
    length, lexicon = artifact(Length(kind="length"), "length"), artifact(Lexicon(kind="lexicon"), "lexicon")
    entry = Weighted(kind="weighted", of={"length": 0.25, "lexicon": 2.0})
    payload = {"spec": {"of": {"length": 0.25, "lexicon": 2.0}}}
    mixed = artifact(entry, "mix", payload=payload, inputs={"of": (length, lexicon)})
    texts = ("I love this", "no")
    expected = [0.25 * n + 2 * s for n, s in zip(score(length, *texts), score(lexicon, *texts), strict=True)]
    assert score(mixed, *texts) == pytest.approx(expected)


def test_a_weighted_reward_counts_a_reward_under_two_names_once_with_the_sum_of_its_weights() -> None:
    length = artifact(Length(kind="length"), "length")
    entry = Weighted(kind="weighted", of={"length": 0.25, "twin": 0.5})
    mixed = artifact(entry, "mix", payload={"spec": {"of": {"length": 0.75}}}, inputs={"of": (length, length)})
    assert score(mixed, "one two three four") == [3.0]


def test_a_python_reward_is_called_with_lists_of_prompts_and_responses(python_reward) -> None:
    reward = python_reward("return [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]", "good_reward")
    assert score(reward, "ab", "") == [13, 11]


@pytest.mark.parametrize(
    ("body", "module", "message"),
    [
        ("raise KeyError('x')", "raises_reward", r"the reward `mine` failed: KeyError: 'x' \(raises_reward.py:2\)"),
        ("return [1.0]", "short_reward", r"`mine` returned 1 scores for 2 responses; it must return one each"),
        ("return [1.0, float('nan')]", "nan_reward", r"`mine` returned nan for the response 'b'"),
        ("return [1.0, float('inf')]", "inf_reward", r"`mine` returned inf"),
        ("return [1.0, 'much']", "text_reward", r"the reward `mine` failed: ValueError"),
        ("return None", "none_reward", r"the reward `mine` failed: TypeError"),
    ],
)
def test_a_reward_that_misbehaves_is_one_line(python_reward, body: str, module: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        score(python_reward(body, module), "a", "b")
    assert "\n" not in str(caught.value)


def test_a_parser_that_miscounts_where_two_threads_parse_at_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As CPython 3.11 does now and then.
    (tmp_path / "raced_reward.py").write_text("def score(prompts, responses):\n    return []\n")
    parse, calls = ast.parse, iter(range(1000))

    def miscounts(*arguments: Any) -> Any:
        if next(calls) % 2 == 0:
            raise SystemError("AST constructor recursion depth mismatch (before=57, after=74)")
        return parse(*arguments)

    monkeypatch.setattr(ast, "parse", miscounts)
    found = python_fact(PythonReward(kind="python", target="raced_reward:score"), tmp_path)
    assert found.problem is None and found.identity["sha256"]


def test_a_python_reward_is_found_but_not_run_before_the_study_runs(tmp_path: Path) -> None:
    (tmp_path / "unrun_reward.py").write_text("raise SystemExit\ndef score(p, r): ...\n")
    found = python_fact(PythonReward(kind="python", target="unrun_reward:score"), tmp_path)
    assert found.problem is None
    assert set(found.identity) == {"sha256"}
    missing = python_fact(PythonReward(kind="python", target="unrun_reward:scor"), tmp_path)
    assert "defines no function `scor`; did you mean `score`?" in str(missing.problem)
    assert "no module `no_such_reward`" in str(
        python_fact(PythonReward(kind="python", target="no_such_reward:f"), tmp_path).problem
    )


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def source(folder: Path, target: str = "mine:score") -> Fact:
    found = python_fact(PythonReward(kind="python", target=target), folder)
    assert found.problem is None, found.problem
    return found


SCORE = "def score(p, r): ...\n"
IMPORTS = {
    "mine.py": "from words import good\nfrom pack import inner\n" + SCORE,
    "words.py": "import more_words\ngood = 1\n",
    "more_words.py": "x = 1\n",
    "pack/__init__.py": "",
    "pack/inner.py": "from . import deep\nfrom .deeper import z\n",
    "pack/deep.py": "y = 1\n",
    "pack/deeper.py": "z = 1\n",
}


def test_the_identity_of_a_python_reward_is_the_source_of_all_that_it_imports_from_beside_the_spec(
    tmp_path: Path,
) -> None:
    before = source(written(tmp_path, IMPORTS)).identity
    assert source(written(tmp_path, {"unrelated.py": "", "pack/unrelated.py": ""})).identity == before
    for name, text in IMPORTS.items():
        assert source(written(tmp_path, {name: text + "# changed\n"})).identity != before, name
        assert source(written(tmp_path, {name: text})).identity == before


def test_a_module_is_looked_for_beside_its_own_spec(tmp_path: Path) -> None:
    one = written(tmp_path / "one", {"mine.py": SCORE})
    other = written(tmp_path / "other", {"mine.py": SCORE + "# another\n"})
    first = source(one).identity
    assert source(other).identity != first
    assert source(one).identity == first
    assert not {str(one), str(other)} & set(sys.path)


@pytest.mark.parametrize(
    ("name", "whose"), [("tasks", "an installed package"), ("random", "Python itself"), ("trl", "an installed package")]
)
def test_a_module_that_is_called_as_another_one_is_refused(tmp_path: Path, name: str, whose: str) -> None:
    folder = written(tmp_path, {f"{name}.py": SCORE})
    found = python_fact(PythonReward(kind="python", target=f"{name}:score"), folder)
    assert found.problem == f"`{name}` is also the name of a module of {whose}; call yours something else"


def test_so_is_a_helper_that_is_called_as_another_module_is(tmp_path: Path) -> None:
    folder = written(tmp_path, {"mine.py": "import registry\n" + SCORE, "registry.py": ""})
    found = python_fact(PythonReward(kind="python", target="mine:score"), folder)
    assert found.problem == (
        "`registry`, which it imports, is also the name of a module of an installed package; call yours something else"
    )


def test_an_import_that_cannot_succeed_is_told_before_anything_runs(tmp_path: Path) -> None:
    folder = written(tmp_path, {"mine.py": "import math, not_installed.inner\n" + SCORE})
    found = python_fact(PythonReward(kind="python", target="mine:score"), folder)
    assert found.problem == f"`mine` imports `not_installed`, which is neither beside the spec ({folder}) nor installed"
    source(written(tmp_path, {"mine.py": "try:\n    import not_installed\nexcept ImportError: ...\n" + SCORE}))


@pytest.mark.parametrize(
    "text",
    [
        "from functools import partial\nscore = partial(print)\n",
        "from words import score\n",
        "from words import good as score\n",
        "from words import *\n",
        "import sys\nif sys.platform:\n    def score(p, r): ...\n",
        "try:\n    import json\nexcept ImportError:\n    score = None\n",
        "class score: ...\n",
    ],
)
def test_a_function_may_be_bound_in_any_way(tmp_path: Path, text: str) -> None:
    source(written(tmp_path, {"mine.py": text, "words.py": ""}))


def test_a_package_that_fails_when_it_is_imported_is_told_when_it_is_used(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    written(tmp_path, {"failing_package/__init__.py": "nothing\n", "failing_package/inner.py": SCORE})
    source(tmp_path, "failing_package.inner:score")  # found without running anything
    reward = artifact(PythonReward(kind="python", target="failing_package.inner:score"), "mine")
    with pytest.raises(
        UserError, match=r"cannot be imported: NameError: name 'nothing' is not defined \(__init__.py:1\)"
    ):
        score(reward, "a")


def test_a_classifier_reads_the_end_of_a_dialogue_longer_than_its_positions(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "c", max_position_embeddings=40)
    reward = artifact(Classifier(kind="classifier", source=str(folder), precision="fp32"))
    # 39 letters and the end of the turn are all it has positions for.
    long, cut = score(reward, "a" * 200 + "b" * 39, "z" * 30 + "b" * 39)
    assert long == cut


def test_a_classifier_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "c")
    reward = artifact(Classifier(kind="classifier", source=str(folder), precision="fp32"))
    texts = ["a", "a longer answer, much longer", "mid size", "<pad><pad>", "x" * 60]
    one, many = score(reward, *texts, batch=1), score(reward, *texts, batch=5)
    assert one == pytest.approx(many, abs=1e-5)
    assert len(set(one)) == len(one)


def test_a_classifier_with_classes_gives_the_log_probability_of_one(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "c", labels=3)

    def by(label: str | None) -> Artifact:
        return artifact(Classifier(kind="classifier", source=str(folder), label=label, precision="fp32"))

    columns = [score(by(f"LABEL_{i}"), "fine", "bad") for i in range(3)]
    for row in zip(*columns, strict=True):
        assert sum(math.exp(x) for x in row) == pytest.approx(1)
    with pytest.raises(UserError, match="add `label:` with one of LABEL_0, LABEL_1, LABEL_2"):
        score(by(None), "fine")
    with pytest.raises(UserError, match="`label: joy` is not a class of the model"):
        score(by("joy"), "fine")


def test_what_models_read_for_each_text_is_noted_and_a_sum_of_two_reads_twice(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "c")
    reward = artifact(Classifier(kind="classifier", source=str(folder), precision="fp32"))
    texts = ["a", "abcd"]
    with noting() as noted:
        score(reward, *texts)
    short, long = noted.of_each(2)
    assert long - short == 3  # a byte is a token
    with noting() as twice:
        score(reward, *texts)
        score(reward, *texts)
    assert twice.of_each(2) == [2 * short, 2 * long]
    with noting() as none:
        score(artifact(Length(kind="length")), *texts)
    assert none.of_each(2) == [0, 0]
