import os
import subprocess
import sys
import threading

import pytest

from agentd.model.errors import SandboxError
from agentd.sandbox.shelf import Shelf

OWNER = """
import os, signal
from agentd.sandbox.shelf import Shelf
shelf = Shelf()
folder = shelf.new_folder()
open(f"{folder}/memory", "w").close()
print(shelf.folder(), flush=True)
signal.pause()
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "agentd" / "snapshots"


def folders(cache):
    return sorted(name for name in os.listdir(cache) if name != "lock")


def test_a_folder_lives_as_long_as_its_shelf_and_is_for_its_owner_alone(cache):
    shelf = Shelf()
    made = [shelf.new_folder(), shelf.new_folder()]
    assert len(set(made)) == 2
    assert all(os.path.dirname(folder) == shelf.folder() for folder in made)
    assert folders(cache) == [os.path.basename(shelf.folder())]
    for folder in (*made, shelf.folder()):
        assert os.stat(folder).st_mode & 0o777 == 0o700
    shelf.close()
    shelf.close()
    assert folders(cache) == []


def test_nothing_is_made_unasked(cache):
    Shelf().close()
    assert not cache.exists()


def test_what_a_killed_process_left_is_removed_and_a_living_ones_stays(cache):
    def start():
        owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
        return owner, owner.stdout.readline().strip()

    killed, gone = start()
    alive, kept = start()
    killed.kill()
    killed.communicate()
    assert os.path.exists(gone)
    shelf = Shelf()
    try:
        expected = sorted(map(os.path.basename, (kept, shelf.folder())))
        assert folders(cache) == expected
        assert os.path.exists(f"{kept}/lock")
    finally:
        shelf.close()
        alive.kill()
        alive.communicate()


def test_shelves_that_come_at_once_leave_each_other_alone(cache):
    shelves = [Shelf() for _ in range(8)]
    threads = [threading.Thread(target=shelf.folder) for shelf in shelves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders(cache)) == 8
    assert all(os.path.isdir(shelf.folder()) for shelf in shelves)
    for shelf in shelves:
        shelf.close()


@pytest.mark.root
def test_a_cache_of_another_user_is_not_trusted(cache, tmp_path):
    cache.mkdir(parents=True)
    os.chown(tmp_path / "agentd", 1234, -1)
    shelf = Shelf()
    try:
        assert not shelf.folder().startswith(str(tmp_path))
    finally:
        shelf.close()
    assert not os.path.exists(shelf._folder or "") and os.listdir(cache) == []


def test_no_place_at_all_names_the_fix(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    with pytest.raises(SandboxError, match="set XDG_CACHE_HOME"):
        Shelf().folder()
