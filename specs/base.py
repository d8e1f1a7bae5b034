"""What every spec shares: frozen, closed to unknown keys, numbers taken strictly.

A field's docstring is its description (`alignflow explain`). Units are part of the value:
durations are written `90s`, `10m`, `2h`, shares `2%`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from specs.problems import Path, UserError

if TYPE_CHECKING:
    from specs.graph import Graph

NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"
# A stage fanned out by `sweep` is named `bon[n=4]`; only the loader writes such names.
STAGE_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*(\[[A-Za-z0-9_.=,+-]+\])?$"

_ENVIRONMENT = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


class Spec(BaseModel):
    """A piece of the language."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_alias=True,
        validate_by_name=False,
        serialize_by_alias=True,
        protected_namespaces=(),
        defer_build=True,  # a study pays for the kinds it names, not for the whole language
    )


class Entry(Spec):
    """A named entry of a study: something that other entries may refer to."""

    produces: ClassVar[str]
    """The artifact type that a reference to this entry gives."""
    version: ClassVar[int] = 1
    """Raised by hand when the meaning of this kind changes, so that old artifacts are not reused."""
    made_of: ClassVar[tuple[str, ...]] = ()
    """Slots of rewards that this reward is made of; what may be done with them may be done with it."""

    @property
    def is_random(self) -> bool:
        """Whether two draws of it, as a policy, differ."""
        return True

    @property
    def is_last(self) -> bool:
        """Whether it is the last of its rounds."""
        return True

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        """What is wrong with its references beyond their types: `(path inside the entry, message)`."""
        return iter(())

    @property
    def kind_name(self) -> str:
        """The word that names this entry's kind in plans, records and the store."""
        raise AssertionError("every entry names its kind")


class NotIdentity:
    """Marks a field that judges or presents a result and so bears no identity (never hashed)."""


class Internal:
    """Marks a field that the loader alone writes."""


class MayNameEnvironment:
    """Marks a text field in which `${env:NAME}` stands for an environment variable's value."""


def environment_names(text: str) -> list[str]:
    """The environment variables that `text` names as `${env:NAME}`."""
    return _ENVIRONMENT.findall(text)


def expand_environment(text: str, environment: Any) -> str:
    """`text` with each `${env:NAME}` replaced. Done where the value is used and nowhere before, so
    that a secret never reaches a fingerprint, a log, Prefect or MLflow. Raises `UserError` where one is not set: a study
    out of a record was checked in another environment."""

    def value(found: re.Match[str]) -> str:
        try:
            return str(environment[found.group(1)])
        except KeyError:
            raise UserError(f"the environment variable `{found.group(1)}` is not set") from None

    return _ENVIRONMENT.sub(value, text)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    """A duration such as `90s`, `10m`, `2h` or `1d` in seconds."""
    return int(duration[:-1]) * _UNITS[duration[-1]]


def duration(seconds: int) -> str:
    """The other way round, in the largest unit that leaves nothing over."""
    unit = next(unit for unit in reversed(_UNITS) if seconds % _UNITS[unit] == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def fraction(percent: str) -> float:
    """A share such as `2%` as a fraction."""
    return float(percent[:-1]) / 100


def _is_share(percent: str) -> str:
    if fraction(percent) > 1:
        raise ValueError("a share is between 0% and 100%")
    return percent


FORMS: dict[str, str] = {}
"""What a person is told whose text does not match a pattern."""


def form(pattern: str, words: str) -> Any:
    """A field of text that matches `pattern`, which `words` describe."""
    FORMS[pattern] = words
    return Field(pattern=pattern)


NAMING = "a name is a letter followed by letters, digits, `-` and `_`"
Name = Annotated[str, form(NAME_PATTERN, NAMING)]
StageName = Annotated[str, form(STAGE_PATTERN, NAMING)]
Duration = Annotated[str, form(r"^[1-9][0-9]*[smhd]$", "a duration is written `90s`, `10m`, `2h` or `1d`")]
Percent = Annotated[str, form(r"^[0-9]+(\.[0-9]+)?%$", "a share is written `2%` or `0.5%`"), AfterValidator(_is_share)]
Count = Annotated[int, Field(strict=True, ge=1)]
WholeNumber = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Number = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NonNegative = Annotated[float, Field(strict=True, ge=0)]
Probability = Annotated[float, Field(strict=True, gt=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
EnvironmentText = Annotated[str, Field(min_length=1), MayNameEnvironment()]
