"""What judges found, with names put to their positions: for MLflow, the terminal, the report, expectations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

WIN_RATE = {"win_rate": "estimate", "win_rate_low": "low", "win_rate_high": "high"}
MEASURED = ("position_bias", "agreement", "unparsable", "requests", "prompt_tokens", "completion_tokens")
COLUMNS = ("win rate", "prompts", "position bias", "agreement", "unparsable", "requests", "tokens")


def verdict_rows(
    policies: Sequence[str], judges: Sequence[str], reference: str, results: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One flat row for each judge and each policy but the reference; None stands where there was nothing to measure."""
    for name, policy in zip(policies, results["policies"], strict=True):
        for judge, found in zip(judges, policy.get("judges", ()), strict=True):
            if found is not None:
                ends = found["win_rate"] or {}
                yield {
                    "policy": name,
                    "against": reference,
                    "judged_by": judge,
                    **{key: ends.get(end) for key, end in WIN_RATE.items()},
                    **{what: value for what, value in found.items() if what != "win_rate"},
                }


def win_rate(found: dict[str, Any] | None) -> dict[str, float]:
    """The interval; one half for the reference, as for any policy against itself; where no reply held a verdict no numbers at
    all, which meet no bar."""
    if found is None:
        return dict.fromkeys(WIN_RATE.values(), 0.5)
    return found["win_rate"] or dict.fromkeys(WIN_RATE.values(), math.nan)


def verdict_cells(row: dict[str, Any]) -> list[str]:
    """A row as a person reads it, under `COLUMNS`."""
    ends = [row[key] for key in WIN_RATE]
    spread = "none" if None in ends else "{:.3f} [{:.3f}, {:.3f}]".format(*ends)
    prompts = f"{row['prompts']} of {row['prompts'] + row['prompts_left_out']}"
    shares = ("none" if row[what] is None else f"{row[what]:.3f}" for what in ("position_bias", "agreement"))
    counts = (f"{row[what]:,}" for what in ("unparsable", "requests"))
    tokens = [row["prompt_tokens"], row["completion_tokens"]]
    return [spread, prompts, *shares, *counts, "not told" if None in tokens else "{:,} in, {:,} out".format(*tokens)]


def verdict_metrics(policy: str, row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What a row tells, under names for MLflow: `bon/judge/careful`."""
    judge = row["judged_by"]
    named = {key.replace("win_rate", "judge"): row[key] for key in WIN_RATE}
    named |= {f"judge_{what}": row[what] for what in MEASURED}
    yield from ((f"{policy}/{what}/{judge}", float(value)) for what, value in named.items() if value is not None)
