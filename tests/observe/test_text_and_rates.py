"""Names from strangers are harmless, numbers are readable, rates follow."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from manyhands.observe.rates import Rate, format_bytes, format_count, format_duration
from manyhands.observe.text import clean_line, clean_name


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("laptop-7", "laptop-7"),
        ("  büro   pc  ", "büro pc"),
        ("केन्द्र", "केन्द्र"),
        ("[red]x[/red]", "_red_x_/red_"),
        ("\x1b[2J\x07gone", "__2J_gone"),
        ("a\nb\tc", "a b c"),
        ("<script>alert(1)</script>", "_script_alert(1)_/script_"),
        ("=cmd|x", "_cmd_x"),
        ("--help", "help"),
        ("safe\u202eexe.txt", "safe_exe.txt"),
        ("zero\u200bwidth", "zero_width"),
        ("\ud800x", "_x"),
        ("", "unnamed"),
        ("\u200b ", "unnamed"),
        ("x" * 100, "x" * 63 + "…"),
    ],
)
def test_a_name_is_short_and_harmless(given_name, shown):
    assert clean_name(given_name) == shown


@given(st.text(max_size=300))
def test_no_name_is_markup_or_moves_the_cursor(text):
    name = clean_name(text, max=20)
    assert 1 <= len(name) <= 20
    assert not set(name) & set("[]<>&\"'`\\;|$*?!{}%=+@,")
    assert all(unicodedata.category(c)[0] in "LNMPZ" for c in name)
    assert "\n" not in name
    assert Text.from_markup(name).plain == name
    assert clean_name(name, max=20) == name
    name.encode()


@given(st.text(max_size=900))
def test_a_line_stays_one_printable_line(text):
    line = clean_line(text)
    assert len(line) <= 300
    assert line.isprintable()
    assert clean_line("no such invite: [x]") == "no such invite: [x]"


def test_a_steady_rate_is_right_from_the_second_event():
    rate = Rate(half_life_seconds=10.0)
    rate.start(100.0)
    for second in range(1, 200):
        rate.add(50.0, 100.0 + second)
        assert rate.per_second(100.0 + second) == pytest.approx(50.0, rel=0.6 if second < 2 else 0.05)


def test_a_rate_follows_change_and_falls_in_silence():
    rate = Rate(half_life_seconds=5.0)
    assert rate.per_second(0.0) == 0.0
    now = 0.0
    rate.start(now)
    for speed in (100.0, 10.0):
        for _ in range(400):
            now += 0.1
            rate.add(speed * 0.1, now)
        assert rate.per_second(now) == pytest.approx(speed, rel=0.05)
    assert rate.per_second(now + 5.0) == pytest.approx(5.0, rel=0.05)
    assert rate.per_second(now + 500.0) < 1e-6
    assert rate.per_second(now) >= 0.0


@pytest.mark.parametrize(
    ("amount", "bytes_", "count"),
    [
        (0, "0 B", "0"),
        (7, "7 B", "7"),
        (999, "999 B", "999"),
        (1000, "1.0 KiB", "1k"),
        (1536, "1.5 KiB", "1.5k"),
        (12 * 2**20, "12 MiB", "13M"),
        (3.2 * 2**40, "3.2 TiB", "3.5T"),
    ],
)
def test_sizes_read_well(amount, bytes_, count):
    assert format_bytes(amount) == bytes_
    assert format_count(amount) == count


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.97, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3725, "1 h 02 min"),
        (183600, "2 d 03 h"),
        (float("inf"), "unknown"),
        (float("nan"), "unknown"),
    ],
)
def test_durations_read_well(seconds, text):
    assert format_duration(seconds) == text
