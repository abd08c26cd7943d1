"""A daemon one of whose threads has ended says so and ends, so that another one is started."""

import os
from pathlib import Path

from tests.security.daemons import running

# What the daemon's interpreter loads first: its thread ends once there is the file TRIGGER, as one
# that has met a fault of its own would.
SITE = """
import os, sys, time
if "serve" in sys.orig_argv:
    from agentd.daemon.sandboxes.endings import Endings
    def ends(self, *_):
        while not os.path.exists({trigger!r}):
            time.sleep(0.01)
    Endings._run = ends
"""


def test_it_is_told_and_the_daemon_ends(tmp_path: Path) -> None:
    trigger = tmp_path / "trigger"
    (tmp_path / "sitecustomize.py").write_text(SITE.format(trigger=str(trigger)))
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    with running(prefix=("env", f"PYTHONPATH={paths}")) as daemon:
        assert daemon.ask("GET", "/readyz").status == 200
        trigger.touch()
        assert daemon.process is not None
        assert daemon.process.wait(120) == 125
        assert b"its thread for the ends of walls has ended" in daemon.log
        assert b"ends, so that another is started" in daemon.log
