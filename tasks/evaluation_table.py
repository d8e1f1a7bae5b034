"""An evaluation's results with names put to their positions: for MLflow, the terminal, the report, expectations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from registry.artifacts import Artifact
from tasks.inputs import read_lines
from tasks.verdict_table import verdict_metrics, verdict_rows, win_rate

EVALUATION = "evaluation.json"
GENERATIONS = "generations.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What an `evaluate` stage found, named."""

    policies: tuple[str, ...]
    rewards: tuple[str, ...]
    reference: str
    results: dict[str, Any]
    judges: tuple[str, ...] = ()

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat row for each policy and reward: estimates with the ends of their intervals."""
        for name, policy in zip(self.policies, self.results["policies"], strict=True):
            for reward, found in zip(self.rewards, policy["rewards"], strict=True):
                row: dict[str, Any] = {"policy": name, "against": self.reference, "judged_by": reward}
                for what, interval in found.items():
                    row |= _spread(what, interval)
                row |= _spread("length", policy["length"]) | {"finished": policy["finished"]}
                row["prompts"] = self.results["prompts"]
                row["samples_per_prompt"] = self.results["samples_per_prompt"]
                yield row

    def best_of(self) -> Iterator[dict[str, Any]]:
        """One row for each policy that chooses among draws, reward and number of draws: what the best of so many is worth,
        from all that were drawn."""
        for name, policy in zip(self.policies, self.results["policies"], strict=True):
            for reward, curve in zip(self.rewards, policy.get("best_of", ()), strict=False):
                for point in curve:
                    row = {"policy": name, "judged_by": reward, "n": point["n"]}
                    yield row | _spread("reward", point)

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """One row for each judge and each policy but the reference."""
        return verdict_rows(self.policies, self.judges, self.reference, self.results)

    @property
    def inference(self) -> list[str]:
        """The metrics of procedures that policies were put behind."""
        return [name for name in self.results["policies"][0]["rewards"][0] if name.endswith("_win_rate")]

    def metric(self, policy: str, metric: str) -> float:
        """A policy's `reward.<name>`, `win_rate.<name>` (or another that is judged by a reward), `judge.<name>`, or `length`."""
        what, _, reward = metric.partition(".")
        found = self.results["policies"][self.policies.index(policy)]
        if what == "length":
            return float(found["length"]["estimate"])
        if what == "judge":
            return win_rate(found["judges"][self.judges.index(reward)])
        return float(found["rewards"][self.rewards.index(reward)][what]["estimate"])

    def metrics(self) -> dict[str, float]:
        """Every estimate and interval end under a name for MLflow."""
        found: dict[str, float] = {}
        for row in self.rows():
            policy, reward = _metric_name(row["policy"]), row["judged_by"]
            for what in self.results["policies"][self.policies.index(row["policy"])]["rewards"][0]:
                for end in ("", "_low", "_high"):
                    found[f"{policy}/{what}{end}/{reward}"] = row[f"{what}{end}"]
            for key in ("length", "length_low", "length_high", "finished"):
                found[f"{policy}/{key}"] = row[key]
        for row in self.verdicts():
            found |= verdict_metrics(_metric_name(row["policy"]), row)
        return found


def _metric_name(policy: str) -> str:
    """MLflow's metric names allow no brackets or equals signs: `bon[n=4]` is `bon-n-4`."""
    return policy.replace("[", "-").replace("=", "-").replace(",", "-").rstrip("]")


def _spread(name: str, interval: dict[str, float]) -> dict[str, float]:
    return {name: interval["estimate"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}


def named(artifact: Artifact) -> Evaluation:
    """The results of an `evaluate` stage under the names of this study."""
    assert artifact.folder is not None
    results = json.loads((artifact.folder / EVALUATION).read_text(encoding="utf-8"))
    against = artifact.one("against")
    policies = [p.name for p in artifact.inputs["policies"]]
    if len(results["policies"]) > len(policies):
        policies.append(against.name)
    rewards = tuple(r.name for r in artifact.inputs["rewards"])
    judges = tuple(j.name for j in artifact.inputs.get("judges", ()))
    return Evaluation(tuple(policies), rewards, policies[results["reference"]], results, judges)


def generations(artifact: Artifact, policies: Sequence[str], rewards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The generation table: prompt, policy, response, and each reward as `reward.<name>`."""
    assert artifact.folder is not None
    for row in read_lines(artifact.folder / GENERATIONS):
        yield {
            "prompt": row["prompt"][-1]["content"],
            "policy": policies[row["policy"]],
            "sample": row["sample"],
            "response": row["response"],
            "tokens": row["tokens"],
            "finished": row["finished"],
            **{f"reward.{name}": value for name, value in zip(rewards, row["rewards"], strict=True)},
        }
