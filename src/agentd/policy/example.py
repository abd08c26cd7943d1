"""A call as policies see it, for those who only ask what would be decided."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentd.model.decision import Asked

_NETWORK = ("http.fetch.v1", "git.clone.v1")
_WRITES = ("fs.write.v1", "fs.edit.v1", "git.clone.v1", "shell.exec.v1", "python.exec.v1")
_BARE = ("sandbox.create.v1",)


def example(
    name: str,
    parameters: Mapping[str, Any],
    *,
    principal: str = "somebody",
    scopes: Sequence[str] = (),
    sandbox: Mapping[str, Any] | None = None,
) -> Asked:
    """``sandbox`` takes the place of members of one without network and mounts."""
    needs = {
        "level": "process",
        "network": name in _NETWORK,
        "writes": name in _WRITES,
        "sandbox": name not in _BARE,
    }
    plain = {
        "id": "",
        "level": "namespace",
        "backend": "linux",
        "image": "default",
        "net": "none",
        "egress": [],
        "secrets": [],
        "user": "sandbox",
        "env": [],
        "mounts": [],
        "limits": {},
        "labels": {},
    }
    return Asked(
        principal={"name": principal, "scopes": sorted(scopes), "via": "key"},
        capability={"name": name, "needs": needs},
        parameters=parameters,
        sandbox={**plain, **(sandbox or {})},
        request={"id": "example", "time": 1800000000.0, "signer": "", "via": "cli"},
    )
