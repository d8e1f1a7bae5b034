"""Tiny real models, built in a folder in a second: a two-layer Llama with a byte tokenizer and a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
PAIRS = [
    {"prompt": "How was it?", "chosen": "It was good.", "rejected": "Bad"},
    {"prompt": "And you?", "chosen": "<pad>", "rejected": "A much longer answer<|end|>"},
    {"prompt": "Then?", "chosen": "Rain, then sun.", "rejected": "Rain<pad><|end|>"},
    {"prompt": "A longer question than the others, is it not?", "chosen": "Yes", "rejected": "No"},
]
TEN = [{"prompt": f"Number {i}?", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(10)]


def tokenizer(*, chat_template: str | None = CHAT, pad: bool = True) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[2:],
        **({"pad_token": "<pad>"} if pad else {}),
    )
    made.chat_template = chat_template
    return made


def config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    settings = {
        "vocab_size": len(SPECIAL) + 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 1,
        "pad_token_id": 0, "bos_token_id": None, "tie_word_embeddings": True, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaConfig(**(settings | changes))


def language_model(
    folder: Path, *, chat_template: str | None = CHAT, pad: bool = True, seed: int = 0, **changes: Any
) -> Path:
    """Writes a causal language model with its tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(config(**changes)).save_pretrained(folder)
    tokenizer(chat_template=chat_template, pad=pad).save_pretrained(folder)
    return folder


def spoilt(folder: Path, token: str) -> Path:
    """Writes a language model that gives no numbers wherever the token stands."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(language_model(folder, tie_word_embeddings=False))
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer().convert_tokens_to_ids(token)] = torch.nan
    model.save_pretrained(folder)
    return folder


def classifier(folder: Path, *, labels: int = 1, seed: int = 0, **changes: Any) -> Path:
    """Writes a sequence classifier with its tokenizer."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(seed)
    LlamaForSequenceClassification(config(num_labels=labels, **changes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path
