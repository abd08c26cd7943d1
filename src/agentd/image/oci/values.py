"""What an OCI image is, in the words of its specification (v1.1).

Digests are ``sha256:`` and 64 hex digits. Only what agentd uses is here; other fields are ignored.
"""

import hashlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from agentd.image.model import Corrupt, ImageError
from agentd.model import typed

T = TypeVar("T")

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
#: How a layer may be packed -> whether umoci unpacks it as it is.
PACKED = {LAYER: True, f"{LAYER}+gzip": True, f"{LAYER}+zstd": False}
#: What names of files in a layer begin with that say what is gone.
WHITEOUT = ".wh."
REF_NAME = "org.opencontainers.image.ref.name"
MAX_JSON = 4 << 20
MAX_LAYERS = 500
_PATH_BYTES = 4096  # with the NUL at its end
_NAME_BYTES = 255
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob: ``size`` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class OciManifest(msgspec.Struct, frozen=True, rename="camel"):
    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    media_type: str = MANIFEST
    schema_version: int = 2


class OciIndex(msgspec.Struct, frozen=True, rename="camel"):
    """``index.json`` of a layout."""

    manifests: tuple[Descriptor, ...]
    schema_version: int = 2


class RunConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """How a container of the image runs: ``config`` of the image's configuration."""

    user: str = ""
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """Return what it runs where nobody says what."""
        return (*(self.entrypoint or ()), *(self.cmd or ()))

    def environment(self) -> dict[str, str]:
        """Return its variables, ``NAME=VALUE`` each; what has no name or no ``=`` is left out."""
        pairs = (each.partition("=") for each in self.env or ())
        return {name: value for name, equals, value in pairs if name and equals}


class RootFs(msgspec.Struct, frozen=True):
    diff_ids: tuple[str, ...] = ()
    type: str = "layers"


class OciConfig(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    created: str = ""
    config: RunConfig | None = None
    rootfs: RootFs = RootFs()

    @property
    def run(self) -> RunConfig:
        return self.config or RunConfig()

    @property
    def platform(self) -> str:
        return f"{self.os}/{self.architecture}"

    def remark(self) -> str:
        """Return what there is to say of its programs on this machine; empty for nothing."""
        own = f"linux/{architecture()}"
        if self.platform == own or not (self.os and self.architecture):
            return ""
        return f"it is {self.platform}, and this machine {own}, on which its programs may not run"


class OciImage(msgspec.Struct, frozen=True):
    """An image in the store. ``chain`` names its unpacked root; ``size`` is that of its blobs, in
    bytes; ``pulled`` is in seconds since 1970."""

    name: str
    digest: str
    source: str
    pulled: float
    size: int
    chain: str
    manifest: OciManifest
    config: OciConfig

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """List its blobs, without the manifest itself."""
        return (self.manifest.config, *self.manifest.layers)


def check_digest(digest: str) -> str:
    """Return its 64 hex digits. Raises Corrupt."""
    if not _DIGEST.fullmatch(digest):
        raise Corrupt(f"{digest[:100]!r} is no sha256 digest")
    return digest.removeprefix("sha256:")


def check_kept(path: str) -> None:
    """Check what a file is called that is to be in a layer. Raises ImageError."""
    if os.path.basename(path).startswith(WHITEOUT):
        raise ImageError(
            f"{path!r} cannot be in an image: layers mean by {WHITEOUT} what is gone",
            remediation="give it another name",
        )


def check_layers(count: int) -> None:
    """Check how many layers an image of ours gets. Raises ImageError."""
    if count > MAX_LAYERS:
        raise ImageError(
            f"the image would have {count} layers, over {MAX_LAYERS}",
            remediation="let one step do what several do, or begin anew: FROM scratch, and "
            "COPY --from=IMAGE / /",
        )


def check_told(data: bytes) -> None:
    """Check what an image of ours says of itself. Raises ImageError."""
    if len(data) > MAX_JSON:
        raise ImageError(
            f"what the image says of itself is longer than {MAX_JSON} bytes",
            remediation="let it have less in ENV, LABEL, EXPOSE and VOLUME, or fewer steps",
        )


def architecture() -> str:
    """Return this machine's, as OCI calls it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chain_id(diff_ids: Iterable[str]) -> str:
    """Return all layers' id: sha256 of the chain before and the layer (image-spec, config.md)."""
    return chain_ids(diff_ids)[-1]


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the id of no layer, of the first, of the first two, and so on."""
    chains = [digest_of(b"")]
    for diff_id in diff_ids:
        whole = digest_of(f"{chains[-1]} {diff_id}".encode()) if len(chains) > 1 else diff_id
        chains.append(whole)
    return chains


def manifest_of(data: bytes) -> OciManifest:
    """Decode it. Raises Corrupt for what is none, or has more or other layers than are taken."""
    manifest = decode(data, OciManifest, "manifest")
    if len(manifest.layers) > MAX_LAYERS:
        raise Corrupt(f"the image has {len(manifest.layers)} layers, over {MAX_LAYERS}")
    for blob in (manifest.config, *manifest.layers):
        check_digest(blob.digest)
    for layer in manifest.layers:
        if layer.media_type not in PACKED:
            raise Corrupt(
                f"a layer is {layer.media_type!r}, which is not taken",
                remediation="use an image whose layers are tar archives, as they are, gzip or zstd",
            )
    return manifest


def config_of(data: bytes, manifest: OciManifest) -> OciConfig:
    """Decode it. Raises Corrupt where it tells of other layers than the manifest."""
    config = decode(data, OciConfig, "configuration")
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise Corrupt("the image's configuration and its manifest tell of different layers")
    for diff_id in config.rootfs.diff_ids:
        check_digest(diff_id)
    _check_run(config.run)
    return config


def _check_run(run: RunConfig) -> None:
    """Raises Corrupt for what no command could be given."""
    words = (*(run.env or ()), *run.command, run.user, run.working_dir)
    if any("\0" in word for word in words):
        raise Corrupt("the image's configuration has a NUL byte in Env, Cmd, User or WorkingDir")
    path = os.fsencode(run.working_dir)
    if len(path) >= _PATH_BYTES or any(len(part) > _NAME_BYTES for part in path.split(b"/")):
        raise Corrupt(f"the image's WorkingDir {run.working_dir[:100]!r}... is longer than a path")


def decode(data: bytes, kind: type[T], what: str) -> T:
    """Decode JSON. Raises Corrupt."""
    try:
        return typed.decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Corrupt(f"the image's {what} is unreadable", cause=str(error)) from error


def encode(value: msgspec.Struct | Mapping[str, object]) -> bytes:
    return msgspec.json.encode(value)
