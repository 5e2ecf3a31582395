"""When a policy is due and when it may act: across midnight, on the days on which clocks change, and for any moment."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.calendar import Calendar, check_cron, read_window, read_zone
from config.errors import RequestError

BERLIN = "Europe/Berlin"


def calendar(cron: str = "* * * * *", *windows: str, zone: str = "UTC") -> Calendar:
    return Calendar(check_cron(cron), tuple(read_window(each) for each in windows), read_zone(zone))


def at(text: str, zone: str = "UTC", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "moment", "is_open"),
    [
        ((), "2026-03-04T12:00", True),
        (("22:00-05:00",), "2026-03-04T21:59:59", False),
        (("22:00-05:00",), "2026-03-04T22:00", True),
        (("22:00-05:00",), "2026-03-05T04:59:59", True),
        (("22:00-05:00",), "2026-03-05T05:00", False),
        (("Sat,Sun 00:00-06:00",), "2026-03-07T00:00", True),  # a Saturday
        (("Sat,Sun 00:00-06:00",), "2026-03-09T00:00", False),
        (("Sun 22:00-05:00",), "2026-03-09T04:00", True),  # Monday morning belongs to Sunday's window
        (("Sun 22:00-05:00",), "2026-03-08T04:00", False),
        (("Fri-Mon 10:00-11:00",), "2026-03-09T10:30", True),
        (("Fri-Mon 10:00-11:00",), "2026-03-10T10:30", False),
        (("mon 10:00-11:00", "TUE 12:00 - 24:00"), "2026-03-10T23:59:59", True),
        (("00:00-24:00",), "2026-03-10T23:59:59", True),
        (("23:00-00:00",), "2026-03-10T23:30", True),
        (("23:00-00:00",), "2026-03-10T00:00", False),
    ],
)
def test_a_window_is_open_from_its_first_minute_to_the_one_before_its_last(
    windows: tuple[str, ...], moment: str, is_open: bool
) -> None:
    assert calendar("* * * * *", *windows).open(at(moment)) is is_open


def test_how_long_it_stays_open_is_known_to_the_second_and_no_further_than_asked() -> None:
    nightly = calendar("* * * * *", "22:00-05:00")
    assert nightly.stays_open(at("2026-03-04T04:59:30"), 3600) == 30
    assert nightly.stays_open(at("2026-03-04T04:00:00"), 3600) == 3600
    assert nightly.stays_open(at("2026-03-04T04:00:01"), 3600) == 3599
    assert nightly.stays_open(at("2026-03-04T23:59:59"), 3600) == 3600
    assert nightly.stays_open(at("2026-03-04T12:00:30"), 3600) == 0
    assert calendar().stays_open(at("2026-03-04T12:00"), 3600) == 3600
    hour = calendar("* * * * *", "02:00-03:00", zone=BERLIN)
    assert hour.stays_open(at("2026-10-25T02:30", BERLIN), 7200) == 5400


def test_windows_go_by_the_clock_on_the_wall_also_when_it_is_changed() -> None:
    nightly = calendar("* * * * *", "02:00-03:00", zone=BERLIN)
    assert not nightly.open(at("2026-03-29T01:59:59", BERLIN))
    assert not nightly.open(at("2026-03-29T03:00", BERLIN))  # a second later: there is no such hour
    for fold in (0, 1):  # that hour comes twice
        assert nightly.open(at("2026-10-25T02:30", BERLIN, fold))
    assert at("2026-10-25T02:30", BERLIN, 1) - at("2026-10-25T02:30", BERLIN, 0) == 3600
    assert not nightly.open(at("2026-10-25T03:00", BERLIN))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write it like Sat,Sun"),
        ("22-5", "write it like"),
        ("Sun", "write it like"),
        ("Someday 10:00-11:00", "no such days: 'someday'"),
        ("Mon-Funday 10:00-11:00", "'mon-funday'"),
        ("25:00-26:00", "no such time of day: 25:00"),
        ("10:60-11:00", "10:60"),
        ("10:00-24:01", "24:01"),
        ("10:00-10:00", "no length"),
        ("24:00-05:00", "no length"),
        ("1" * 1000, "is no window"),
    ],
)
def test_what_is_no_window_is_refused_and_says_why(text: str, says: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read_window(text)
    assert says in str(refusal.value)


# --- cron -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("60 * * * *", "its minute is wrong"),
        ("0 24 * * *", "its hour is wrong"),
        ("0 0 32 * *", "its day-of-month is wrong"),
        ("0 0 * 13 *", "its month is wrong"),
        ("0 0 * * someday", "its day-of-week is wrong"),
        ("0 0 30 2 *", "its day-of-month is wrong"),
        ("0 0 * *", "five fields: minute hour day-of-month month day-of-week"),
        ("0 0 0 * * *", "five fields"),
        ("@daily", "five fields"),
        (5, "is no cron expression"),
        ("* " * 600, "five fields"),
    ],
)
def test_what_is_no_cron_expression_is_refused_and_says_which_field(cron: object, says: str) -> None:
    with pytest.raises(RequestError) as refusal:
        check_cron(cron)
    assert says in str(refusal.value)


def test_either_of_day_and_weekday_is_enough_as_in_cron() -> None:
    assert calendar("0 0 13 * fri").next(at("2026-03-04T00:00")) == at("2026-03-06T00:00")  # a Friday, the 6th


@given(st.text("0123456789*/-,L#WMONJAN \n", max_size=40) | st.text(max_size=20))
def test_nothing_that_is_written_there_is_a_defect(text: str) -> None:
    for read in (check_cron, read_window, read_zone):
        try:
            read(text)
        except RequestError:
            continue


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "..", "/etc/passwd", "Europe", "\0"])
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="no time zone that this host knows"):
        read_zone(name)


def test_what_falls_into_the_hour_that_is_left_out_is_due_right_after_it() -> None:
    nightly = calendar("30 2 * * *", zone=BERLIN)
    assert nightly.next(at("2026-03-29T00:00", BERLIN)) == at("2026-03-29T03:00", BERLIN)
    assert nightly.due(at("2026-03-29T12:00", BERLIN)) == at("2026-03-29T03:00", BERLIN)


def test_what_falls_into_the_hour_that_comes_twice_is_due_once() -> None:
    nightly = calendar("30 2 * * *", zone=BERLIN)
    once = at("2026-10-25T02:30", BERLIN)
    for later in (60.0, 1800.0, 3600.0, 3660.0, 7200.0):  # the second half past two among them
        assert nightly.due(once + later) == once
        assert nightly.next(once + later) == at("2026-10-26T02:30", BERLIN)


def test_what_is_rare_is_found_years_back() -> None:
    assert calendar("0 0 29 2 *").due(at("2027-06-01T00:00")) == at("2024-02-29T00:00")
    assert calendar("0 0 29 2 *").due(at("2107-06-01T00:00")) == at("2104-02-29T00:00")
    assert calendar("0 3 * * sun").due(at("2026-03-07T23:00")) == at("2026-03-01T03:00")


CRONS = [
    "* * * * *",
    "*/7 * * * *",
    "30 2 * * *",
    "15 1,2,3 * * *",
    "0 */5 * * mon",
    "0 0 1 * *",
    "5 4 13 * fri",
    "0 3 L * *",
]
ZONES = ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
#: Around every change of clocks of two years, and anywhere else.
MOMENTS = st.floats(at("2025-01-01T00:00"), at("2027-01-01T00:00")) | st.builds(
    lambda change, seconds: at(change) + seconds,
    st.sampled_from(
        ["2026-03-29T01:00", "2026-10-25T01:00", "2026-03-08T07:00", "2026-11-01T06:00", "2026-10-03T15:30"]
    ),
    st.integers(-4 * 3600, 4 * 3600),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CRONS), st.sampled_from(ZONES), MOMENTS)
def test_the_due_moment_is_not_later_than_now_and_there_is_none_between(cron: str, zone: str, now: float) -> None:
    found = calendar(cron, zone=zone)
    due, coming = found.due(now), found.next(now)
    assert due <= now < coming
    assert found.next(due) == coming
    assert found.due(due) == due
