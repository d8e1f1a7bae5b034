"""When a deployment of a study runs: by cron, by an interval, or by a recurrence rule. No part of any identity."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import ValidationInfo, field_validator, model_validator

from specs.base import Duration, Flag, Spec, seconds

WAYS = ("cron", "interval", "rrule")
_VALUE = "(?:[0-9]+|[A-Z]{3})"
_PART = re.compile(
    rf"\*(/[0-9]+)?|L|{_VALUE}(#[0-9])?|(?!({_VALUE})-\3(?![0-9])){_VALUE}-{_VALUE}(/[0-9]+)?", re.IGNORECASE
)
"""What CronSim, which checks it, and Prefect, which goes by it, read alike: Prefect refuses `5L`, and `2-2` is every hour to it."""
_ANCHOR = datetime(2020, 1, 1)
"""Where Prefect has a rule without DTSTART begin."""


class Schedule(Spec):
    """When a deployment of the study runs: one of `cron`, `interval` and `rrule`. `alignflow run` runs at once and leaves
    it alone."""

    timezone: str = "UTC"  # stands first, so that a rule is looked at in it
    """A name of the time zone database."""
    cron: str | None = None
    """Five fields: minute, hour, day of month, month, day of week."""
    interval: Duration | None = None
    """The time from one run to the next, counted from when the schedule was deployed: `6h`."""
    rrule: str | None = None
    """A recurrence rule of RFC 5545: `FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=2;BYMINUTE=0;BYSECOND=0`. Without DTSTART it begins on
    2020-01-01."""
    active: Flag = False
    """Whether the schedule starts switched on."""

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, text: str | None) -> str | None:
        from cronsim import CronSim, CronSimError  # only a study with a schedule pays for it

        if text is None:
            return None
        fields = text.split()
        if len(fields) != 5:
            five = "five fields (minute, hour, day of month, month, day of week)"
            raise ValueError(f"not a cron expression: it has {five}, not {len(fields)}")
        try:
            CronSim(text, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(f"not a cron expression: {error}") from None
        for part in ",".join(fields).split(","):
            if not _PART.fullmatch(part):
                taken = "write `*`, `*/5`, `7`, `MON`, `1-5`, `10-59/5`, `L` or `1#2`"
                raise ValueError(f"not a cron expression that Prefect goes by: `{part}`; {taken}")
        if 0 < fields[4].count("#") <= fields[4].count(","):
            raise ValueError(f"not a cron expression that Prefect goes by: `{fields[4]}` has days with `#` and without")
        return text

    @field_validator("interval")
    @classmethod
    def _ends(cls, text: str | None) -> str | None:
        try:
            if text is not None:
                datetime.now(UTC) + timedelta(seconds=seconds(text))
        except OverflowError:
            raise ValueError("an interval that ends after the year 9999") from None
        return text

    @field_validator("rrule")
    @classmethod
    def _is_rule(cls, text: str | None, given: ValidationInfo) -> str | None:
        from zoneinfo import ZoneInfo

        if text is None:
            return None
        now = datetime.now(ZoneInfo(given.data.get("timezone", "UTC"))).replace(tzinfo=None)
        try:
            if _rule(text, now).after(now) is None:
                begins = "" if "DTSTART" in text.upper() else f"; without DTSTART it begins on {_ANCHOR:%Y-%m-%d}"
                raise ValueError(f"it names no time to come{begins}")
        except OverflowError:
            raise ValueError("not a recurrence rule: its INTERVAL is too large") from None
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


def _rule(text: str, now: datetime) -> Any:
    """A recurrence rule as Prefect has it, in the schedule's own time. Raises what dateutil does."""
    from dateutil.rrule import HOURLY, rrule, rrulestr

    if re.search("INTERVAL=(-|0+(;|\\s|$))", text, re.IGNORECASE):
        raise ValueError("INTERVAL is 1 at least")  # dateutil would look for its next time without end
    rule = rrulestr(text, dtstart=_ANCHOR, ignoretz=True)
    try:
        rrulestr(text, dtstart=_ANCHOR)
    except ValueError:
        raise ValueError("UNTIL and DTSTART both end in `Z`, or neither does; they are times of `timezone`") from None
    if isinstance(rule, rrule) and rule._freq >= HOURLY and rule._count is None and rule._dtstart < now:
        # Many steps at once to the same times: of the minutes since the anchor there are millions.
        step = rule._interval * timedelta(hours=1) / 60 ** (rule._freq - HOURLY)
        return rule.replace(dtstart=rule._dtstart + (now - rule._dtstart) // step * step)
    return rule
