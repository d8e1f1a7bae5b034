"""A study file to a `Study`, or every mistake in it, each at its place with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.decoding import DecodeBestOfN
from specs.load import load
from specs.problems import SpecError
from specs.study import Study

GOOD = """\
version: 1
name: small
models:
  base: {source: smollm2-135m-instruct}
data:
  prompts: {source: ./prompts.jsonl, format: prompt, split: {train: 8, eval: 4}}
rewards:
  gold: {kind: lexicon}
stages:
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 4}
  pairs: {do: label, responses: rolls, reward: gold}
  rm: {do: reward_model, from: base, data: pairs}
  bon: {do: decode, method: best_of_n, from: base, reward: rm, n: 4}
  table: {do: evaluate, policies: [base, bon], against: base, prompts: prompts.eval, rewards: [rm, gold]}
"""


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str, name: str = "s.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def mistakes(path: Path, sets: list[str] | None = None, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path, sets, environment or {})
    return [str(p).removeprefix(f"{path}:") for p in caught.value.problems]


def test_a_good_study_loads_and_is_a_valid_flow_parameter(write) -> None:
    study = load(write(GOOD)).study
    assert Study.model_validate(study.model_dump(mode="json")) == study
    assert Study.model_validate(study.model_dump(mode="json", exclude_unset=True)).stages == study.stages


def test_every_kind_of_mistake_is_told_at_once_with_place_and_remedy(write) -> None:
    text = (
        GOOD.replace("samples: 4", "smaples: 4")
        .replace("responses: rolls", "responses: rolls, min_gap: much")
        .replace("reward: rm, n: 4", "reward: gold_rm, n: 4")
        .replace("policies: [base, bon]", "policies: [base, gold]")
    )
    assert mistakes(write(text)) == [
        "10:59  stages.rolls.smaples  unknown key; did you mean `samples`?",
        "11:49  stages.pairs.min_gap  takes a number, not the text `much`",
        "13:60  stages.bon.reward  `gold_rm` is not defined; did you mean `gold`?",
        "14:42  stages.table.policies[1]  `gold` is a reward; this takes a language model or decoding rule; "
        "what fits: `base`, `bon`",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1\n", "", "1:1  version  is missing; add `version:`"),
        ("version: 1", "version: 2", "1:10  version  `2` is not one of the choices; there are 1"),
        (
            "name: small",
            "name: a b",
            "2:7  name  a name is a letter followed by letters, digits, `-` and `_`, not `a b`",
        ),
        ("name: small", "name: small\nseed: -1", "seed  must be greater than or equal to 0, not `-1`"),
        ("name: small", "name: small\nseed: 1.5", "takes a whole number, not `1.5`"),
        ("name: small", "name: small\nstaegs: {}", "staegs  unknown key; did you mean `stages`?"),
        ("do: sample", "do: sampel", "stages.rolls.do  `sampel` is not a kind of stage; did you mean `sample`?"),
        ("do: sample, ", "", "stages.rolls  `do` is missing; add `do:` with one of sft, "),
        ("method: best_of_n", "method: best_of_m", "`best_of_m` is not a method; did you mean `best_of_n`?"),
        ("kind: lexicon", "kind: lexikon", "`lexikon` is not a kind; did you mean `lexicon`?"),
        ("n: 4}", "n: 1}", "must be greater than or equal to 2, not `1`"),
        ("n: 4}", "n: true}", "takes a whole number, not `True`"),
        ("n: 4}", "n: '4'}", "takes a whole number, not the text `4`"),
        (", n: 4}", "}", "stages.bon.n  is missing; add `n:`"),
        ("gold: {kind: lexicon}", "gold: lexicon", "rewards.gold  a mapping with `kind:`"),
        ("prompts: prompts.train", "prompts: prompts", "`prompts` is split; name one part: `prompts.train`"),
        ("prompts: prompts.train", "prompts: prompts.tain", "did you mean `prompts.train`?"),
        ("from: base, data: pairs", "from: pairs, data: pairs", "`pairs` is preference pairs; this takes a language"),
        ("from: base, reward: rm", "from: rm, reward: rm", "`rm` is a reward; this takes a language model"),
        ("  rolls:", "  2rolls:", "a name is a letter followed by letters"),
        ("  gold:", "  base:", "`base` is also in `models`"),
        ("max_dropped", "max_dropped", ""),
    ],
)
def test_a_mistake_is_one_line_at_its_place(write, old: str, new: str, message: str) -> None:
    if old == new:  # shares need their own study text
        text = GOOD.replace("format: prompt,", "format: prompt, max_dropped: 200%,")
        assert "a share is between 0% and 100%" in mistakes(write(text))[0]
        return
    found = mistakes(write(GOOD.replace(old, new)))
    assert any(message in line for line in found), found


def test_a_cycle_is_named_in_order(write) -> None:
    text = GOOD.replace("responses: rolls", "responses: rolls2").replace(
        "  pairs:", "  rolls2: {do: sample, from: bon, prompts: prompts.train, samples: 2}\n  pairs:"
    )
    (line,) = mistakes(write(text))
    assert "a cycle: rolls2 -> bon -> rm -> pairs -> rolls2" in line


def test_a_reward_kept_for_evaluation_may_not_train_or_guide(write) -> None:
    text = GOOD.replace("gold: {kind: lexicon}", "gold: {kind: lexicon, use: evaluation}")
    assert mistakes(write(text)) == [
        "11:48  stages.pairs.reward  `gold` is kept for evaluation (`use: evaluation`) and may not serve training"
    ]


def test_nor_may_a_sum_that_contains_it(write) -> None:
    text = GOOD.replace(
        "gold: {kind: lexicon}",
        "gold: {kind: lexicon, use: evaluation}\n  blend: {kind: weighted, of: {gold: 0.5}}",
    ).replace("reward: gold", "reward: blend")
    assert "`blend` is kept for evaluation" in mistakes(write(text))[0]


def test_expectations_name_policies_and_metrics_of_their_stage(write) -> None:
    text = GOOD.replace("rewards: [rm, gold]", 'rewards: [rm, gold], expect: {bon: {win_rate: ">= 0.5"}, rm: {}}')
    found = mistakes(write(text))
    assert any("`win_rate` is not a metric of this stage; did you mean `win_rate.rm`?" in line for line in found)
    assert any("expect.rm  `rm` is a reward" in line for line in found)


def test_a_win_rate_of_policies_that_share_their_draws_needs_two_samples(write) -> None:
    single = GOOD.replace("rewards: [rm, gold]", "rewards: [rm, gold], budget: {samples_per_prompt: 1}")
    assert mistakes(write(single)) == [
        "14:136  stages.table.budget.samples_per_prompt  policies share their random numbers, so a win rate needs at "
        "least 2 samples a prompt"
    ]
    greedy = single.replace("method: best_of_n, from: base, reward: rm, n: 4", "method: greedy, from: base")
    load(write(greedy))
    load(write(single.replace("policies: [base, bon]", "policies: [base]")))


def test_two_sets_of_samples_without_a_common_number_need_as_many_samples(write) -> None:
    text = GOOD.replace("rewards: [rm, gold]", "rewards: [rm, gold], inference: [{method: best_of_n, n: 2}]")
    (found,) = mistakes(write(text))
    assert found.endswith(
        "stages.table.inference[0].n  2 samples on both sides that share no random numbers are 4 a prompt; raise "
        "`budget.samples_per_prompt` from 2"
    )
    enough = text.replace("inference:", "budget: {samples_per_prompt: 4}, inference:")
    bar = ', expect: {bon: {best_of_2_win_rate.gold: ">= 0.5"}}, inference:'
    load(write(enough.replace(", inference:", bar)))
    assert (
        "did you mean `best_of_2_win_rate.gold`"
        in mistakes(write(enough.replace(", inference:", bar.replace("2_", "3_"))))[0]
    )


def test_a_mistake_in_a_sweep_hides_no_other_and_none_is_said_of_what_refers_to_it(write) -> None:
    text = GOOD.replace("n: 4}", "sweep: {n: 4}}").replace("samples: 4", "smaples: 4")
    first, second = mistakes(write(text))
    assert "stages.rolls.smaples" in first
    assert second.endswith("stages.bon.sweep.n  a list of values")


def test_what_is_wrong_in_itself_is_still_suggested(write) -> None:
    text = GOOD.replace("samples: 4", "smaples: 4").replace("responses: rolls", "responses: rols")
    assert mistakes(write(text))[1].endswith("`rols` is not defined; did you mean `rolls`?")


def test_a_sweep_becomes_one_stage_for_each_combination(write) -> None:
    study = load(write(GOOD.replace("n: 4}", "sweep: {n: [2, 4], temperature: [0.5, 1.0]}}"))).study
    members = [n for n in study.stages if n.startswith("bon")]
    assert members == [
        "bon[n=2,temperature=0.5]", "bon[n=2,temperature=1.0]", "bon[n=4,temperature=0.5]", "bon[n=4,temperature=1.0]",
    ]  # fmt: skip
    first = study.stages[members[1]]
    assert isinstance(first, DecodeBestOfN)
    assert (first.n, first.temperature) == (2, 1.0)


@pytest.mark.parametrize(
    ("sets", "members"),
    [
        ("stages.bon.sweep.n=[2, 4, 8]", ["bon[n=2]", "bon[n=4]", "bon[n=8]"]),
        ("stages.bon.sweep={n: [3], top_k: [5]}", ["bon[n=3,top_k=5]"]),
    ],
)
def test_a_sweep_may_be_set_on_the_command_line(write, sets: str, members: list[str]) -> None:
    study = load(write(GOOD.replace("n: 4}", "sweep: {n: [2, 4]}}")), [sets]).study
    assert [n for n in study.stages if n.startswith("bon")] == members


@pytest.mark.parametrize("sweep", ["*whole", "{n: *values}"])
def test_a_sweep_may_be_an_alias(write, sweep: str) -> None:
    anchors = GOOD.replace("n: 4}", "sweep: &whole {n: &values [2, 4]}}")
    again = f"  again: {{do: decode, method: best_of_n, from: base, reward: rm, sweep: {sweep}}}\n"
    study = load(write(anchors + again)).study
    assert {"again[n=2]", "again[n=4]"} <= set(study.stages)
    wrong = anchors.replace("[2, 4]", "[2, x]") + again
    assert all(line.endswith("takes a whole number, not the text `x`") for line in mistakes(write(wrong)))


def test_a_parent_is_named_in_the_file_only(write) -> None:
    (line,) = mistakes(write(GOOD), ["extends=other.yaml"])
    assert line.endswith("extends  stands in a file; `--set` comes after all files are merged")


def test_naming_a_sweep_means_all_of_it_where_many_fit_and_is_an_error_where_one_does(write) -> None:
    swept = GOOD.replace("n: 4}", "sweep: {n: [2, 4]}}")
    load(write(swept))
    one = swept.replace("against: base", "against: bon")
    assert "`bon` is a sweep of 2; name one: `bon[n=2]`, `bon[n=4]`" in mistakes(write(one))[0]
    load(write(swept.replace("against: base", "against: 'bon[n=2]'")))


def test_a_mistake_in_what_sweep_members_share_is_told_once(write) -> None:
    text = GOOD.replace("reward: rm, n: 4}", "reward: mr, temprature: 1.0, sweep: {n: [2, 4]}}")
    assert len(mistakes(write(text))) == 1
    text = GOOD.replace("n: 4}", "sweep: {n: [2, x]}}")
    assert mistakes(write(text))[0].endswith("takes a whole number, not the text `x`")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("[1]", "names fields and their values"),
        ("{n: 4}", "a list of values"),
        ("{n: []}", "a list of values"),
        ("{n: [2, null]}", "each value is a number, a name or true/false"),
        ("{n: [[1]]}", "each value is a number, a name or true/false"),
        ("{n: [2, 2]}", "the same value twice"),
        ("{n: [2], reward: [gold]}", "`reward` is set on the stage as well; keep one"),
    ],
)
def test_a_malformed_sweep_is_told(write, sweep: str, message: str) -> None:
    assert message in mistakes(write(GOOD.replace("n: 4}", f"sweep: {sweep}}}")))[0]


def test_extends_merges_deeply_and_keeps_places(write) -> None:
    write(GOOD, "parent.yaml")
    child = write("extends: parent.yaml\nname: child\nstages:\n  rolls: {samples: 9}\n", "child.yaml")
    study = load(child).study
    assert study.name == "child"
    assert study.stages["rolls"].samples == 9  # type: ignore[union-attr]
    wrong = write("extends: parent.yaml\nstages:\n  rolls: {samples: many}\n", "wrong.yaml")
    assert mistakes(wrong) == ["3:20  stages.rolls.samples  takes a whole number, not the text `many`"]


def test_replace_inherits_nothing(write) -> None:
    write(GOOD.replace("do: sample,", "do: sample, max_new_tokens: 9,"), "parent.yaml")
    text = "extends: parent.yaml\nstages:\n  rolls: {replace: true, do: sample, from: base, prompts: prompts.eval, samples: 2}\n"
    rolls = load(write(text)).study.stages["rolls"]
    assert (rolls.prompts, rolls.max_new_tokens) == ("prompts.eval", 64)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("samples: 4", "samples: 1", "stages.pairs.responses  a pair takes two responses to a prompt, and `rolls` has one"),
        ("stages:", "stages:\n  b: {do: bond, from: base, prompts: prompts.train, reward: gold, rounds: 2}",
         "stages.b.rounds  is for `raft`, `rrhf`, `dpo`; `bond` has none"),
    ],
)  # fmt: skip
def test_what_can_never_be_is_told_at_its_place(write, old: str, new: str, told: str) -> None:
    assert old in GOOD
    (line,) = mistakes(write(GOOD.replace(old, new, 1)))
    assert told in line


def test_a_bar_that_no_win_rate_meets_and_a_name_that_stands_twice_are_told(write) -> None:
    text = GOOD.replace("rewards: [rm, gold]", 'rewards: [rm, gold, rm], expect: {bon: {win_rate.gold: ">= 50"}}')
    bar, twice = sorted(mistakes(write(text)), key=len, reverse=True)
    assert "expect.bon.win_rate.gold  no win rate can be `>= 50`: it lies between 0 and 1" in bar
    assert "rewards[2]  `rm` stands here twice" in twice


def test_a_cycle_of_parents_is_refused(write) -> None:
    write("extends: b.yaml\n", "a.yaml")
    path = write("extends: a.yaml\n", "b.yaml")
    with pytest.raises(SpecError, match=r"a cycle: b\.yaml -> a\.yaml -> b\.yaml"):
        load(path)


def test_set_writes_over_the_file_and_is_named_as_the_place(write) -> None:
    path = write(GOOD)
    assert load(path, ["stages.rolls.samples=9"]).study.stages["rolls"].samples == 9  # type: ignore[union-attr]
    assert load(path, ["execution.threads=2"]).study.execution.threads == 2
    assert load(path, ["stages.rm.lora=null"]).study.stages["rm"].lora is None  # type: ignore[union-attr]
    with pytest.raises(SpecError) as caught:
        load(path, ["stages.rolls.smaples=9", "nonsense"])
    assert str(caught.value).startswith("--set nonsense")
    with pytest.raises(SpecError) as caught:
        load(path, ["stages.rolls.smaples=9"])
    assert str(caught.value) == (
        "--set stages.rolls.smaples=9  stages.rolls.smaples  unknown key; did you mean `samples`?"
    )


def test_set_of_a_field_of_nothing_names_what_was_meant_and_a_new_entry_may_begin(write) -> None:
    path = write(GOOD)
    with pytest.raises(SpecError) as caught:
        load(path, ["stages.rols.samples=9"])
    assert str(caught.value) == (
        "--set stages.rols.samples=9  stages.rols  there is none of that name; did you mean `rolls`?"
    )
    more = ["stages.new.do=decode", "stages.new.method=greedy", "stages.new.from=base"]
    assert "new" in load(path, more).study.stages


def test_relative_paths_are_relative_to_the_file_that_holds_them(write, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(GOOD, "inner/parent.yaml")
    study = load(write("extends: inner/parent.yaml\nname: child\n")).study
    assert study.data["prompts"].source == str(tmp_path / "inner" / "prompts.jsonl")


def test_environment_variables_stand_in_paths_only_and_their_values_stay_out(write) -> None:
    path = write(GOOD.replace("./prompts.jsonl", "'${env:ROWS}/prompts.jsonl'"))
    assert load(path, environment={"ROWS": "/secret"}).study.data["prompts"].source == "${env:ROWS}/prompts.jsonl"
    assert "`ROWS` is not set" in mistakes(path)[0]
    named = write(GOOD.replace("format: prompt,", "format: prompt, subset: '${env:ROWS}',"))
    assert "stands only in paths" in mistakes(named, environment={"ROWS": "x"})[0]
    assert "write it as `${env:NAME}`" in mistakes(write(GOOD.replace("./prompts.jsonl", "'${ROWS}/prompts.jsonl'")))[0]


SCHEDULES = [
    ("cron: '0 2 * *'", "schedule.cron  not a cron expression: "),
    ("cron: '0 2 * * *', timezone: Mars/Base", "schedule.timezone  `Mars/Base` is not in the time zone database"),
    ("interval: 6", "schedule.interval  takes text, not `6`"),
    ("interval: 6 hours", "schedule.interval  a duration is written `90s`, `10m`, `2h` or `1d`, not `6 hours`"),
    ("rrule: 'FREQ=SOMETIMES'", "schedule.rrule  not a recurrence rule: "),
    ("rrule: 'FREQ=DAILY;UNTIL=19990101'", "schedule.rrule  not a recurrence rule: it names no time to come"),
    ("timezone: UTC", "schedule  has neither `cron`, `interval` nor `rrule`; give one of the three"),
    ("interval: 6h, cron: '0 2 * * *'", "schedule  has `cron` and `interval`; give one of the three"),
]


@pytest.mark.parametrize("way", ["cron: '0 2 * * *'", "interval: 6h", "rrule: 'FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=2'"])
def test_a_schedule_goes_by_one_of_three_ways(way: str, write) -> None:
    load(write(GOOD + f"schedule: {{{way}, timezone: Europe/Berlin}}\n"))


@pytest.mark.parametrize(("schedule", "told"), SCHEDULES, ids=[s[0] for s in SCHEDULES])
def test_a_schedule_is_checked(schedule: str, told: str, write) -> None:
    (found,) = mistakes(write(GOOD + f"schedule: {{{schedule}}}\n"))
    assert told in found


def test_a_study_without_stages_is_told(write) -> None:
    assert "stages  is missing" in mistakes(write("version: 1\nname: x\n"))[0]
    assert "stages  is missing" in mistakes(write("version: 1\nname: x\nstages: {}\n"))[0]


def test_a_file_that_is_no_mapping_is_told(write) -> None:
    assert "a study is a mapping" in mistakes(write("- a\n- b\n"))[0]
