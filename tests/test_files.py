"""Files are whole or absent, whatever happens while they are written."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hsetvae.config import UserError
from hsetvae.files import folder_atomically, refuse_file, remove_partial, write_atomically


def test_a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    for content in (b"old", b"new and longer"):
        write_atomically(path, content)
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named_and_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("a file")
    for place in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=rf"{place} cannot be written \(.*\): choose another place"):
            write_atomically(place, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "a file"


@pytest.mark.skipif(os.name != "posix", reason="only there files have such modes")
def test_files_and_folders_of_patients_are_as_private_as_the_user_wants(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "file", b"x")
        with folder_atomically(tmp_path / "folder") as folder:
            (folder / "file").touch()
    finally:
        os.umask(before)
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))


def test_what_a_killed_maker_of_a_folder_left_is_removed_after_a_day(tmp_path):
    for name in (".partial-old", ".partial-new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events").write_text("half of them")
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / ".partial-old", (yesterday, yesterday))
    with folder_atomically(tmp_path / "folder"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".partial-new", "folder"}


def test_a_file_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(UserError, match="file is a file: a run needs a folder"):
            refuse_file(folder)
    refuse_file(tmp_path / "new" / "run")


WRITER = """
import sys
from pathlib import Path
from hsetvae.files import write_atomically
for i in range(10**9):
    write_atomically(Path(sys.argv[1]), bytes([i % 256]) * 2_000_000)
"""


def test_a_kill_in_the_middle_of_a_write_leaves_a_whole_file_and_what_is_beside_it_can_be_removed(tmp_path):
    path = tmp_path / "file"
    left = 0
    for kill in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == before:
            time.sleep(0.001)
        time.sleep(0.002 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        content = path.read_bytes()
        assert len(content) == 2_000_000 and content.count(content[:1]) == len(content)
        left += len(list(tmp_path.iterdir())) - 1
    assert left > 0, "a kill hit a write"
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
