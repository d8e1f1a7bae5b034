"""Models of eight tokens, whose answers can all be enumerated: the letters `a` to `g` and the end of the answer.

Their tokenizer pads with a ninth token that the models do not have, as that of many a published model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    import torch
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
