"""An evaluation's results with names put to their positions: for MLflow, the terminal, the report, expectations."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from registry.artifacts import Artifact
from registry.dialogue_text import shown
from registry.methods.best_of_n import kl_bound
from tasks.inputs import read_lines
from tasks.lineage import Making, Role, making, role
from tasks.verdict_table import verdict_metrics, verdict_rows, win_rate

EVALUATION = "evaluation.json"
GENERATIONS = "generations.jsonl"
TRACES = "traces.jsonl"
"""Of each policy with guides, what they looked at before each choice of its first answer to the first prompt."""
MEASURED = "measured.json"
"""Seconds and bytes of each policy: apart from what repeats bit for bit."""
TESTS = ("p", "p_holm", "detectable")
"""Of a difference: the permutation test's p-value, the same among all policies compared (Holm), and the difference that as many
prompts find four times in five."""


@dataclass(frozen=True)
class Evaluation:
    """What an `evaluate` stage found, named."""

    policies: tuple[str, ...]
    rewards: tuple[str, ...]
    reference: str
    results: dict[str, Any]
    measured: tuple[dict[str, float], ...]
    """Of each policy, `seconds` and `device_seconds` of an answer, and `memory` (bytes)."""
    roles: tuple[tuple[Role, ...], ...]
    """Of each policy, what part each reward had in it."""
    making: tuple[Making, ...]
    """Of each policy, the seconds in which everything below it was built."""
    judges: tuple[str, ...] = ()

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat row for each policy and reward: estimates with the ends of their intervals."""
        for number, (name, policy) in enumerate(zip(self.policies, self.results["policies"], strict=True)):
            for place, (reward, found) in enumerate(zip(self.rewards, policy["rewards"], strict=True)):
                row: dict[str, Any] = {"policy": name, "against": self.reference, "judged_by": reward}
                row["reward_had_part"] = self.roles[number][place]
                for what, values in found.items():
                    row |= _spread(what, values)
                if "length_bias" in found:
                    row["length_bias_prompts"] = found["length_bias"]["prompts"]
                row |= {what: found["difference"][what] for what in TESTS if what in found["difference"]}
                row |= _spread("length", policy["length"]) | {"finished": policy["finished"]}
                row["prompts"] = self.results["prompts"]
                row["samples_per_prompt"] = self.results["samples_per_prompt"]
                yield row

    def policy_rows(self) -> Iterator[dict[str, Any]]:
        """One flat row for each policy: what its answers are like, how far it is from the reference's model, what an answer
        costs, and what making it took (`at_least_making_seconds` where that is not known of all below it)."""
        for name, policy, spent, made in zip(
            self.policies, self.results["policies"], self.measured, self.making, strict=True
        ):
            row: dict[str, Any] = (
                {"policy": name} | _spread("length", policy["length"]) | {"prompts_met": policy["met"]["prompts"]}
            )
            for group in ("texts", "copied", "kl", "perplexity"):
                for what, values in policy[group].items():
                    row |= _spread(f"{group}_{what}" if group in ("kl", "perplexity") else what, values)
            row |= {f"{what}_per_answer": count for what, count in policy["cost"].items()}
            row |= {f"{what}_per_answer": spent[what] for what in ("seconds", "device_seconds")}
            row["positions_per_answer"] = self.positions(name)
            what = "making_seconds" if made.is_all else "at_least_making_seconds"
            yield row | {"peak_memory": spent["memory"], what: made.seconds}

    def met(self, policies: Collection[str] = ()) -> str:
        """Which policies (or which of some) were made on some of the prompts, or on data that are not here any more, in words;
        empty where none was."""
        prompts = self.results["prompts"]
        pairs = zip(self.policies, self.results["policies"], strict=True)
        met = {name: found["met"] for name, found in pairs if name in policies or not policies}
        counts = {name: one["prompts"] for name, one in met.items() if one["prompts"]}
        each = ", ".join(f"{name} ({'all' if many == prompts else many})" for name, many in counts.items())
        unknown = ", ".join(name for name, one in met.items() if one["unknown"])
        told = [
            f"not held out: of the {prompts} prompts, those that policies or their guides were made on: {each}"
            if each
            else "",
            f"not known, for data that it was made on are not here as they were: {unknown}" if unknown else "",
        ]
        return "; ".join(filter(None, told))

    def best_of(self) -> Iterator[dict[str, Any]]:
        """One row for each policy that draws at random, reward and number of draws: what the best of so many is worth,
        from all that were drawn. `kl_bound` is at most how far choosing moves it from what it draws from."""
        for name, policy in zip(self.policies, self.results["policies"], strict=True):
            for reward, curve in zip(self.rewards, policy["best_of"], strict=False):
                for point in curve:
                    row = {"policy": name, "judged_by": reward, "n": point["n"], "kl_bound": kl_bound(point["n"])}
                    yield row | _spread("reward", point)

    def apart(self) -> Iterator[dict[str, Any]]:
        """One row for each policy, reward that guides it and reward that does not: how much more of the first was gained, in
        standard deviations of the reference's answers."""
        for name, policy in zip(self.policies, self.results["policies"], strict=True):
            for found in policy["apart"]:
                row = {"policy": name, "guide": self.rewards[found["guide"]], "gold": self.rewards[found["gold"]]}
                yield row | _spread("gained_more", found)

    def over_seeds(self) -> Iterator[dict[str, Any]]:
        """One row for each group of policies that differ by their training's seed alone, and reward."""
        for group in self.results["over_seeds"]:
            names = [self.policies[i] for i in group["policies"]]
            for reward, found in zip(self.rewards, group["rewards"], strict=True):
                row = {"policies": ", ".join(names), "seeds": len(names), "judged_by": reward}
                yield row | _spread("reward", found["reward"]) | _spread("difference", found["difference"])

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """One row for each judge and each policy but the reference."""
        return verdict_rows(self.policies, self.judges, self.reference, self.results)

    @property
    def chooser(self) -> str:
        """The reward that chooses among the draws of policies that have none of their own."""
        chooser: int = self.results["chooser"]
        return self.rewards[chooser]

    def fingerprint(self, policy: str) -> str:
        """Equal for the names of one policy."""
        fingerprint: str = self.results["policies"][self.policies.index(policy)]["fingerprint"]
        return fingerprint

    @property
    def inference(self) -> list[str]:
        """The metrics of procedures that policies were put behind."""
        return [name for name in self.results["policies"][0]["rewards"][0] if "_of_" in name]

    def kl(self, policy: str) -> tuple[str, dict[str, float]] | None:
        """The name and interval of the estimate of a policy's divergence that says most; None where there is none."""
        found = self.results["policies"][self.policies.index(policy)]["kl"]
        known = (name for name in ("rao_blackwell", "best_of_n", "point_mass", "bound") if name in found)
        name = next(known, None)
        return None if name is None else (name, found[name])

    def positions(self, policy: str) -> float:
        """The forward positions of an answer of a policy, of its model and its guides."""
        cost = self.results["policies"][self.policies.index(policy)]["cost"]
        return float(sum(cost[f"{what}_positions"] for what in ("prompt", "decode", "guide")))

    def interval(self, policy: str, metric: str) -> dict[str, float]:
        """A policy's `reward.<name>`, `win_rate.<name>` (or another that is judged by a reward), `judge.<name>`, or `length`:
        `estimate`, `low` and `high`."""
        what, _, reward = metric.partition(".")
        found = self.results["policies"][self.policies.index(policy)]
        if what == "length":
            interval = found["length"]
        elif what == "judge":
            interval = win_rate(found["judges"][self.judges.index(reward)])
        else:
            interval = found["rewards"][self.rewards.index(reward)][what]
        return {end: float(interval[end]) for end in ("estimate", "low", "high")}

    def prompts(self, policy: str, metric: str) -> int:
        """How many prompts tell of it: of a judge's win rate those that it gave a verdict on."""
        what, _, name = metric.partition(".")
        found = self.results["policies"][self.policies.index(policy)]
        judged = found["judges"][self.judges.index(name)] if what == "judge" else None
        return int((judged or self.results)["prompts"])

    def metric(self, policy: str, metric: str) -> float:
        """The estimate alone."""
        return self.interval(policy, metric)["estimate"]

    def metrics(self) -> dict[str, float]:
        """Every estimate and interval end under a name for MLflow."""
        found: dict[str, float] = {}
        for row in self.rows():
            policy, reward = _metric_name(row["policy"]), _metric_name(row["judged_by"])
            place = self.rewards.index(row["judged_by"])
            for what in self.results["policies"][self.policies.index(row["policy"])]["rewards"][place]:
                for end in ("", "_low", "_high"):
                    found[f"{policy}/{what}{end}/{reward}"] = row[f"{what}{end}"]
            found |= {f"{policy}/{what}/{reward}": row[what] for what in TESTS if what in row}
            found[f"{policy}/finished"] = row["finished"]
        for row in self.apart():
            for end in ("", "_low", "_high"):
                which = f"{_metric_name(row['guide'])} than {_metric_name(row['gold'])}"
                found[f"{_metric_name(row['policy'])}/gained_more{end}/{which}"] = row[f"gained_more{end}"]
        for row in self.policy_rows():
            policy = _metric_name(row["policy"])
            found |= {f"{policy}/{what}": value for what, value in row.items() if what != "policy"}
        for row in self.verdicts():
            found |= verdict_metrics(_metric_name(row["policy"]), row)
        return found


def _metric_name(name: str) -> str:
    """MLflow's metric names allow no brackets or equals signs: `bon[n=4]` is `bon-n-4`."""
    return name.replace("[", "-").replace("=", "-").replace(",", "-").rstrip("]")


def _spread(name: str, interval: dict[str, float]) -> dict[str, float]:
    return {name: interval["estimate"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}


def named(artifact: Artifact) -> Evaluation:
    """The results of an `evaluate` stage under the names of this study."""
    assert artifact.folder is not None
    results, measured = (
        json.loads((artifact.folder / file).read_text(encoding="utf-8")) for file in (EVALUATION, MEASURED)
    )
    policies = list(artifact.inputs["policies"])
    if len(results["policies"]) > len(policies):
        policies.append(artifact.one("against"))
    rewards = artifact.inputs["rewards"]
    names = tuple(policy.name for policy in policies)
    return Evaluation(
        names,
        tuple(reward.name for reward in rewards),
        names[results["reference"]],
        results,
        tuple(measured),
        tuple(tuple(role(policy, reward) for reward in rewards) for policy in policies),
        tuple(making(policy) for policy in policies),
        tuple(judge.name for judge in artifact.inputs.get("judges", ())),
    )


def generations(artifact: Artifact, policies: Sequence[str], rewards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The generation table: prompt (the last message, and the whole dialogue where there are more), policy, response, and each
    reward as `reward.<name>`."""
    assert artifact.folder is not None
    for row in read_lines(artifact.folder / GENERATIONS):
        yield {
            "prompt": row["prompt"][-1]["content"],
            "dialogue": shown(row["prompt"]) if len(row["prompt"]) > 1 else "",
            "policy": policies[row["policy"]],
            "sample": row["sample"],
            "response": row["response"],
            "tokens": row["tokens"],
            "finished": row["finished"],
            **{f"reward.{name}": value for name, value in zip(rewards, row["rewards"], strict=True)},
        }
