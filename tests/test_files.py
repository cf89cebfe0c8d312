"""data/files.py: what bears a name is complete."""

import gzip
import json
import os
from pathlib import Path

import pytest

from data.errors import Refused
from data.files import file_to_be, lines_of, make_it_appear, write_json


def test_a_json_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "row.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    write_json(file, ["é"])
    assert json.loads(file.read_text()) == ["é"] and list(file.parent.iterdir()) == [file]


def test_a_folder_appears_with_all_that_lies_in_it(tmp_path: Path) -> None:
    unfinished = tmp_path / ".v1"
    unfinished.mkdir()
    (unfinished / "a").write_text("whole")
    make_it_appear(unfinished, tmp_path / "v1")
    assert (tmp_path / "v1" / "a").read_text() == "whole" and not unfinished.exists()


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_line_that_would_fill_the_memory_is_a_sentence(tmp_path: Path, is_packed: bool) -> None:
    long = b"{}\n" + b" " * (2**26 + 1)
    (path := tmp_path / "rows.jsonl").write_bytes(gzip.compress(long, 1) if is_packed else long)
    lines = lines_of(path)
    assert next(lines) == b"{}\n"
    with pytest.raises(Refused, match=r"rows.jsonl' has a line of more than 64 MiB - write one row a line"):
        next(lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_copy_that_root_makes_is_for_the_account_whose_folder_it_lies_in(tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    os.chown(folder, 10001, 10002)
    with file_to_be(folder / "copy") as partial:
        partial.write_text("words")
    found = (folder / "copy").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (10001, 10002, 0o600)
