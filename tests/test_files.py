from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fastprune.errors import StorageError
from fastprune.files import TEMPORARY, digest_of, sha256_of, write_atomically, write_json


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")
    write_atomically(path, lambda temporary: temporary.write_bytes(b"new"))

    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(temporary: Path) -> None:
        assert temporary.name.startswith(TEMPORARY)
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)

    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: '.*/a'$") as caught:
        write_atomically(tmp_path / "a", full)
    assert str(StorageError.of(caught.value)) == f"{tmp_path}/a: No space left on device"
    assert StorageError.of(FileNotFoundError(errno.ENOENT, "No such file")) is None


def test_json_has_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\\\xff\xfe\xc3\xa9.jpg")
    write_json(tmp_path / "a", {"bad": [name]})

    assert json.loads((tmp_path / "a").read_text("utf-8")) == {"bad": [name]}
    assert "é" in (tmp_path / "a").read_text("utf-8")
    assert digest_of([name]) != digest_of([name.replace("\udcff", "\udcfe")])


def test_json_refuses_what_no_other_reader_takes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"loss": float("nan")})

    assert list(tmp_path.iterdir()) == []


def test_digests_do_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")

    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    assert sha256_of(path).startswith("ba7816bf")
