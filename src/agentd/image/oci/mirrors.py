"""Mirrors of a registry, as containers-registries.conf(5) has them."""

from collections.abc import Iterator, Mapping
from typing import Any

from agentd.image.oci.source import HUB, ImageSource

#: The file in the cell; beside it is the folder MIRRORS.d.
MIRRORS = "/etc/containers/registries.conf"


def locations(source: ImageSource, files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what is asked in place of a source's registry, mirrors among it: each HOST[:PORT], and
    where it has one a path. ``files`` are those of the cell."""
    for path in files:
        if path == MIRRORS or path.startswith(f"{MIRRORS}.d/"):
            for entry in _entries(files[path]):
                if _is_of(entry, source):
                    for each in (entry, *_tables(entry, "mirror")):
                        if location := _text(each, "location"):
                            yield location


def _is_of(entry: Mapping[str, Any], source: ImageSource) -> bool:
    """Whether an entry of registries.conf is of an image: ``*.name``, or what it begins with."""
    prefix = _text(entry, "prefix") or _text(entry, "location")
    if prefix.startswith("*."):
        return source.registry.partition(":")[0].endswith(prefix[1:])
    whole = source.place
    if not whole.startswith(f"{source.registry}/"):
        whole = f"{HUB}/{whole if '/' in whole else f'library/{whole}'}"
    return bool(prefix) and whole.startswith(prefix) and whole[len(prefix) :][:1] in ("", *"/:@")


def _entries(data: bytes) -> list[Mapping[str, Any]]:
    import tomllib

    try:
        return _tables(tomllib.loads(data.decode()), "registry")
    except ValueError:  # skopeo says so
        return []


def _tables(table: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = table.get(name)
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def _text(table: Mapping[str, Any], name: str) -> str:
    found = table.get(name)
    return found if isinstance(found, str) else ""
