"""Models of eight tokens, whose answers can all be enumerated: the letters `a` to `g` and the end of the answer.

Their tokenizer pads with a ninth token that the models do not have, as that of many a published model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import torch

from registry.language_models import load_language_model
from tasks.view import View

LORA = "lora: {rank: 4, alpha: 8}"
ANSWERS = ["", *"abcdefg"]
"""What each token is as an answer of one token; token 0 is the end."""
WORTH = {"": 0.3, "a": 1.0, "b": -0.5, "c": 0.0, "d": 2.0, "e": -1.0, "f": 0.5, "g": 0.0}


def worth(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A Python reward: the sum over the letters, and something for saying nothing."""
    return [sum(WORTH[letter] for letter in response) if response else WORTH[""] for response in responses]


def tokenizer(behind: str = "") -> Any:
    """Its template writes `behind` the end of an answer."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<|end|>", *"abcdefg", "<pad>"]
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(["<|end|>", "<pad>"])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<pad>")
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>"
        f"{behind}{{% endif %}}{{% endfor %}}"
    )
    return made


def language_model(folder: Path, seed: int = 0, kind: str = "Llama", behind: str = "", **changes: Any) -> Path:
    """Writes a language model of the eight tokens."""
    import transformers

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "eos_token_id": 0,
        "bos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**settings | changes)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer(behind).save_pretrained(folder)
    return folder


def study(
    folder: Path,
    made: str,
    prompts: Sequence[str],
    source: Path | str,
    precision: str = "fp32",
    tuned: str = LORA,
    longest: int = 2,
) -> View:
    """A study with a stage `made` on these prompts; `tuned` may be its start, and `cal`, of so long answers, its reward."""
    folder.mkdir()
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": p} for p in prompts])
    tiny.write_lines(folder / "pairs.jsonl", [{"prompt": "ab", "chosen": "dd", "rejected": "e"}] * 4)
    return stages.study(
        folder,
        f"""\
models: {{base: {{source: {source}, precision: {precision}}}}}
data:
  prompts: {{source: ./prompts.jsonl, format: prompt}}
  pairs: {{source: ./pairs.jsonl, format: preference}}
rewards: {{worth: {{kind: python, target: "letters:worth"}}}}
stages:
  tuned: {{do: sft, from: base, data: pairs, learning_rate: 5e-2, batch_size: 4, epochs: 4.0, {tuned}}}
  cal: {{do: calibrate, reward: worth, reference: base, prompts: prompts, samples: 8, max_new_tokens: {longest}}}
  made: {{{made}}}
""",
    )


def text(tokens: Sequence[int]) -> str:
    return "".join(ANSWERS[token] for token in tokens)


def worth_of(answer: Sequence[int]) -> float:
    """The reward of the sampled tokens."""
    return worth([""], [text(answer)])[0]


@torch.no_grad()
def log_probs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Of each token of the answer, by a plain forward pass of this one sequence."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]


def answers_of(artifact: Any, prompt: Sequence[int], longest: int) -> dict[tuple[int, ...], float]:
    """The probability of every answer of at most `longest` tokens."""
    model = load_language_model(artifact).model
    found: dict[tuple[int, ...], float] = {}
    beginnings = {(): 1.0}
    for left in reversed(range(longest)):
        nexts = {}
        for begun, mass in beginnings.items():
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *begun]])).logits[0, -1]
            for token, share in enumerate(logits.double().softmax(-1).tolist()):
                (found if token == 0 or not left else nexts)[(*begun, token)] = mass * share
        beginnings = nexts
    assert sum(found.values()) == pytest.approx(1)
    return found


def total_variation(one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    return sum(abs(one[answer] - other[answer]) for answer in one) / 2
