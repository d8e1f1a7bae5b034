"""Guided policies of a study: guides that were trained in it, or that come with a folder, and those that cannot guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import letters
import pytest
import stages
import tiny
import torch
from asked import MESSAGES, PROMPTS, Asked

from registry.bases import Bases
from registry.rows import Prompt
from specs.problems import UserError
from tasks.guides import Guides
from tasks.lane import Lane, Open
from tasks.models import Models
from tasks.outputs import prefix_rewards
from tasks.requests import Asked as Served
from tasks.rules import rule_of

STUDY = """\
models:
  base: {source: ./model, precision: fp32}
  other: {source: ./other, precision: fp32}
  third: {source: ./third, precision: fp32}
  letters: {source: ./letters, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
  pairs: {source: ./pairs.jsonl, format: preference}
rewards:
  score: {kind: length}
  classes: {kind: classifier, source: ./classes, precision: fp32}
  joy: {kind: classifier, source: ./labelled, label: LABEL_1, precision: fp32}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 4, max_new_tokens: 6}
  rm: {do: reward_model, from: other, data: pairs, lora: {rank: 2, alpha: 4}}
  arm: {do: autoregressive_reward_model, from: other, data: pairs, lora: {rank: 2, alpha: 4}, learning_rate: 1e-2}
  wide: {do: prefix_scorer, loss: cd_fudge, from: other, responses: rolls, reward: score, learning_rate: 1e-2}
  narrow: {do: prefix_scorer, loss: prefix_bt, from: other, data: pairs, learning_rate: 1e-2}
  foreign: {do: autoregressive_reward_model, from: letters, data: pairs}

  greedy: {do: decode, method: greedy, from: base}
  five: {do: decode, method: sample, from: base, top_k: 5}
  sharp: {do: decode, method: sample, from: base, temperature: 0.5}
  best: {do: decode, method: best_of_n, from: base, reward: score, n: 4}
  worst: {do: decode, method: worst_of_n, from: base, reward: score, n: 4}

  args: {do: decode, method: args, from: base, reward: rm, candidates: 5, sweep: {strength: [0.0, 40.0]}}
  drawn: {do: decode, method: args, from: base, reward: rm, candidates: 5, temperature: 1.0, sweep: {strength: [0.0, 40.0]}}
  by_class: {do: decode, method: args, from: base, reward: classes, candidates: 5, strength: 40.0}
  by_label: {do: decode, method: args, from: base, reward: joy, candidates: 5, strength: 40.0}
  by_prefix: {do: decode, method: args, from: base, reward: narrow, candidates: 5, strength: 40.0}
  by_value: {do: decode, method: args, from: base, reward: wide, candidates: 5, strength: 40.0}
  cd: {do: decode, method: controlled_decoding, from: base, scorers: {wide: 0.5}, sweep: {strength: [0.0, 8.0]}}
  blocks: {do: decode, method: controlled_decoding, from: base, scorers: {wide: 0.5, narrow: 1.0}, block: 3, samples: 4}
  by_length: {do: decode, method: controlled_decoding, from: base, scorers: {score: 1.0}, block: 10, samples: 4}
  ahead: {do: decode, method: transfer_q, from: base, baseline: third, reward: rm, candidates: 4, look_ahead: 3, strength: 40.0}
  ahead_of_joy: {do: decode, method: transfer_q, from: base, baseline: third, reward: joy, candidates: 4, look_ahead: 3, strength: 40.0}
  cards: {do: decode, method: cards, from: base, reward: rm, target: 40.0, entropy: 1.0, shortest: 2, tries: 3}
  cards_by_prefix: {do: decode, method: cards, from: base, reward: narrow, target: 40.0, shortest: 2, longest: 3, tries: 3}
  genarm: {do: decode, method: genarm, from: base, guides: {arm: 1.0}, sweep: {strength: [0.0, 1.0]}}
  official: {do: decode, method: genarm, from: base, guides: {arm: 1.0}, official_code: true, temperature: 0.5}
  outlandish: {do: decode, method: genarm, from: base, guides: {foreign: 1.0}}
  only_other: {do: decode, method: mod, from: base, policies: {other: 1.0}}
  mixed: {do: decode, method: mod, from: base, policies: {other: 0.5, third: 0.5}}
  halves: {do: decode, method: mod, from: third, policies: {other: 0.5}}
"""


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("guides")
    for seed, name in enumerate(("model", "other", "third")):
        tiny.language_model(folder / name, seed=seed)
    letters.language_model(folder / "letters", 0)
    tiny.classifier(folder / "classes", initializer_range=1.0)
    tiny.classifier(folder / "labelled", labels=2, initializer_range=1.0)
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in MESSAGES])
    tiny.write_lines(folder / "pairs.jsonl", tiny.TEN)
    view = stages.study(folder, STUDY)
    for name in ("rolls", "rm", "arm", "wide", "narrow"):
        stages.build(view, name)
    return view


def test_without_strength_a_guided_policy_is_the_model_itself(view: Any) -> None:
    names = ["args[strength=0.0]", "drawn[strength=0.0]", "cd[strength=0.0]", "genarm[strength=0.0]"]
    asked = Asked(view, "base", "greedy", "five", *names)
    assert asked["args[strength=0.0]"] == asked["greedy"]
    assert asked["drawn[strength=0.0]"] == asked["five"]
    assert asked["cd[strength=0.0]"] == asked["genarm[strength=0.0]"] == asked["base"]


def test_every_kind_of_guide_changes_what_is_said(view: Any) -> None:
    asked = Asked(
        view, "base", "greedy", "five", "args[strength=40.0]", "by_class", "by_label", "by_prefix", "by_value"
    )
    greedy = {
        str(asked[name]) for name in ("greedy", "args[strength=40.0]", "by_class", "by_label", "by_prefix", "by_value")
    }
    assert len(greedy) == 6
    asked = Asked(view, "base", "five", "drawn[strength=40.0]", "cd[strength=8.0]", "genarm[strength=1.0]", "mixed")
    assert len({str(answers) for answers in asked.answers.values()}) == 6


def test_a_block_as_long_as_an_answer_is_best_of_n(view: Any) -> None:
    asked = Asked(view, "best", "by_length", "blocks", "base")
    assert asked["by_length"] == asked["best"]
    assert asked["blocks"] != asked["base"]


def test_what_an_aligned_model_makes_of_a_candidate_guides_too(view: Any) -> None:
    asked = Asked(view, "greedy", "ahead", "ahead_of_joy", max_new_tokens=6)
    assert len({str(answers) for answers in asked.answers.values()}) == 3


def test_segments_are_judged_by_reward_models_and_by_scorers_of_what_was_read(view: Any) -> None:
    asked = Asked(view, "base", "cards", "cards_by_prefix")
    assert len({str(answers) for answers in asked.answers.values()}) == 3


def test_the_published_form_at_its_temperature_is_the_papers_product(view: Any) -> None:
    asked = Asked(view, "genarm[strength=1.0]", "official")
    assert asked["official"] == asked["genarm[strength=1.0]"]


def test_the_whole_weight_on_one_policy_is_that_policy(view: Any) -> None:
    asked = Asked(view, "only_other", "other")
    assert asked["only_other"] == asked["other"]


def test_what_the_weights_leave_goes_to_the_model_itself(view: Any) -> None:
    asked = Asked(view, "mixed", "halves")
    assert asked["mixed"] == asked["halves"]


def test_the_worst_of_n_is_never_above_the_best_of_the_same_draws(view: Any) -> None:
    asked = Asked(view, "base", "best", "worst")
    for best, plain, worst in zip(
        *([a for row in asked[n] for a in row] for n in ("best", "base", "worst")), strict=True
    ):
        assert len(best.split()) >= len(plain.split()) >= len(worst.split())
    assert asked["best"] != asked["worst"]
    assert asked.generated == [len(PROMPTS) * 2 * 4]


def test_a_guide_with_other_tokens_is_refused_with_one_that_differs(view: Any) -> None:
    (path, told), *more = view.problems()
    assert path == ("stages", "outlandish", "guides") and not more
    assert told.startswith(
        "`foreign` cannot guide this: they have different vocabularies: token '<pad>' is number 0 to"
    )
    stages.build(view, "foreign")
    with pytest.raises(
        UserError, match="`foreign` cannot guide `base`: they have different vocabularies: token '<pad>'"
    ):
        Asked(view, "outlandish")


def test_room_is_asked_for_what_a_template_writes_behind_the_end_too(tmp_path: Path) -> None:
    tiny.language_model(tmp_path / "model")
    tiny.classifier(tmp_path / "wordy", initializer_range=1.0, max_position_embeddings=24)
    tiny.tokenizer(chat_template=tiny.CHAT.replace("<|end|>", "<|end|>\n\n")).save_pretrained(tmp_path / "wordy")
    view = stages.study(
        tmp_path,
        """\
models: {base: {source: ./model, precision: fp32}}
rewards: {wordy: {kind: classifier, source: ./wordy, precision: fp32}}
stages: {args: {do: decode, method: args, from: base, reward: wordy, candidates: 100}}
""",
    )
    prompt = PROMPTS[:1]  # nine tokens there: <|user|>Why?<|end|>, two line breaks, <|assistant|>
    assert Asked(view, "args", prompts=prompt, samples=1, max_new_tokens=13)["args"]
    with pytest.raises(UserError, match="`wordy`: prompt 1: 9 tokens and 16 new ones are more than the model's 24 pos"):
        Asked(view, "args", prompts=prompt, samples=1, max_new_tokens=14)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Guides of 24 positions, to which a prompt of one letter and what stands around it are four."""
    folder = tmp_path_factory.mktemp("narrow")
    tiny.language_model(folder / "model")
    tiny.language_model(folder / "short", seed=1, max_position_embeddings=24)
    tiny.classifier(folder / "wordy", initializer_range=1.0, max_position_embeddings=24)
    tiny.tokenizer(chat_template=tiny.CHAT.replace("<|end|>", "<|end|>\n\n")).save_pretrained(folder / "wordy")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": "a"}])
    tiny.write_lines(folder / "pairs.jsonl", [{"prompt": "a", "chosen": "yes", "rejected": "no"}] * 4)
    view = stages.study(
        folder,
        """\
models:
  base: {source: ./model, precision: fp32}
  short: {source: ./short, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
  pairs: {source: ./pairs.jsonl, format: preference}
rewards:
  score: {kind: length}
  wordy: {kind: classifier, source: ./wordy, precision: fp32}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 2, max_new_tokens: 6}
  arm: {do: autoregressive_reward_model, from: short, data: pairs}
  wide: {do: prefix_scorer, loss: cd_fudge, from: short, responses: rolls, reward: score}
  genarm: {do: decode, method: genarm, from: base, guides: {arm: 1.0}}
  cd: {do: decode, method: controlled_decoding, from: base, scorers: {wide: 1.0}}
  mod: {do: decode, method: mod, from: base, policies: {short: 0.5}}
  args: {do: decode, method: args, from: base, reward: wordy, candidates: 4}
  cards: {do: decode, method: cards, from: base, reward: wordy, target: 5.0, tries: 2}
  ahead: {do: decode, method: transfer_q, from: base, baseline: short, reward: score, candidates: 3, look_ahead: 20}
  judged_ahead: {do: decode, method: transfer_q, from: base, baseline: base, reward: wordy, candidates: 3, look_ahead: 20}
""",
    )
    for name in ("rolls", "arm", "wide"):
        stages.build(view, name)
    return view


# What the classifier's template writes behind an end is two tokens more, in the prompt and behind an answer; an answer
# that is read as a finished one has its end behind the last token.
@pytest.mark.parametrize(
    ("name", "guide", "room"),
    [
        *[("genarm", "arm", 20), ("cd", "wide", 20), ("mod", "short", 20), ("ahead", "short", 20)],
        *[("args", "wordy", 16), ("cards", "wordy", 16), ("judged_ahead", "wordy", 15)],
    ],
)
def test_answers_end_where_a_guide_has_no_more_positions(narrow: Any, name: str, guide: str, room: int) -> None:
    prompt, policy = Prompt(({"role": "user", "content": "a"},)), narrow.artifact(name)
    asked = Asked(narrow, name, prompts=[prompt], max_new_tokens=room)
    lengths = [len(answer.ids) for answer in asked.answers[name][0]]
    assert max(lengths) == room
    with pytest.raises(UserError, match=f"`{guide}`: prompt 1: .* new ones are more than the model's 24 positions"):
        Asked(narrow, name, prompts=[prompt], max_new_tokens=room + 1)

    draws = 1 if rule_of(policy).temperature == 0 else 2
    assert without_a_limit(policy, prompt) == sum(lengths[:draws])


@torch.inference_mode()
def without_a_limit(policy: Any, prompt: Prompt) -> int:
    """The tokens of the same answers from a server that is told of no limit."""
    lane = Lane(Models(8), policy, rule_of(policy), rows=8, max_new_tokens=500)
    told: list[Any] = []
    asked = Served(policy.name, prompt, is_plain=False, samples=2, max_new_tokens=None, seed=5)
    lane.add(Open(asked, told.append))
    while lane.opened:
        lane.step()
    return int(told[-1].drawn_tokens)


@pytest.mark.parametrize(("name", "draws", "room"), [("args", 1, 10), ("cards", 2, 10), ("judged_ahead", 1, 9)])
def test_a_long_prompt_leaves_half_of_what_a_reward_reads_to_an_answer_without_a_limit(
    narrow: Any, name: str, draws: int, room: int
) -> None:
    prompt = Prompt(({"role": "user", "content": "How was the trip to the far side of the lake?"},))
    answers = Asked(narrow, name, prompts=[prompt], max_new_tokens=room).answers[name][0]
    assert [len(answer.ids) for answer in answers] == [room, room]
    assert without_a_limit(narrow.artifact(name), prompt) == draws * room


def test_what_stands_on_one_base_shares_its_weights_in_memory(view: Any) -> None:
    """In fp32 too, whose adapters would otherwise be folded in; and nothing is written to what is shared."""
    models, plain = Models(8, Bases()), Models(8)
    policy = models.language_model(view.artifact("other")).model
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    loaded = {
        "arm": models.language_model(view.artifact("arm")).model,
        "wide": models.prefix_scorer(view.artifact("wide"))[0].model,
        "rm": models.reward_model(view.artifact("rm"))[0],
    }
    own = {tensor.untyped_storage().data_ptr() for tensor in policy.parameters()}
    for model in loaded.values():
        weights = [(name, tensor) for name, tensor in model.named_parameters() if tensor.numel() > 2048]
        assert weights and all(tensor.untyped_storage().data_ptr() in own for _, tensor in weights)
    ids = torch.tensor([[9, 3, 4, 7]])
    apart = plain.language_model(view.artifact("arm")).model
    torch.testing.assert_close(loaded["arm"](input_ids=ids).logits, apart(input_ids=ids).logits)
    assert not torch.allclose(loaded["arm"](input_ids=ids).logits, policy(input_ids=ids).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    text = ([PROMPTS[0].messages], ["Because of the lake."])
    # Some processors round the folded weights' products otherwise.
    assert models.score(view.artifact("rm"))(*text) == pytest.approx(plain.score(view.artifact("rm"))(*text), abs=2e-6)


def test_a_guide_reads_of_a_long_dialogue_what_the_reward_reads(tmp_path: Path) -> None:
    """Both lose the beginning of a prompt that leaves no room below `max_length`."""
    tiny.language_model(tmp_path / "model")
    tiny.classifier(tmp_path / "short", initializer_range=1.0)
    view = stages.study(
        tmp_path,
        """\
models: {base: {source: ./model, precision: fp32}}
rewards: {short: {kind: classifier, source: ./short, precision: fp32, max_length: 24}}
stages: {args: {do: decode, method: args, from: base, reward: short}}
""",
    )
    models, prompt = Models(8), Prompt(({"role": "user", "content": "How was the trip to the far side of the lake?"},))
    policy = view.artifact("args")
    guides = Guides(policy, models.language_model(policy.one("from")), models)
    guides.give(prompt, 4)
    (reader,) = guides.way.readers
    ids = tiny.tokenizer()("Yes", add_special_tokens=False)["input_ids"] + [1]
    model, *_ = models.reward_model(policy.one("reward"))
    read = prefix_rewards(model)(input_ids=torch.tensor([[*reader.prompts[0], *ids]]))[0, -1]
    (scored,) = models.score(policy.one("reward"))([prompt.messages], ["Yes"])
    assert len(reader.prompts[0]) == 20 and float(read) == pytest.approx(scored, abs=1e-5)
    guides.give(prompt, 480)
    assert len(reader.prompts[1]) == 12, "an answer of any length leaves half of it to the prompt"


def test_a_scorer_that_stays_a_token_behind_needs_two_tokens(view: Any) -> None:
    policy = view.artifact("blocks")
    models = Models(8)
    guides = Guides(policy, models.language_model(policy.one("from")), models)
    one = Prompt(({"role": "user", "content": "a"},))
    with pytest.raises(
        UserError, match="`wide` values a token from what stands before it: prompt 1 needs two tokens at least"
    ):
        guides.give(one, 4, is_plain=True)
    assert all(reader.prompts == [] for reader in guides.way.readers), "a refused prompt leaves nothing behind"
    guides.give(one, 4)
