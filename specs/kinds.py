"""The kinds of stages by their `do`. A kind is imported when a study names it: reading a small study does not pay for the
whole language."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Annotated, Any, Union

from pydantic import Field

KINDS = {
    "sft": "specs.training:SFT",
    "reward_model": "specs.training:RewardModel",
    "autoregressive_reward_model": "specs.preference_training:AutoregressiveRewardModel",
    "prefix_scorer": "specs.prefix_scorer:PrefixScorer",
    "calibrate": "specs.calibration:Calibrate",
    "rl": "specs.reward_training:RL",
    "rrhf": "specs.reward_training:RRHF",
    "raft": "specs.reward_training:RAFT",
    "dpo": "specs.preference_training:DPO",
    "qrpo": "specs.preference_training:QRPO",
    "bond": "specs.reward_training:BOND",
    "soup": "specs.soup:Soup",
    "sample": "specs.generation:Sample",
    "label": "specs.generation:Label",
    "decode": "specs.decoding:Decode",
    "evaluate": "specs.evaluation:Evaluate",
}


def kind(do: str) -> Any:
    """The class of a kind, or the union of its forms."""
    module, name = KINDS[do].split(":")
    return getattr(import_module(module), name)


@cache
def any_stage() -> Any:
    """The union of all kinds."""
    return Annotated[Union[tuple(map(kind, KINDS))], Field(discriminator="do")]  # noqa: UP007  (made of a tuple)


class EveryKind:
    """Marks a field that holds a stage of any kind: its schema is the union's, made when it is first asked for."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: Any) -> Any:
        return handler.generate_schema(any_stage())
