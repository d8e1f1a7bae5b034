"""Guides of other sizes, with adapters and templates of their own, over a policy with adapters: each answer is what the
definition draws, every text read from scratch by models that were loaded apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stages
import tiny
import torch
from asked import MESSAGES, PROMPTS, Asked

from registry.bases import Bases
from registry.language_models import load_language_model
from registry.methods.draws import inverse_cdf, uniforms
from registry.prefix_scorers import hidden_states, load_prefix_scorer
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
  weak_to_strong: {do: decode, method: genarm, from: tuned, guides: {arm: 0.8, second: -0.3}, strength: 1.5}
  cd: {do: decode, method: controlled_decoding, from: tuned, scorers: {wide: 0.5}, strength: 20.0}
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
    for name in ("rolls", "tuned", "arm", "second", "wide"):
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


def ending_alike(scores: torch.Tensor) -> torch.Tensor:
    """What the smaller model gives its own end is given the policy's."""
    order = torch.arange(len(scores))
    order[END], order[ITS_END] = ITS_END, END
    return scores[order]


@torch.inference_mode()
def drawn(whole: Callable[[Any, list[int]], torch.Tensor]) -> list[list[tuple[int, ...]]]:
    """Two answers to each prompt, token by token, without caches and batches, by the numbers that belong to them."""
    found = []
    for prompt, key in zip(PROMPTS, keys(PROMPTS), strict=True):
        row = []
        for number in range(2):
            u, answer = uniforms(5, key, number, LONGEST), list[int]()
            while len(answer) < LONGEST and END not in answer:
                logits = whole(prompt, answer)
                answer.append(int(inverse_cdf(logits[None], torch.tensor([u[len(answer)]]))))
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


def test_adapted_policy_and_adapted_guides_lie_on_one_base_in_memory(view: Any) -> None:
    models = Models(8, Bases())
    policy = models.language_model(view.artifact("tuned")).model
    guides = models.prefix_scorer(view.artifact("wide"))[0].model, models.language_model(view.artifact("second")).model
    own = {tensor.untyped_storage().data_ptr() for tensor in policy.parameters()}
    for guide in guides:
        large = [tensor for tensor in guide.parameters() if tensor.numel() > 2048]
        assert large and all(tensor.untyped_storage().data_ptr() in own for tensor in large)
