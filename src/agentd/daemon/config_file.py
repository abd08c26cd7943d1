"""Where the configuration is.

What reads it is apart: to import that takes much of the time that a sandbox takes to be made.
"""

import os
from collections.abc import Mapping


def find(env: Mapping[str, str], uid: int | None = None) -> str | None:
    """Return the file that holds where none is named: AGENTD_CONFIG, or one of the usual places."""
    if env.get("AGENTD_CONFIG"):
        return env["AGENTD_CONFIG"]
    places = ["/etc/agentd/agentd.toml"]
    if (os.geteuid() if uid is None else uid) != 0:
        home = env.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        places.insert(0, os.path.join(home, "agentd/agentd.toml"))
    return next((place for place in places if os.path.exists(place)), None)
