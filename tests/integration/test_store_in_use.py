"""A store that another program has in use is not told to be damaged."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path


def _serve(folder: Path) -> str:
    words = ["serve", "--state", str(folder), "--listen", f"unix:{folder}/s"]
    argv = [sys.executable, "-m", "agentd", *words]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    assert done.returncode == 125, done
    return done.stderr.decode()


def test_a_store_that_is_locked_is_no_damaged_one(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE held (x)")
        said = _serve(tmp_path)
    assert "locked" in said and "end the other program" in said, said
    assert "move the damaged file away" not in said


def test_a_store_that_is_none_is_told_to_be_moved(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "store.db").write_bytes(b"not a database" * 100)
    assert "move the damaged file away" in _serve(tmp_path)
