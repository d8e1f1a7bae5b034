"""The schedule that is meant: the study's, and what the command line writes over it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from specs.load import say
from specs.problems import Mark, Problem, SpecError
from specs.schedule import WAYS, Schedule


def schedule_of(written: Schedule | None, options: Mapping[str, str | None]) -> Schedule | None:
    """Raises `SpecError` where an option is wrong, or they do not go together. A way of its own replaces the study's."""
    given = {key: text for key, text in options.items() if text is not None}
    if not given:
        return written
    kept = written.model_dump(exclude_unset=True) if written else {}
    if given.keys() & {*WAYS}:
        kept = {key: value for key, value in kept.items() if key not in WAYS}
    try:
        return Schedule.model_validate(kept | given)
    except ValidationError as error:
        raise SpecError([
            Problem(Mark(f"--{problem['loc'][0]}" if problem["loc"] else " ".join(f"--{key}" for key in given)), (), say(problem))
            for problem in error.errors(include_url=False)
        ]) from None  # fmt: skip
