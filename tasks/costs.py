"""What an answer of a policy costs, whoever else drew at the same time: positions, tokens, whole texts that rewards scored, seconds,
memory.

All but memory are of one answer asked for alone, on average over the prompts: its prompt is read once, its own draws are made
(best-of-2 makes two, though best-of-4 drew four beside it), and a greedy answer, which serves for every sample, is made once.
"""

from __future__ import annotations

from collections.abc import Sequence

from registry.rows import Prompt
from tasks.account import Account
from tasks.clock import NOTHING
from tasks.rules import Rule
from tasks.scores import Scores


def counted(rule: Rule, account: Account, samples: int, prompts: Sequence[Prompt], scores: Scores) -> dict[str, float]:
    """What does not depend on the machine, nor on what else was in a batch. `fixed_positions`, of the prompt in the model and in
    its guides, are among the others: they are read once however many draws are made."""
    drawing = account.drawings[rule.source]
    draws, asked = account.draws_of(rule, samples), len(drawing.answers)
    reward = rule.reward
    read = (
        (scores.read(reward, p, a.text) for p, row in zip(prompts, draws, strict=True) for a in row) if reward else ()
    )
    answers = asked * (1 if rule.temperature == 0 else samples)
    own = [a.tokens for row in draws for a in row]
    return {
        "prompt_positions": drawing.prefill / asked,
        "fixed_positions": (drawing.prefill + drawing.guides.prefill) / asked,
        "decode_positions": (drawing.decode if rule.guided else sum(own) - len(own)) / answers,
        "guide_positions": drawing.guides.prefill / asked + (drawing.guides.decode + sum(read)) / answers,
        "tokens": (drawing.drawn if rule.guided else sum(own)) / answers,
        "texts_scored": (len(own) if rule.reward else drawing.texts) / answers,
    }


def measured(rule: Rule, account: Account, samples: int, scores: Scores) -> dict[str, float]:
    """What does: `seconds` of an answer in a batch as it was, drawing and choosing, models being loaded, those of the device
    (`device_seconds`, see `tasks.clock`), and `memory`, the most bytes in use while all were drawn and chosen among."""
    drawing = account.drawings[rule.source]
    draws = account.draws_of(rule, samples)
    own, all_ = (sum(a.tokens for row in rows for a in row) for rows in (draws, drawing.answers))
    choosing = scores.spent(rule.reward).times(sum(map(len, draws))) if rule.reward else NOTHING
    answers = len(drawing.answers) * (1 if rule.temperature == 0 else samples)
    spent = drawing.spent.times(own / max(all_, 1)).plus(choosing).times(1 / answers)
    memory = max(drawing.memory, scores.memory(rule.reward) if rule.reward else 0)
    return {"seconds": spent.wall, "device_seconds": spent.device, "memory": float(memory)}
