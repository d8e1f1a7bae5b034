"""When a deployment of a study runs: by cron, by an interval, or by a recurrence rule. No part of any identity."""

from datetime import UTC, datetime
from typing import Self

from pydantic import field_validator, model_validator

from specs.base import Duration, Flag, Spec

WAYS = ("cron", "interval", "rrule")


class Schedule(Spec):
    """When a deployment of the study runs: one of `cron`, `interval` and `rrule`. `alignflow run` runs at once and leaves
    it alone."""

    cron: str | None = None
    """Five fields: minute, hour, day of month, month, day of week."""
    interval: Duration | None = None
    """The time from one run to the next, counted from when the schedule was deployed: `6h`."""
    rrule: str | None = None
    """A recurrence rule of RFC 5545: `FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=2;BYMINUTE=0;BYSECOND=0`."""
    timezone: str = "UTC"
    """A name of the time zone database."""
    active: Flag = False
    """Whether the schedule starts switched on."""

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, text: str | None) -> str | None:
        from cronsim import CronSim, CronSimError  # only a study with a schedule pays for it

        try:
            if text is not None:
                CronSim(text, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(f"not a cron expression: {error}") from None
        return text

    @field_validator("rrule")
    @classmethod
    def _is_rule(cls, text: str | None) -> str | None:
        from dateutil.rrule import rrulestr

        try:
            if text is not None and rrulestr(text, ignoretz=True).after(datetime.now()) is None:
                raise ValueError("it names no time to come")
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # dateutil raises what its parsing meets
            raise ValueError(f"not a recurrence rule: {error}") from None
        return text

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, name: str) -> str:
        import zoneinfo

        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # `America` is a folder of it
            raise ValueError(f"`{name}` is not in the time zone database") from None
        return name

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [way for way in WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            told = " and ".join(f"`{way}`" for way in given) or "neither `cron`, `interval` nor `rrule`"
            raise ValueError(f"has {told}; give one of the three")
        return self

    @property
    def words(self) -> str:
        """The schedule in words."""
        way = next(way for way in WAYS if getattr(self, way) is not None)
        written = "every " if way == "interval" else f"{way} "
        return f"{written}{getattr(self, way)}, {self.timezone}"
