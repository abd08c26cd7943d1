"""Where an image comes from: ``TRANSPORT:PLACE``, and the name that it gets when none is given."""

import os
import re
from typing import NamedTuple

from agentd.model.errors import InvalidInput
from agentd.model.spec import DEFAULT_IMAGE, IMAGE_NAME

FORMS = (
    "docker://python:3.13-slim",
    "oci:./layout:tag",
    "oci-archive:./image.tar",
    "docker-archive:./image.tar",
    "dir:./rootfs",
)
# As registries have them: what is before the first slash is a host where it has a dot or a colon.
_REFERENCE = re.compile(
    r"(?:(?=localhost/|[^/]*[.:])[A-Za-z0-9][A-Za-z0-9.-]*(?::(?P<port>[0-9]+))?/)?"
    r"[a-z0-9]+(?:(?:[./]|__?|-+)[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@sha256:[0-9a-f]{64})?"
)
_TAG_OF_DIGEST = re.compile(r":[^/:@]+(?=@)")
_UNFIT = re.compile(r"[^a-z0-9._/:-]+")
_LATEST = ":latest"
HUB = "docker.io"


class ImageSource(NamedTuple):
    """``place`` is a reference for ``docker``, else an absolute path; ``tag`` one of a layout or
    an archive, empty for the only one."""

    transport: str
    place: str
    tag: str = ""

    @property
    def text(self) -> str:
        """Return it as skopeo takes it: without a tag where there is a digest, which decides."""
        if self.transport == "docker":
            return f"docker://{_TAG_OF_DIGEST.sub('', self.place)}"
        return f"{self.transport}:{self.place}" + (f":{self.tag}" if self.tag else "")

    @property
    def registry(self) -> str:
        """Return it; ``docker.io`` where the reference names none."""
        first, slash, _ = self.place.partition("/")
        named = slash and ("." in first or ":" in first or first == "localhost")
        return first if named else HUB

    @property
    def repository(self) -> str:
        """Return it with its registry, without tag and digest: docker.io/library/python."""
        above, slash, last = self.place.partition("@")[0].rpartition("/")
        name = (above + slash + last.partition(":")[0]).removeprefix(f"{HUB}/")
        if self.registry != HUB:
            return name
        return f"{HUB}/{name}" if "/" in name else f"{HUB}/library/{name}"

    def name(self) -> str:
        """Return what it is called where nobody says otherwise. Raises InvalidInput."""
        if self.transport == "docker":
            name = self.place.partition("@")[0]
        else:
            stem = os.path.basename(self.place)
            stem = stem.removesuffix(".tar") if self.transport.endswith("-archive") else stem
            name = _UNFIT.sub("-", stem.lower()).strip("-._")
            name += f":{self.tag}" if self.tag else ""
        return check_name(name, "give one with --name: ")


def parse(text: str) -> ImageSource:
    """Parse a source. Raises InvalidInput, with the forms that there are."""
    transport, colon, place = text.partition(":")
    if not colon or not place:
        raise _unknown(text)
    if transport == "docker":
        place = place.removeprefix("//")
        found = _REFERENCE.fullmatch(place)
        if found is None:
            raise InvalidInput(
                f"{text!r} is no reference of a registry",
                remediation="write docker://NAME:TAG or docker://HOST/NAME@sha256:DIGEST, "
                "with NAME in lower case",
            )
        port = found["port"]
        if port is not None and (len(port) > 5 or not 0 < int(port) < 1 << 16):
            raise InvalidInput(
                f"{text!r} has the port {port!r}", remediation="give a number from 1 to 65535"
            )
        return ImageSource("docker", place)
    if transport == "dir":
        return ImageSource("dir", os.path.abspath(place))
    if transport in ("oci", "oci-archive", "docker-archive"):
        path, tag = _divided(place)
        return ImageSource(transport, os.path.abspath(path), tag)
    raise _unknown(text)


def check_name(name: str, fix: str = "") -> str:
    """Check it; ``fix`` is what to do about one that nobody gave. Raises InvalidInput."""
    if not IMAGE_NAME.fullmatch(name) or ".." in name or "//" in name:
        raise InvalidInput(
            f"{name[:200]!r} is no name for an image",
            remediation=f"{fix}begin with a lower case letter or a digit, go on "
            "with letters, digits, '.', '_', '-', '/' and ':', 128 at most",
        )
    if name.startswith("sha256:"):
        raise InvalidInput(
            f"{name!r} is a digest, which means the image that has it",
            remediation=f"{fix}any other name will do",
        )
    if name == DEFAULT_IMAGE:
        raise InvalidInput(
            f"{name!r} means no image at all", remediation=f"{fix}any other name will do"
        )
    return name


def alike(name: str) -> tuple[str, ...]:
    """Return the name and what else is the same: with the tag ``latest`` where it has none, and
    without that."""
    bare = name.removesuffix(_LATEST)
    if ":" in bare.rpartition("/")[2] or not bare:
        return (name,)
    return (name, bare if name != bare else f"{name}{_LATEST}")


def _divided(place: str) -> tuple[str, str]:
    """A path and its tag: what is behind the longest path that is there, as /x.tar of
    /x.tar:me/tool:1; else what follows the last colon. A folder that is there is no tag's."""
    above = os.path.dirname(place)
    least = len(above) if os.path.isdir(above) else 0
    path, tag = place, ""
    while not os.path.lexists(path):
        path, colon, _ = path.rpartition(":")
        if len(path) <= least:
            path, colon, tag = place.rpartition(":")
            return (path, tag) if colon and "/" not in tag else (place, "")
        tag = place[len(path) + 1 :]
    return path, tag


def _unknown(text: str) -> InvalidInput:
    forms = (f"docker://{text}", *FORMS[1:]) if _REFERENCE.fullmatch(text) else FORMS
    return InvalidInput(
        f"{text!r} does not say where the image is", remediation=f"use one of: {', '.join(forms)}"
    )
