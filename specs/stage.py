"""What every stage shares."""

from specs.base import Entry, Seed


class Stage(Entry):
    """A step of the study; `do` names its kind."""

    do: str

    @property
    def kind_name(self) -> str:
        return self.do


LAST_RUN, NEVER = "last_run", "never"
"""What a stage may go on `since`, beside a fingerprint."""


class Seeded(Stage):
    """A stage that draws random numbers."""

    seed: Seed | None = None
    """The seed of its random numbers; the study's if absent, so that compared policies share theirs."""
