"""What a policy's answers cost, whoever else drew at the same time: positions, tokens, reward calls, seconds, memory."""

from __future__ import annotations

from typing import Any

from tasks.account import Account
from tasks.rules import Rule
from tasks.scores import Scores


def counted(rule: Rule, account: Account, samples: int) -> dict[str, int]:
    """What does not depend on the machine, of all answers together. A policy that shares its draws with others is charged with
    its own: best-of-2 with two draws an answer, though best-of-4 drew four."""
    drawing = account.drawings[rule.source]
    draws = _own_draws(rule, account, samples)
    tokens = sum(a.tokens for row in draws for a in row)
    return {
        "prompt_positions": drawing.prefill,
        "decode_positions": drawing.decode if rule.guided else sum(a.tokens - 1 for row in draws for a in row),
        "guide_positions": drawing.guides.prefill + drawing.guides.decode,
        "tokens": tokens,
        "reward_calls": sum(map(len, draws)) if rule.reward else drawing.texts,
    }


def measured(rule: Rule, account: Account, samples: int, scores: Scores) -> dict[str, float]:
    """What does: the seconds of drawing and choosing, models being loaded, and the most bytes in use while it was drawn."""
    drawing = account.drawings[rule.source]
    draws = _own_draws(rule, account, samples)
    own, all_ = (sum(a.tokens for row in rows for a in row) for rows in (draws, drawing.answers))
    choosing = scores.seconds(rule.reward) * sum(map(len, draws)) if rule.reward else 0.0
    return {"seconds": drawing.seconds * own / max(all_, 1) + choosing, "memory": float(drawing.memory)}


def _own_draws(rule: Rule, account: Account, samples: int) -> Any:
    answers = account.drawings[rule.source].answers
    return [row[:1] if rule.temperature == 0 else row[: samples * rule.n] for row in answers]
