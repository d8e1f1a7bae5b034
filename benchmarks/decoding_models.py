"""The models and prompts of the decoding benchmark.

The policy is the demo model; the reward model is its body with a random head, scaled so that rewards of candidates differ by
about 1; the second language model is the demo model with small random changes. Prompts are real text of exactly so many
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import sampler
from benchmarks.textbook_decoding import without_padding

CANDIDATES = 10


@dataclass(frozen=True)
class Models:
    policy: Any
    judge: Any
    second: Any
    texts: Sequence[Sequence[int]]
    where: str
    """What figures say behind their names."""

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Each begins with another text and goes on with the texts behind that."""
        apart = max(len(self.texts) // count, 1)
        starts = [number * apart % len(self.texts) for number in range(count)]
        joined = [[token for text in [*self.texts[s:], *self.texts[:s]] for token in text] for s in starts]
        return [ids[:length] for ids in joined]


def load(folder: Path, device: torch.device, dtype: torch.dtype, where: str = "", **changes: Any) -> Models:
    policy, second = (AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **changes) for _ in range(2))
    judge = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, num_labels=1, **changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in second.parameters():
            change = torch.randn(weights.shape, generator=generator) * 0.02 * weights.float().std()
            weights += change.to(dtype)
        judge.score.weight.copy_(torch.randn(judge.score.weight.shape, generator=generator))
    policy, second, judge = (model.to(device).eval() for model in (policy, second, without_padding(judge)))
    models = Models(policy, judge, second, sampler.prompts(AutoTokenizer.from_pretrained(folder)), where)
    _scale(models)
    return models


@torch.inference_mode()
def _scale(models: Models) -> None:
    """Rewards of a prompt's most probable tokens get a standard deviation of 1, as a mean over two prompts."""
    spreads = []
    for prompt in torch.tensor(models.prompts(2, 64), device=models.policy.device):
        tokens = models.policy(input_ids=prompt[None], logits_to_keep=1).logits[0, -1].topk(CANDIDATES).indices
        read = torch.cat([prompt.expand(CANDIDATES, -1), tokens[:, None]], dim=1)
        spreads.append(models.judge(input_ids=read).logits.float().std())
    models.judge.score.weight.div_(torch.stack(spreads).mean())
