"""Where the configuration is. It is not read here: that takes as long as much of a sandbox."""

import os
from collections.abc import Mapping


def find(env: Mapping[str, str], uid: int | None = None) -> str | None:
    """The file that holds where none is named: AGENTD_CONFIG, or one of the usual places."""
    if env.get("AGENTD_CONFIG"):
        return env["AGENTD_CONFIG"]
    places = ["/etc/agentd/agentd.toml"]
    if (os.geteuid() if uid is None else uid) != 0:
        home = env.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        places.insert(0, os.path.join(home, "agentd/agentd.toml"))
    return next((place for place in places if os.path.exists(place)), None)
