"""One stage of the file to the stages it stands for.

`sweep` makes one stage for each combination of values, named `bon[n=4]`; `rounds: 3` a chain of three, named
`raft[round=1]`, `raft[round=2]` and `raft`; a soup's `weights: {grid: 11}` one for each point, named `soup[0.3,0.7]`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from specs.kinds import KINDS
from specs.problems import Mark, Path, Problem
from specs.yaml_tree import Positions, Tree

Places = list[tuple[Path, str, Mark]]

IN_ROUNDS = ("raft", "rrhf", "dpo")
"""The kinds that are `specs.rounds.Rounds`."""
MOST = 1000
"""The most stages that one sweep, one grid or one `rounds` of a file may stand for: more are a slip of the pen."""


def spread(stages: dict[str, Any], positions: Positions, problems: list[Problem]) -> dict[str, Any]:
    """The stages with every sweep, every round and every point of a grid as a stage of its own."""
    for name, stage in stages.items():
        for key in set(stage) & {"round", "previous"} if isinstance(stage, dict) else ():
            path: Path = ("stages", name, key)
            problems.append(Problem(positions.nearest(path, "key"), path, "is written by `rounds`; leave it out"))
    for key, rule in (("sweep", _swept), ("rounds", _in_rounds)):
        if any(key in stage for stage in stages.values() if isinstance(stage, dict)):
            places = _places_by_stage(positions)
            stages = {
                member: made
                for name, stage in stages.items()
                for member, made in (
                    rule(name, stage, places.get(name, []), positions, problems)
                    if _has(stage, key)
                    else [(name, stage)]
                )
            }
    if any(_has(stage, "experts") for stage in stages.values()):
        places = _places_by_stage(positions)
        stages = {
            member: made
            for name, stage in stages.items()
            for member, made in _on_grid(name, stage, stages, places.get(name, []), positions, problems)
        }
    return stages


def _has(stage: Tree, key: str) -> bool:
    return isinstance(stage, dict) and key in stage


def _places_by_stage(positions: Positions) -> dict[str | int, Places]:
    places: dict[str | int, Places] = {}
    for (path, part), mark in positions.items():
        if path[:1] == ("stages",) and len(path) > 1:
            places.setdefault(path[1], []).append((path[2:], part, mark))
    return places


def _swept(
    name: str, stage: dict[str, Any], places: Places, positions: Positions, problems: list[Problem]
) -> list[tuple[str, Tree]]:
    sweep = stage["sweep"]
    path: Path = ("stages", name, "sweep")

    def wrong(path: Path, message: str) -> list[tuple[str, Tree]]:
        problems.append(Problem(positions.nearest(path), path, message))
        return []

    if not isinstance(sweep, dict) or not sweep:
        return wrong(path, "names fields and their values: `{n: [2, 4, 8]}`")
    for key, values in sweep.items():
        if not isinstance(values, list) or not values:
            return wrong((*path, key), "a list of values")
        if any(isinstance(v, (dict, list)) or v is None or not _MEMBER.fullmatch(_show(v)) for v in values):
            return wrong((*path, key), "each value is a number, a name or true/false")
        if len(set(map(str, values))) < len(values):
            return wrong((*path, key), "the same value twice")
        if key in stage:
            return wrong((*path, key), f"`{key}` is set on the stage as well; keep one")
    count = math.prod(map(len, sweep.values()))
    if count > MOST:
        return wrong(path, f"{count:,} combinations; at most {MOST:,}")
    members = []
    for choice in itertools.product(*(enumerate(values) for values in sweep.values())):
        chosen = {key: value for key, (_, value) in zip(sweep, choice, strict=True)}
        member = f"{name}[{','.join(f'{k}={_show(v)}' for k, v in chosen.items())}]"
        here = _placed(member, places, positions)
        for key, (i, _) in zip(sweep, choice, strict=True):
            # `nearest`: of what `--set` or an alias brought in, the inner places are not known.
            positions[(*here, key), "key"] = positions.nearest((*path, key), "key")
            positions[(*here, key), "value"] = positions.nearest((*path, key, i))
        members.append((member, {k: v for k, v in stage.items() if k != "sweep"} | chosen))
    return members


def _placed(member: str, places: Places, positions: Positions) -> Path:
    """Gives a member the places of the stage that it comes from; returns its path."""
    here: Path = ("stages", member)
    positions.update({((*here, *inner), part): mark for inner, part, mark in places})
    return here


def _in_rounds(
    name: str, stage: dict[str, Any], places: Places, positions: Positions, problems: list[Problem]
) -> list[tuple[str, Tree]]:
    """The rounds of a stage. The last keeps the stage's name, so that the name means what came of them all."""
    rounds = stage["rounds"]
    do = stage.get("do")
    if isinstance(do, str) and do in KINDS and do not in IN_ROUNDS:
        path: Path = ("stages", name, "rounds")
        told = f"is for {', '.join(f'`{kind}`' for kind in IN_ROUNDS)}; `{do}` has none"
        problems.append(Problem(positions.nearest(path, "key"), path, told))
        return [(name, {key: value for key, value in stage.items() if key != "rounds"})]
    if not isinstance(rounds, int) or rounds < 1 or rounds > MOST:
        if isinstance(rounds, int) and rounds > MOST:
            path = ("stages", name, "rounds")
            problems.append(Problem(positions.nearest(path), path, f"at most {MOST:,}"))
            return []
        return [(name, stage)]
    names = [_inside(name, f"round={number}") for number in range(1, rounds)] + [name]
    members: list[tuple[str, Tree]] = []
    for number, member in enumerate(names, 1):
        _placed(member, places, positions)
        before = {"previous": names[number - 2]} if number > 1 else {}
        members.append((member, stage | {"round": number} | before))
    return members


def _on_grid(
    name: str,
    stage: Tree,
    stages: dict[str, Any],
    places: Places,
    positions: Positions,
    problems: list[Problem],
) -> list[tuple[str, Tree]]:
    """The soups of a grid of weights. What is wrong with it is left to be said where the stage is validated."""
    weights = stage.get("weights") if isinstance(stage, dict) else None
    grid = weights.get("grid") if isinstance(weights, dict) and len(weights) == 1 else None
    if not isinstance(grid, int) or not 2 <= grid <= 101:
        return [(name, stage)]
    named = [stage["experts"]] if isinstance(stage["experts"], str) else stage["experts"]
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        return [(name, stage)]
    experts = sum(len(_members(one, stages)) for one in named)
    count = math.comb(grid - 1 + experts - 1, grid - 1)
    if experts and count > MOST:
        path: Path = ("stages", name, "weights", "grid")
        message = f"{count:,} soups of {experts} experts; at most {MOST:,}: take fewer values"
        problems.append(Problem(positions.nearest(path), path, message))
        return []
    made = []
    for point in simplex(experts, grid) if experts > 1 else ():
        member = _inside(name, ",".join(f"{weight:g}" for weight in point))
        _placed(member, places, positions)
        made.append((member, stage | {"weights": list(point)}))
    return made or [(name, stage)]


def _members(name: str, stages: dict[str, Any]) -> list[str]:
    """What a reference to a stage means, as `specs.graph` will say."""
    swept = [s for s in stages if s.startswith(f"{name}[") and not re.search(r"[\[,]round=\d+\]$", s)]
    return [name] if name in stages or not swept else swept


def simplex(experts: int, points: int) -> list[tuple[float, ...]]:
    """Every weighting of `experts` experts in steps of 1 / (points - 1), each rounded to 12 digits: from the first expert's
    corner to the last one's, the first weight falling, then the second, and so on."""
    steps = points - 1
    return [tuple(round(part / steps, 12) for part in parts) for parts in _divided(steps, experts)]


def _divided(whole: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to divide `whole` among `parts`, the first part's largest share first."""
    if parts == 1:
        yield (whole,)
        return
    for first in range(whole, -1, -1):
        yield from ((first, *others) for others in _divided(whole - first, parts - 1))


def _inside(name: str, what: str) -> str:
    return f"{name[:-1]},{what}]" if name.endswith("]") else f"{name}[{what}]"


_MEMBER = re.compile(r"[A-Za-z0-9_.+-]+")


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
