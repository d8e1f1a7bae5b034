"""Training in rounds: `rounds: 3` makes three stages, `raft[round=1]`, `raft[round=2]` and the last, `raft` itself.

Each is planned, cached, resumed and shown by itself. Every round has the model that training began from as `from` and
the model of the round before as `previous`; more rounds later reuse those that are there.
"""

from typing import Annotated

from specs.base import Count, Internal, NotIdentity
from specs.references import LanguageModel
from specs.training import TrainingOnTexts


class Rounds(TrainingOnTexts):
    """A method that draws from the model it improves, and may do so again and again."""

    rounds: Annotated[Count, NotIdentity()] = 1
    """How often it draws from the current model and trains on what came; each round is a stage of its own."""
    round: Annotated[Count, Internal()] = 1
    """Which round this is."""
    previous: Annotated[LanguageModel | None, Internal()] = None
    """The model of the round before."""

    @property
    def is_last(self) -> bool:
        return self.round == self.rounds
