"""Presets: what lies beneath a configuration file. They are written as a file would be."""

import os
from collections.abc import Mapping
from typing import Any

from agentd.daemon.config.problem import nearest
from agentd.linux import runtime_dir

PROFILES = {
    "workstation": "one's own machine: the unix socket, oneself as admin",
    "server": "a machine that a team shares: API keys, quotas, JSON logs",
    "paranoid": "nobody is trusted: virtual machines alone, short leases, small quotas",
}
DEFAULT = "workstation"


def preset(name: str, env: Mapping[str, str], uid: int) -> dict[str, Any]:
    """Return a profile as tomllib would give it. ``name`` is one of PROFILES."""
    return {
        "daemon": {"state": _state(env, uid)},
        "listen": [{"address": f"unix:{runtime_dir.folder(env, uid)}/agentd.sock"}],
        **{"workstation": _workstation, "server": _server, "paranoid": _paranoid}[name](),
    }


def meant(name: str) -> str:
    """Say which profile may be meant by a name that none has."""
    near = nearest(name, PROFILES)
    return f"did you mean {near!r}?" if near else f"use one of: {', '.join(PROFILES)}"


def _state(env: Mapping[str, str], uid: int) -> str:
    if uid == 0:
        return "/var/lib/agentd"
    base = env.get("XDG_STATE_HOME") or os.path.join(env.get("HOME") or "~", ".local/state")
    return os.path.join(base, "agentd")


def _workstation() -> dict[str, Any]:
    return {
        "auth": {"peers": [{"uid": "self", "scopes": ["admin"]}]},
        "pool": [{"min": 1, "max": 4}],
        "sandbox": {"networks": ["none", "host", "restricted"], "mounts": ["/"]},
        "egress": {"allow": ["public", "private"]},
    }


def _server() -> dict[str, Any]:
    return {
        "auth": {"peers": [{"uid": "self", "scopes": ["admin"]}], "keys": {"max_ttl": "366d"}},
        "quotas": {
            "default": {
                "sandboxes": 64,
                "memory": "64G",
                "disk": "32G",
                "cpu_seconds": 14400,
                "requests": 200,
                "burst": 400,
                "concurrency": 64,
            }
        },
        "sandbox": {"networks": ["none", "restricted"]},
        "egress": {"allow": []},  # nothing, until somebody says what
        "policy": {"bundle": "strict"},
        "limits": {"max": {"memory": "8G", "pids": 4096, "disk": "16G", "open_files": 65536}},
        "pool": [{"min": 4, "max": 16}],
        "log": {"format": "json"},
    }


def _paranoid() -> dict[str, Any]:
    return {
        "auth": {
            "peers": [{"uid": "self", "scopes": ["admin"]}],
            "keys": {"default_ttl": "1d", "max_ttl": "30d"},
        },
        "quotas": {
            "default": {
                "sandboxes": 8,
                "memory": "4G",
                "disk": "4G",
                "cpu_seconds": 3600,
                "requests": 20,
                "burst": 40,
                "concurrency": 8,
            }
        },
        "leases": {"default": "2m", "max": "1h"},
        "limits": {
            "default": {"timeout": "60s", "memory": "512M", "pids": 128},
            "max": {
                "memory": "2G",
                "cpus": 2,
                "pids": 512,
                "disk": "1G",
                "open_files": 4096,
                "output": "64M",
                "timeout": "10m",
            },
        },
        "journal": {"keep": "10m", "process": "16M", "total": "1G"},
        "sandbox": {
            "minimum": "microvm",
            "private_programs": True,
            "host_configuration": "minimal",
        },
        "policy": {"bundle": "paranoid"},
        "pool": [{"isolation": "microvm", "min": 0, "max": 2, "ttl": "2m"}],
        "log": {"format": "json"},
    }
