"""How long a person waits for `check` and `plan`, against importing what reads a spec."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.figures import Figure, against, alternately, bounded, seconds

ALIGNFLOW = str(Path(sys.executable).with_name("alignflow"))
IMPORTS = [sys.executable, "-c", "import pydantic, ruamel.yaml"]


def study(stages: int) -> str:
    """A study of so many stages: a sample, pairs and a reward model for each seed, and one evaluation of all."""
    lines = [
        "version: 1",
        f"name: generated-{stages}",
        "models: {base: {source: smollm2-135m-instruct}}",
        "data:",
        "  train: {source: quickstart-train, format: prompt}",
        "  held_out: {source: quickstart-eval, format: prompt}",
        "rewards: {gold: {kind: lexicon}}",
        "stages:",
    ]
    policies = []
    for i in range((stages - 1) // 4):
        lines += [
            f"  rolls_{i}: {{do: sample, from: base, prompts: train, samples: 4, seed: {i}}}",
            f"  pairs_{i}: {{do: label, responses: rolls_{i}, reward: gold}}",
            f"  rm_{i}: {{do: reward_model, from: base, data: pairs_{i}, learning_rate: 2e-4}}",
            f"  bon_{i}: {{do: decode, method: best_of_n, from: base, reward: rm_{i}, n: 4}}",
        ]
        policies.append(f"bon_{i}")
    for i in range(len(policies) * 4, stages - 1):
        lines.append(f"  more_{i}: {{do: decode, method: sample, from: base, temperature: 0.{i + 1}}}")
    named = ", ".join(policies)
    lines.append(
        f"  table: {{do: evaluate, policies: [base, {named}], against: base, prompts: held_out, rewards: [gold]}}"
    )
    return "\n".join(lines) + "\n"


def measure(folder: Path, repeats: int = 15) -> list[Figure]:
    """Compares whole processes, from start to exit."""
    environment = os.environ | {"ALIGNFLOW_HOME": str(folder / "home")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the baseline's packages were compiled when they were installed
    for stages in (20, 1000):
        (folder / f"{stages}.yaml").write_text(study(stages), encoding="utf-8")

    def run(*command: str) -> float:
        return seconds(command, environment, folder)

    def imports() -> float:
        return run(*IMPORTS)

    return [
        against(
            "`check`, 20 stages, against importing pydantic and ruamel.yaml",
            alternately(lambda: run(ALIGNFLOW, "check", "20.yaml"), imports, repeats), "s", 2.5,
        ),
        against(
            "`plan`, 20 stages, against the same imports",
            alternately(lambda: run(ALIGNFLOW, "plan", "20.yaml"), imports, repeats), "s", 4.0,
        ),
        bounded(
            "`plan`, 1,000 stages", [run(ALIGNFLOW, "plan", "1000.yaml") for _ in range(max(3, repeats // 3))], "s", 3.0
        ),
    ]  # fmt: skip
