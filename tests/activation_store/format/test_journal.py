"""Journals that were torn, damaged or made up."""

import json
from contextlib import suppress

import pytest

from activation_store.errors import CorruptStoreError
from activation_store.format.journal import good_lines, header_record, parse_journal, record_nbytes, shard_record
from activation_store.format.layout import checksum_bytes

HEADER = header_record({"zarr.json": b"{}"})
LINES = [HEADER, shard_record(0, b"abcd"), shard_record(1, b"efgh")]


def line(record) -> bytes:
    data = json.dumps(record).encode() if not isinstance(record, bytes) else record
    return checksum_bytes(data).hex().encode() + b" " + data + b"\n"


def test_every_torn_tail_is_as_if_never_written():
    whole = b"".join(LINES)
    for length in range(len(whole) + 1):
        if length < len(HEADER):
            with pytest.raises(CorruptStoreError, match="line 1 is damaged"):
                parse_journal(whole[:length], "j")
            continue
        contents = parse_journal(whole[:length], "j")
        n_whole = sum(length >= len(b"".join(LINES[:count])) for count in (2, 3))
        assert sorted(contents.shards) == list(range(n_whole))
        assert contents.n_bytes == len(b"".join(LINES[: n_whole + 1]))


@pytest.mark.parametrize("garbage", [b"\n", b"\0" * 50, b"12\n34\n", b"\r\xff\n" * 9, b"0123abcd {}\n"])
def test_garbage_behind_the_last_line_is_passed_over(garbage):
    assert parse_journal(b"".join(LINES) + garbage, "j") == parse_journal(b"".join(LINES), "j")


def test_a_line_without_its_newline_counts_as_never_written():
    """The next line would be added to it."""
    for instead in (b"", b"x", b"\r", b"\0"):
        assert sorted(parse_journal(b"".join(LINES)[:-1] + instead, "j").shards) == [0]


def test_a_damaged_line_before_good_ones_is_named():
    with pytest.raises(CorruptStoreError, match=r"j: line 2 is damaged; restore it from a copy, or run .* repair=True"):
        parse_journal(LINES[0] + b"x" + LINES[1][1:] + LINES[2], "j")


def test_every_flipped_byte_is_an_error_or_takes_a_line_away():
    whole, complete = b"".join(LINES), parse_journal(b"".join(LINES), "j").shards
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        with suppress(CorruptStoreError):
            assert parse_journal(bytes(flipped), "j").shards.items() < complete.items()


def test_a_later_record_replaces_an_earlier_one():
    assert parse_journal(b"".join(LINES) + shard_record(0, b"wxyz"), "j").shards == {0: b"wxyz", 1: b"efgh"}


@pytest.mark.parametrize(
    "record",
    [
        {"shard": -1, "crc32c": "00"},
        {"shard": True, "crc32c": "00"},
        {"shard": 1.5, "crc32c": "00"},
        {"shard": 1, "crc32c": "zz"},
        {"shard": 1, "crc32c": 7},
        {"shard": 1},
        [1, 2],
        7,
        b"{",
        b"[" * 100_000,
    ],
)
def test_records_of_another_form_are_refused(record):
    with pytest.raises(CorruptStoreError, match="not of this format"):
        parse_journal(HEADER + line(record), "j")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\0b", "./a"])
def test_paths_out_of_the_store_are_refused(name):
    with pytest.raises(CorruptStoreError, match="not a path inside the store"):
        parse_journal(line({"files": {name: "0"}}), "j")


@pytest.mark.parametrize("header", [{"files": 3}, {"files": {"a": 1}, "x": 1}, {}, [], {"files": ["a"]}])
def test_headers_of_another_form_are_refused(header):
    if header == {"files": {"a": 1}, "x": 1}:
        assert parse_journal(line(header), "j").files == {"a": "1"}  # never equal to a hash
        return
    with pytest.raises(CorruptStoreError, match="not of this format"):
        parse_journal(line(header), "j")


def test_dropping_damaged_lines_keeps_the_good_ones():
    assert good_lines(LINES[0] + b"garbage\n" + LINES[2] + b"torn", "j") == (LINES[0] + LINES[2], 2)
    with pytest.raises(CorruptStoreError, match="j: its first line"):
        good_lines(b"x" + b"".join(LINES), "j")


def test_a_line_is_no_longer_than_its_bound():
    assert len(shard_record(10**12, b"\xff" * 4 * 500)) <= record_nbytes(500)
