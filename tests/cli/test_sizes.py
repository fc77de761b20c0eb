"""Sizes in bytes, read and spelled."""

import pytest

from mbretrieve.cli.sizes import human_size, parse_memory
from mbretrieve.errors import DataError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("512MiB", 512 << 20),
        ("1G", 1 << 30),
        ("1g", 1 << 30),
        (" 1.5 GiB ", 3 << 29),
        ("1GB", 10**9),
        ("200mb", 2 * 10**8),
        ("65536K", 64 << 20),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "2", "GiB", "-1G", "2 GiB more", "1e3G", "nan G", "0x10M", "1PiB", "٣GiB", "1,5G"]
)
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(DataError, match="not a size") as error:
        parse_memory(text)
    assert "\n" not in str(error.value)
    assert text in str(error.value)


def test_too_little_is_too_little() -> None:
    with pytest.raises(DataError, match="64MiB or more"):
        parse_memory("63MiB")


def test_sizes_are_spelled() -> None:
    assert [human_size(size) for size in (0, 999, 1000, 17_000_000, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "17.0 MB",
        "5.0 TB",
    ]
