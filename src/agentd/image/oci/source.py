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
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?")
_UNFIT = re.compile(r"[^a-z0-9._/:-]+")
HUB = "docker.io"


class ImageSource(NamedTuple):
    """``place`` is a reference for ``docker``, else an absolute path; ``tag`` one of a layout or
    an archive, empty for the only one."""

    transport: str
    place: str
    tag: str = ""

    @property
    def text(self) -> str:
        if self.transport == "docker":
            return f"docker://{self.place}"
        return f"{self.transport}:{self.place}" + (f":{self.tag}" if self.tag else "")

    @property
    def registry(self) -> str:
        """Return it; ``docker.io`` where the reference names none."""
        first, slash, _ = self.place.partition("/")
        named = slash and ("." in first or ":" in first or first == "localhost")
        return first if named else HUB

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
        if not _REFERENCE.fullmatch(place):
            raise InvalidInput(
                f"{text!r} is no reference of a registry",
                remediation="write docker://NAME:TAG or docker://HOST/NAME@sha256:DIGEST",
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
    if name == DEFAULT_IMAGE:
        raise InvalidInput(
            f"{name!r} means no image at all", remediation=f"{fix}any other name will do"
        )
    return name


def _divided(place: str) -> tuple[str, str]:
    """A path and its tag: what follows the last colon, unless a file of the whole name is there."""
    path, colon, tag = place.rpartition(":")
    if not colon or os.path.lexists(place) or "/" in tag:
        return place, ""
    return path, tag


def _unknown(text: str) -> InvalidInput:
    return InvalidInput(
        f"{text!r} does not say where the image is", remediation=f"use one of: {', '.join(FORMS)}"
    )
