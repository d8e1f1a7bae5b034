"""A schedule means to Prefect, which runs it, what it meant when it was checked; what would not is refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from prefect.server.schemas.schedules import CronSchedule, RRuleSchedule
from refusals import refusals

from specs.schedule import Schedule

STUDY = """\
version: 1
name: small
rewards: {gold: {kind: length}}
models: {base: {source: smollm2-135m-instruct}}
stages:
  bon: {do: decode, method: best_of_n, from: base, reward: gold, n: 2}
schedule: """
FIVE = "it has five fields (minute, hour, day of month, month, day of week)"
PART = "write `*`, `*/5`, `7`, `MON`, `1-5`, `10-59/5`, `L` or `1#2`"


@pytest.mark.parametrize(
    ("cron", "told"),
    [
        ("0 0 2 * * *", f": {FIVE}, not 6"),
        ("0 25 * * *", ": Bad hour"),
        ("0 0 31 2 *", ": Bad day-of-month"),
        ("0 2 * * 5L", f" that Prefect goes by: `5L`; {PART}"),
        ("0 2 LW * *", f" that Prefect goes by: `LW`; {PART}"),
        ("0 2 1,L/2 * *", f" that Prefect goes by: `L/2`; {PART}"),
        ("0 2-2 * * *", f" that Prefect goes by: `2-2`; {PART}"),
        ("0 23/2 * * *", f" that Prefect goes by: `23/2`; {PART}"),
        ("0 2 * * 1#2,3", " that Prefect goes by: `1#2,3` has days with `#` and without"),
    ],
)
def test_a_cron_expression_that_prefect_refuses_or_reads_otherwise_is_refused(
    cron: str, told: str, tmp_path: Path
) -> None:
    told = f"schedule.cron  not a cron expression{told}"
    assert refusals(tmp_path, f"{STUDY}{{cron: '{cron}'}}\n") == [told]


@pytest.mark.parametrize(
    "cron",
    [
        "0 2 * * *", "*/20 1-5 * * *", "10-59/15 2,14 * * 1-5", "0 2 L * *", "0 2 1-31/2 feb,MAR *", "0 2 * * sat,SUN",
        "0 2 * * 1#2,3#1", "0 2 * * MON#3", "0 0-23/6 2-22 * *", "5 4 * * 7",
    ],
)  # fmt: skip
def test_a_cron_expression_that_is_taken_names_the_same_times_to_prefect(cron: str) -> None:
    Schedule(cron=cron)
    begin = datetime(2027, 1, 1, 0, 0, 30, tzinfo=UTC)
    times = asyncio.run(CronSchedule(cron=cron, timezone="UTC").get_dates(20, start=begin))
    assert times == list(islice(CronSim(cron, begin), 20))


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("FREQ=DAILY;COUNT=10", "it names no time to come; without DTSTART it begins on 2020-01-01"),
        ("FREQ=MINUTELY;UNTIL=20250101", "it names no time to come; without DTSTART it begins on 2020-01-01"),
        ("DTSTART:20210101T020000 RRULE:FREQ=DAILY;COUNT=10", "it names no time to come"),
        (
            "FREQ=DAILY;UNTIL=29991231T000000Z",
            "UNTIL and DTSTART both end in `Z`, or neither does; they are times of `timezone`",
        ),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL is 1 at least"),
        ("FREQ=HOURLY;INTERVAL=999999999999999", "its INTERVAL is too large"),
    ],
)
def test_a_rule_that_prefect_would_never_run_is_refused(rule: str, told: str, tmp_path: Path) -> None:
    told = f"schedule.rrule  not a recurrence rule: {told}"
    assert refusals(tmp_path, f"{STUDY}{{rrule: '{rule}'}}\n") == [told]


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=SECONDLY", "FREQ=MINUTELY;INTERVAL=7", "FREQ=HOURLY;INTERVAL=5", "FREQ=WEEKLY;BYDAY=MO;BYHOUR=2;BYMINUTE=0",
        "DTSTART:20200101T000000Z RRULE:FREQ=DAILY;UNTIL=29991231T000000Z", "DTSTART:29990101T000000 RRULE:FREQ=DAILY;COUNT=3",
        "RDATE:29990101T000000",
    ],
)  # fmt: skip
def test_a_rule_that_is_taken_is_taken_at_once_and_comes_to_its_time(rule: str) -> None:
    began = datetime.now()
    Schedule(rrule=rule, timezone="Asia/Tokyo")
    assert datetime.now() - began < timedelta(seconds=10)
    if "SECONDLY" not in rule:  # Prefect's server begins such a rule anew before it goes through it
        assert asyncio.run(RRuleSchedule(rrule=rule, timezone="Asia/Tokyo").get_dates(1))


@pytest.mark.parametrize(("timezone", "is_over"), [("Pacific/Kiritimati", True), ("Pacific/Midway", False)])
def test_whether_a_rule_is_over_is_seen_in_its_own_time(timezone: str, is_over: bool, tmp_path: Path) -> None:
    """The two are a day and an hour apart."""
    noon = datetime.now(ZoneInfo("Pacific/Midway")) + timedelta(hours=12)
    once = f"DTSTART:{noon:%Y%m%dT%H%M%S} RRULE:FREQ=DAILY;COUNT=1"
    assert bool(refusals(tmp_path, f"{STUDY}{{rrule: '{once}', timezone: {timezone}}}\n")) is is_over


def test_an_interval_that_never_ends_is_refused(tmp_path: Path) -> None:
    told = "schedule.interval  an interval that ends after the year 9999"
    assert refusals(tmp_path, f"{STUDY}{{interval: 99999999999d}}\n") == [told]
