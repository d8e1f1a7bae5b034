"""A tiny policy and tiny models that guide it, and what they say of a text read from scratch."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from registry.reward_models import with_score_head
from tasks.batch import Sample
from tasks.guidance import Guidance, NextTokens, Prefixes
from tasks.outputs import prefix_rewards
from tasks.reader import Reader, next_token_logits
from tasks.sampler import sample

VOCABULARY = 37
ENDS = [5, 12, 20, 30]
ENDING = [ENDS[0], 7, 9]
"""How the guide's template ends an answer, whichever token ended it."""
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Wide enough that the models have opinions: no near-ties for rounding to tip.
    "initializer_range": 0.3,
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [8, 9, 7, 9], [2, 3, 8]]
# The guide's template writes something else around the same requests.
ITS_PROMPTS = [[1, 1, *prompt, 2] for prompt in PROMPTS]
CPU = torch.device("cpu")


GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
FAMILIES = ["llama", "qwen2", "gpt2"]
"""Keys and values shared between heads; the same with biases; positions by a table, weights the other way round."""


def model_of(family: str, seed: int) -> Any:
    torch.manual_seed(seed)
    match family:
        case "llama":
            model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
        case "qwen2":
            model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA))
        case "gpt2":
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, initializer_range=0.3))
    return model.eval()


def llama(seed: int) -> Any:
    return model_of("llama", seed)


def reward_model(seed: int, scale: float = 3.0, family: str = "llama") -> Any:
    model = with_score_head(model_of(family, seed), seed).eval()
    model.score.weight.data *= scale
    return model


def logits_after(model: Any, ids: list[int]) -> Tensor:
    found: Tensor = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return found


def reward_of(model: Any, ids: list[int]) -> float:
    return float(prefix_rewards(model)(input_ids=torch.tensor([ids]))[0, -1])


def by_prefix(model: Any, ending: list[int] = ENDING) -> Prefixes:
    return Prefixes(Reader(prefix_rewards(model), ITS_PROMPTS, CPU), ending)


def by_token(model: Any) -> NextTokens:
    return NextTokens(Reader(next_token_logits(model), ITS_PROMPTS, CPU))


def run(model: Any, guidance: Guidance | None, **changes: Any) -> list[list[Sample]]:
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": 12, "seed": 11, "eos_ids": ENDS}
    keys = [str(prompt) for prompt in PROMPTS]
    return sample(model, PROMPTS, keys=keys, guidance=guidance, **options | changes)
