"""Guides of other sizes, with adapters and templates of their own, over a policy with adapters: each answer is what the
definition draws, every text read from scratch by models that were loaded apart. And how tokenizers pad changes none."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import torch
from asked import MESSAGES, PROMPTS, Asked

from registry.bases import Bases
from registry.dialogue_text import decode_answer, encode_dialogue
from registry.language_models import load_language_model
from registry.methods.draws import inverse_cdf, uniforms
from registry.prefix_scorers import hidden_states, load_prefix_scorer
from registry.reward_models import load_reward_model
from registry.rows import encode_request
from tasks.answers import keys
from tasks.models import Models

LONGEST = 8
END, ITS_END = 1, 4
"""How answers of the policy end, and those that the smaller model learnt from."""
STUDY = """\
models:
  base: {source: ./base, precision: fp32}
  small: {source: ./small, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
  pairs: {source: ./pairs.jsonl, format: preference}
rewards:
  score: {kind: length}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 4, max_new_tokens: 6}
  tuned: {do: sft, from: base, data: pairs, lora: {rank: 4, alpha: 8}, learning_rate: 2e-2, epochs: 6}
  arm: {do: autoregressive_reward_model, from: small, data: pairs, lora: {rank: 4, alpha: 8}, learning_rate: 2e-2, epochs: 6}
  second: {do: autoregressive_reward_model, from: base, data: pairs, seed: 4, lora: {rank: 4, alpha: 8}, learning_rate: 2e-2, epochs: 4}
  wide:
    {do: prefix_scorer, loss: cd_fudge, from: base, responses: rolls, reward: score, lora: {rank: 4, alpha: 8}, learning_rate: 2e-2}
  rm: {do: reward_model, from: base, data: pairs, seed: 2, lora: {rank: 4, alpha: 8}, learning_rate: 2e-2, epochs: 6}
  weak_to_strong: {do: decode, method: genarm, from: tuned, guides: {arm: 0.8, second: -0.3}, strength: 1.5}
  cd: {do: decode, method: controlled_decoding, from: tuned, scorers: {wide: 0.5}, strength: 20.0}
  mixed: {do: decode, method: mod, from: tuned, policies: {small: 0.5, base: -0.2}}
  args: {do: decode, method: args, from: tuned, reward: rm, candidates: 6, strength: 2.0, temperature: 0.8}
  cards: {do: decode, method: cards, from: tuned, reward: rm, target: 2.0, entropy: 1.5, shortest: 1, longest: 3, tries: 3}
  blocks: {do: decode, method: controlled_decoding, from: tuned, scorers: {rm: 1.0, wide: -0.5}, block: 3, samples: 3}
"""


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("weak to strong")
    tiny.language_model(folder / "base")
    # Narrower and shallower, asked in other words, and with turns that end otherwise.
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "initializer_range": 0.5}
    template = f"<|system|>Be brief.{tiny.CHAT}".replace("<|end|>", tiny.SPECIAL[ITS_END])
    tiny.language_model(folder / "small", seed=1, chat_template=template, **small)
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in MESSAGES])
    # Short answers are the better ones, so that ends are likely.
    pairs = [{"prompt": f"Number {i}?", "chosen": "no", "rejected": "yes" * (i + 1)} for i in range(10)]
    tiny.write_lines(folder / "pairs.jsonl", pairs)
    view = stages.study(folder, STUDY)
    for name in ("rolls", "tuned", "arm", "second", "wide", "rm"):
        stages.build(view, name)
    return view


def says(view: Any, name: str) -> Callable[[Any, list[int]], torch.Tensor]:
    """The log-probabilities of the next token after a prompt and part of an answer."""
    loaded = load_language_model(view.artifact(name))

    def after(prompt: Any, answer: list[int]) -> torch.Tensor:
        ids = torch.tensor([[*encode_request(loaded.tokenizer, prompt, False), *answer]])
        found: torch.Tensor = loaded.model(input_ids=ids, use_cache=False).logits[0, -1].log_softmax(-1)
        return found

    return after


def values(view: Any, name: str) -> Callable[[Any, list[int]], torch.Tensor]:
    """What a scorer makes of every next token."""
    loaded, head = load_prefix_scorer(view.artifact(name))

    def after(prompt: Any, answer: list[int]) -> torch.Tensor:
        ids = torch.tensor([[*encode_request(loaded.tokenizer, prompt, False), *answer]])
        return head.of_all(hidden_states(loaded.model, input_ids=ids)[0, -1])

    return after


def rewards(view: Any, name: str) -> Callable[[Any, list[int]], float]:
    """What a reward model with its adapter folded into its weights makes of a prompt and the beginning of an answer."""
    model, tokenizer, _ = load_reward_model(view.artifact(name))
    assert not hasattr(model, "peft_config")

    def of(prompt: Any, answer: list[int]) -> float:
        ids = torch.tensor([[*encode_request(tokenizer, prompt, False), *answer]])
        return float(model.score(model.model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]))

    return of


def ending_alike(scores: torch.Tensor) -> torch.Tensor:
    """What the smaller model gives its own end is given the policy's."""
    order = torch.arange(len(scores))
    order[END], order[ITS_END] = ITS_END, END
    return scores[order]


@torch.inference_mode()
def drawn(whole: Callable[[Any, list[int]], torch.Tensor], temperature: float = 1.0) -> list[list[tuple[int, ...]]]:
    """Two answers to each prompt, token by token, without caches and batches, by the numbers that belong to them."""
    found = []
    for prompt, key in zip(PROMPTS, keys(PROMPTS), strict=True):
        row = []
        for number in range(2):
            u, answer = uniforms(5, key, number, LONGEST), list[int]()
            while len(answer) < LONGEST and END not in answer:
                logits = whole(prompt, answer)
                number_of_token = torch.tensor([u[len(answer)]])
                answer.append(int(inverse_cdf(logits[None], number_of_token, temperature=temperature)))
            row.append(tuple(answer))
        found.append(row)
    return found


def ids_of(view: Any, name: str) -> list[list[tuple[int, ...]]]:
    answers = Asked(view, name, max_new_tokens=LONGEST).answers[name]
    return [[answer.ids for answer in row] for row in answers]


def test_smaller_guides_with_templates_of_their_own_steer_an_adapted_policy(view: Any) -> None:
    """GenARM from weak to strong, with several guides."""
    tuned, arm, second = (says(view, name) for name in ("tuned", "arm", "second"))
    found = ids_of(view, "weak_to_strong")
    assert found == drawn(lambda p, a: tuned(p, a) + 1.5 * (0.8 * ending_alike(arm(p, a)) - 0.3 * second(p, a)))
    assert found != drawn(tuned), "the guides decided nothing"
    unlike = drawn(lambda p, a: tuned(p, a) + 1.5 * (0.8 * arm(p, a) - 0.3 * second(p, a)))
    assert found != unlike, "what the smaller guide makes of ending decided nothing"


def test_a_head_for_the_whole_vocabulary_steers_an_adapted_policy(view: Any) -> None:
    """Token-wise controlled decoding."""
    tuned, wide = says(view, "tuned"), values(view, "wide")
    found = ids_of(view, "cd")
    assert found == drawn(lambda p, a: tuned(p, a) + 20.0 * 0.5 * wide(p, a))
    assert found != drawn(tuned), "the scorer decided nothing"


def test_policies_of_other_sizes_are_weighed_against_an_adapted_one(view: Any) -> None:
    """Multi-objective decoding; what the weights leave is the policy's."""
    tuned, small, base = (says(view, name) for name in ("tuned", "small", "base"))
    found = ids_of(view, "mixed")
    assert found == drawn(lambda p, a: 0.7 * tuned(p, a) + 0.5 * ending_alike(small(p, a)) - 0.2 * base(p, a))
    assert found != drawn(lambda p, a: tuned(p, a) + 0.5 * ending_alike(small(p, a)) - 0.2 * base(p, a))


def test_an_adapted_reward_model_ranks_the_candidates_of_an_adapted_policy(view: Any) -> None:
    """ARGS."""
    tuned, reward = says(view, "tuned"), rewards(view, "rm")

    def by_hand(strength: float) -> list[list[tuple[int, ...]]]:
        def scores(prompt: Any, answer: list[int]) -> torch.Tensor:
            own = tuned(prompt, answer)
            found = torch.full_like(own, -torch.inf)
            for token in own.topk(6).indices.tolist():
                found[token] = own[token] + strength * reward(prompt, [*answer, token])
            return found

        return drawn(scores, 0.8)

    found = ids_of(view, "args")
    assert found == by_hand(2.0) != by_hand(0.0)
    assert any(answer[-1] == END for row in found for answer in row), "no finished answer was scored"


@torch.inference_mode()
def test_an_adapted_reward_model_accepts_the_segments_of_an_adapted_policy(view: Any) -> None:
    """CARDS."""
    tuned, reward = says(view, "tuned"), rewards(view, "rm")
    refused, found = 0, ids_of(view, "cards")
    for prompt, key, row in zip(PROMPTS, keys(PROMPTS), found, strict=True):
        first = 0.5 * reward(prompt, []) + 0.5 * 2.0
        for number in range(2):
            drawing, accepting = (iter(uniforms(5, one, number, 100)) for one in (key, f"{key}/accepting"))
            answer = list[int]()
            while len(answer) < LONGEST and END not in answer:
                tried: list[tuple[float, list[int]]] = []
                while len(tried) < 3:
                    segment = list[int]()
                    while True:
                        after = tuned(prompt, answer + segment)
                        segment.append(int(inverse_cdf(after[None], torch.tensor([next(drawing)]))))
                        uncertain = torch.distributions.Categorical(logits=tuned(prompt, answer + segment)).entropy()
                        length = len(answer + segment)
                        if segment[-1] == END or length == LONGEST or len(segment) == 3 or uncertain >= 1.5:
                            break
                    bar = min(2.0, first + length / LONGEST * (2.0 - first))
                    tried.append((reward(prompt, answer + segment), segment))
                    if next(accepting) < math.exp(min(0.0, (tried[-1][0] - bar) / 0.7)):
                        break
                    refused += 1
                else:
                    segment = max(tried, key=lambda one: one[0])[1]
                answer += segment
            assert row[number] == tuple(answer)
    assert refused > 5 and any(answer[-1] == END for row in found for answer in row)


@torch.inference_mode()
def test_adapted_rewards_choose_among_the_blocks_of_an_adapted_policy(view: Any) -> None:
    """Block-wise controlled decoding: the reward model reads the text so far as a finished answer, the prefix scorer what
    was drawn."""
    tuned, reward, value = says(view, "tuned"), rewards(view, "rm"), values(view, "wide")
    tokenizer = load_language_model(view.artifact("tuned")).tokenizer

    def score(prompt: Any, answer: list[int]) -> float:
        _, text = encode_dialogue(tokenizer, prompt.messages, decode_answer(tokenizer, answer))
        return reward(prompt, text) - 0.5 * float(value(prompt, answer[:-1])[answer[-1]])

    found = ids_of(view, "blocks")
    for prompt, key, row in zip(PROMPTS, keys(PROMPTS), found, strict=True):
        for number in range(2):
            answer = list[int]()
            while len(answer) < LONGEST and END not in answer:
                branches = []
                for branch in range(3):
                    u, grown = uniforms(5, key, number, LONGEST, branch), list(answer)
                    while len(grown) < min(len(answer) + 3, LONGEST) and END not in grown[len(answer) :]:
                        after = tuned(prompt, grown)
                        grown.append(int(inverse_cdf(after[None], torch.tensor([u[len(grown)]]))))
                    branches.append(grown)
                answer = max(branches, key=lambda grown: score(prompt, grown))
            assert row[number] == tuple(answer)
    assert found != drawn(tuned), "the rewards decided nothing"


def test_adapted_policy_and_adapted_guides_lie_on_one_base_in_memory(view: Any) -> None:
    models = Models(8, Bases())
    policy = models.language_model(view.artifact("tuned")).model
    guides = models.prefix_scorer(view.artifact("wide"))[0].model, models.language_model(view.artifact("second")).model
    own = {tensor.untyped_storage().data_ptr() for tensor in policy.parameters()}
    for guide in guides:
        large = [tensor for tensor in guide.parameters() if tensor.numel() > 2048]
        assert large and all(tensor.untyped_storage().data_ptr() in own for tensor in large)


def padded(folder: Path, pad: str) -> Any:
    """A study all of whose tokenizers and models pad with this token, its stages built."""
    tokenizer, folder = tiny.tokenizer(), folder / pad.strip("<|>")
    tokenizer.pad_token = pad
    tiny.language_model(folder / "model")
    tiny.language_model(folder / "other", seed=1)
    tiny.classifier(folder / "classes", initializer_range=1.0)
    for name in ("model", "other", "classes"):
        tokenizer.save_pretrained(folder / name)
        # Afterwards, because new weights are 0 at the token that pads.
        config = folder / name / "config.json"
        config.write_text(config.read_text().replace('"pad_token_id": 0', f'"pad_token_id": {tokenizer.pad_token_id}'))
    # Of unequal lengths, so that batches are padded; answers end early, so that ends are scored.
    tiny.write_lines(folder / "pairs.jsonl", [p | {"chosen": "no", "rejected": p["chosen"]} for p in tiny.TEN])
    view = stages.study(
        folder,
        """\
models:
  base: {source: ./model, precision: fp32}
  other: {source: ./other, precision: fp32}
data:
  pairs: {source: ./pairs.jsonl, format: preference}
rewards:
  classes: {kind: classifier, source: ./classes, precision: fp32}
stages:
  tuned: {do: sft, from: base, data: pairs, learning_rate: 2e-2, epochs: 6}
  rm: {do: reward_model, from: other, data: pairs, learning_rate: 1e-2}
  arm: {do: autoregressive_reward_model, from: other, data: pairs, learning_rate: 1e-2}
  args: {do: decode, method: args, from: tuned, reward: rm, candidates: 261, temperature: 1.0}
  by_class: {do: decode, method: args, from: tuned, reward: classes, candidates: 261, strength: 0.2, temperature: 1.0}
  genarm: {do: decode, method: genarm, from: tuned, guides: {arm: 1.0}}
""",
    )
    for name in ("tuned", "rm", "arm"):
        stages.build(view, name)
    return view


def test_padding_with_the_token_that_ends_an_answer_changes_no_answer(tmp_path: Path) -> None:
    names = ["args", "by_class", "genarm"]
    apart, one = (Asked(padded(tmp_path, pad), *names, samples=4) for pad in ("<pad>", "<|end|>"))
    for name in names:
        ids = [[answer.ids for answer in row] for row in apart.answers[name]]
        assert [[answer.ids for answer in row] for row in one.answers[name]] == ids
        assert any(answer[-1] == END for row in ids for answer in row), "no end was drawn"
