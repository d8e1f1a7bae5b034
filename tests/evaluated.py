"""A comparison written by hand, beside the study of `handmade`: every number differs from every other, so that none can stand
for another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handmade

from tasks.view import View

POLICIES = ("base", "sft", "bon[n=2]", "bon[n=4]")
DRAWS = (1, 1, 2, 4)
REWARDS = ("gold", "tone")
SAMPLES = 2
EVIL = "<script>alert('x')</script> & more"
COSTS = (
    {
        "prompt_positions": 2,
        "decode_positions": 10,
        "guide_positions": 0,
        "fixed_positions": 2,
        "tokens": 11,
        "texts_scored": 0,
    },
    {
        "prompt_positions": 2,
        "decode_positions": 11,
        "guide_positions": 0,
        "fixed_positions": 2,
        "tokens": 12,
        "texts_scored": 0,
    },
    {
        "prompt_positions": 2,
        "decode_positions": 20,
        "guide_positions": 0,
        "fixed_positions": 2,
        "tokens": 22,
        "texts_scored": 2,
    },
    {
        "prompt_positions": 2,
        "decode_positions": 39,
        "guide_positions": 1,
        "fixed_positions": 2,
        "tokens": 44,
        "texts_scored": 4,
    },
)
KL = (
    {"rao_blackwell": (0.0, 0.0), "k1": (0.0, 0.0)},
    {"rao_blackwell": (1.5, 0.25), "k1": (1.75, 0.5)},
    {"best_of_n": (0.19, 0.01), "bound": (0.2, 0.0)},
    {"bound": (0.64, 0.0)},
)


def interval(estimate: float, width: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - width, "high": estimate + width}


def results(sft: float = -0.75) -> dict[str, Any]:
    """What `evaluate` writes; `sft` is the difference of that policy under the first reward."""
    return {
        "prompts": 8, "samples_per_prompt": SAMPLES, "max_new_tokens": 24, "confidence": 0.9, "reference": 0, "chooser": 0,
        "policies": [_policy(i, policy, sft) for i, policy in enumerate(POLICIES)],
        "over_seeds": [
            {"policies": [1, 2], "rewards": [{"reward": interval(7 + j, 0.5), "difference": interval(6 + j, 0.5)} for j in range(2)]}
        ],
        "rewards": list(REWARDS),
    }  # fmt: skip


def _policy(i: int, name: str, sft: float) -> dict[str, Any]:
    texts = ("diversity", "diversity_official_code", "truncated", "degenerate", "refusals")
    return {
        "fingerprint": name, "length": interval(10 + i, 0.5), "finished": i / 4,
        "texts": {text: interval(i / 8 + k / 100, 0.03) for k, text in enumerate(texts)},
        "met": {"prompts": int(i == 1), "unknown": 0},
        "copied": {"copied_words": interval(0.21, 0.02), "copied_whole": interval(0.11, 0.02)} if i == 1 else {},
        "apart": [{"guide": 0, "gold": 1, **interval(0.875, 0.5)}] if i == 3 else [],
        "kl": {how: interval(*value) for how, value in KL[i].items()},
        "perplexity": {"own": interval(3 + i, 0.25)},
        "rewards": [_judged(i, j, sft) for j in range(2)],
        "best_of": [
            [{"n": n, **interval(1 + i + n / 16 + j / 64, 0.25)} for n in range(1, SAMPLES * DRAWS[i] + 1)] for j in range(2)
        ],
        "cost": COSTS[i],
    }  # fmt: skip


def _judged(i: int, j: int, sft: float) -> dict[str, Any]:
    difference = interval((0.0, sft, 0.125, 1.5)[i] + j / 16, 0.5 if i else 0.0)
    if i:
        difference |= {"p": 0.01 * i + j / 1000, "p_holm": 0.03 * i + j / 1000, "detectable": 0.375 + j / 8}
    return {
        "reward": interval(1 + (i if j == 0 else (0, 2, 1, 3)[i]) + j / 8, 0.25),
        "difference": difference,
        "win_rate": interval(0.5 + i / 32 + j / 64, 0.125 if i else 0.0),
        "strict_win_rate": interval(0.4 + i / 32 + j / 64, 0.125),
        "length_bias": interval(i / 16 - j / 32, 0.0625) | {"prompts": 2},
    }


def measured() -> list[dict[str, float]]:
    """0.5, 0.75, 1 and 1.25 seconds an answer."""
    return [
        {"seconds": (2.0 + i) / 4, "device_seconds": (2.0 + i) / 2, "memory": 1e6 * (i + 1)}
        for i in range(len(POLICIES))
    ]


def generations() -> str:
    """The rewards are `p + i / 4 + s / 8` by gold and `p - i / 4 - s / 8` by tone, of prompt p, policy i, sample s."""
    return handmade.lines(
        *(
            {
                "prompt": [{"role": "user", "content": f"prompt {p} {EVIL}"}], "policy": i, "sample": s,
                "response": f"answer {p}{i}{s} {EVIL}", "tokens": 4, "finished": s == 0,
                "rewards": [p + i / 4 + s / 8, p - i / 4 - s / 8],
            }
            for p in range(2)
            for i in range(len(POLICIES))
            for s in range(SAMPLES)
        )
    )  # fmt: skip


def put(
    study: View, change: Callable[[dict[str, Any]], None] = lambda found: None, *, sft: float = -0.75, **files: str
) -> None:
    """Publishes the comparison; `change` may alter its results, `files` adds files by their names without endings."""
    found = results(sft)
    change(found)
    written = {
        "evaluation.json": json.dumps(found),
        "measured.json": json.dumps(measured()),
        "generations.jsonl": generations(),
    }
    handmade.put(study, "table", written | {f"{name}.jsonl": text for name, text in files.items()})


def and_trained(folder: Path) -> View:
    """The study evaluated and trained; its responses and pairs are not there any more."""
    made = handmade.view(folder)
    put(made)
    curve = [{"step": 1, "loss": 2.5, "learning_rate": 0.1}, {"step": 2, "loss": 1.25, "accuracy": 0.75}]
    handmade.put(made, "sft", {"training.jsonl": handmade.lines(*curve)}, {"rows": 8.0, "test/accuracy": 0.625})
    return made
