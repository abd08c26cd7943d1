"""What an image is, and what can be wrong with one."""

from collections.abc import Callable

import msgspec

from agentd.model import errors

# What is being done, steps done, steps in all.
Progress = Callable[[str, int, int], None]
FORMAT = 1
KERNEL, INITRAMFS, EXT4, EROFS = "vmlinux", "initramfs.cpio", "root.ext4", "root.erofs"
BASES = ("debian", "busybox")
#: The base of an image that is the user's own through and through, its agent included.
OWN = "own"
# What Debian's kernel can do without in a guest, which is more than half of what it executes until
# the agent listens: self-tests of ciphers, the jitter entropy source (the monitor and the host
# give entropy), certificates that sign modules, tracing of itself, a keyboard and a mouse.
CMDLINE = (
    "cryptomgr.notests random.trust_cpu=on i8042.noaux i8042.nokbd initcall_blacklist="
    "jent_mod_init,load_system_certificate_list,crypto_kdf108_init,trace_eval_init,init_kprobe_trace"
)


class ImageError(errors.SandboxError):
    code = "image_error"


class NotFound(ImageError, errors.NotFound):
    code = "image_not_found"


class Corrupt(ImageError):
    code = "image_corrupt"


class File(msgspec.Struct, frozen=True):
    """A file of an image: its SHA-256 in hex, and its size in bytes."""

    sha256: str
    size: int


class ImageManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``manifest.json``. The image's digest is that of the files' names and digests.

    ``packages`` maps names to versions; ``own`` are the files that the user gave; ``notes`` say
    what is not there and why. ``agent`` (the agent's sources), ``recipe`` (the code that builds),
    and ``base_key`` (the packages) are digests of what it was made from.
    """

    format: int
    digest: str
    base: str
    kernel_release: str
    python: str
    agent: str
    recipe: str
    base_key: str
    files: dict[str, File]
    packages: dict[str, str] = {}
    own: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Image(msgspec.Struct, frozen=True):
    """A verified image; every path is absolute, and its content does not change.

    ``kernel`` is a vmlinux with a PVH entry, ``initramfs`` an uncompressed cpio archive; both
    roots hold the same tree, and are None where the tool that makes them was missing. ``cmdline``
    is what this kernel boots fastest with: for its command line, before anything else.
    """

    name: str
    digest: str
    base: str
    folder: str
    kernel: str
    initramfs: str
    root_ext4: str | None
    root_erofs: str | None
    kernel_release: str
    cmdline: str
    python: str
    agent: str
    packages: dict[str, str]
    notes: tuple[str, ...]
