"""The guest's own few files and folders: users, names, places to write."""

from agentd.image.tree import ImageTree

SANDBOX_UID = 1000
_USERS = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUPS = """\
root:x:0:
daemon:x:1:
tty:x:5:
sandbox:x:1000:
nogroup:x:65534:
"""
_FILES = {
    "passwd": _USERS,
    "group": _GROUPS,
    "hostname": "agentd-vm\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 agentd-vm\n",
    "resolv.conf": "",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "profile": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
    "shells": "/bin/sh\n",
    "machine-id": "",
}
_STICKY = 0o1777
_FOLDERS = {
    "/dev": 0o755,
    "/home": 0o755,
    "/mnt": 0o755,
    "/opt": 0o755,
    "/proc": 0o555,
    "/root": 0o700,
    "/run": 0o755,
    "/sys": 0o555,
    "/tmp": _STICKY,
    "/usr/local/bin": 0o755,
    "/var/log": 0o755,
    "/var/tmp": _STICKY,
}
_MERGED = ("bin", "lib", "lib64", "sbin")


def tree(pretty_name: str) -> ImageTree:
    """Return everything in / that comes from no package."""
    made = ImageTree()
    for name in _MERGED:
        made.folder(f"/usr/{name}")
        made.link(f"/{name}", f"usr/{name}")
    for path, mode in _FOLDERS.items():
        made.folder(path, mode)
    made.folder("/workspace", 0o755, SANDBOX_UID, SANDBOX_UID)
    for name, text in _FILES.items():
        made.file(f"/etc/{name}", text.encode())
    made.file("/etc/shadow", b"root:*:::::::\nsandbox:*:::::::\n", 0o600)
    made.link("/etc/mtab", "../proc/self/mounts")
    made.link("/var/run", "../run")
    lines = ['NAME="agentd guest"', f'PRETTY_NAME="{pretty_name}"', "ID=agentd", "ID_LIKE=debian"]
    made.file("/etc/os-release", "".join(f"{line}\n" for line in lines).encode())
    # The kernel opens the console for the first process before anything is mounted.
    made.device("/dev/console", 5, 1, 0o600)
    made.device("/dev/null", 1, 3, 0o666)
    return made
