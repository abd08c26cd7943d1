"""What a stage's root shows: an unpacked root, and layers on top of it that are not unpacked yet.

So a COPY after a COPY needs no root of its own. Links are followed within what is shown.
"""

import os
import stat
import tarfile
from collections.abc import Sequence

from agentd.image.oci.building.source import Unusable
from agentd.linux import inside
from agentd.linux.inside import Node

_OPAQUE = ".wh..wh..opq"
_WHITEOUT = ".wh."


class LayerIndex:
    """What is in a layer, read of its archive: one that we wrote."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.nodes: dict[str, Node] = {}
        self.gone: set[str] = set()
        self.opaque: set[str] = set()
        self.data: dict[str, tuple[int, int]] = {}
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                self._take(member)

    def _take(self, member: tarfile.TarInfo) -> None:
        path = member.name.strip("/")
        above, _, name = path.rpartition("/")
        if name == _OPAQUE:
            self.opaque.add(above)
        elif name.startswith(_WHITEOUT):
            self.gone.add(f"{above}/{name[len(_WHITEOUT) :]}".strip("/"))
        elif member.isdir():
            self.nodes[path] = Node(stat.S_IFDIR)
        elif member.issym():
            self.nodes[path] = Node(stat.S_IFLNK, member.linkname)
        else:
            self.nodes[path] = Node(stat.S_IFREG)
            linked = self.data.get(member.linkname, (0, 0)) if member.islnk() else None
            self.data[path] = linked or (member.offset_data, member.size)

    def hides(self, path: str) -> bool:
        """Return whether what is below this layer at ``path`` cannot be seen."""
        if path in self.gone:
            return True
        for above in _above(path):
            node = self.nodes.get(above)
            if above in self.gone or above in self.opaque:
                return True
            if node is not None and node.kind != stat.S_IFDIR:
                return True
        return False


class RootView:
    """``root`` is a path of an unpacked root, None for nothing; of ``layers`` the last is on top.
    Paths have no slash at their begin."""

    def __init__(self, root: str | None, layers: Sequence[LayerIndex]) -> None:
        self._layers = tuple(layers)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._root = -1 if root is None else os.open(root, flags)

    def close(self) -> None:
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def node(self, path: str) -> Node | None:
        """Return what is right there, no link followed; None for nothing."""
        if not path:
            return Node(stat.S_IFDIR)
        for layer in reversed(self._layers):
            if path in layer.nodes:
                return layer.nodes[path]
            if layer.hides(path):
                return None
        return None if self._root < 0 else inside.node_at(self._root, path)

    def is_folder(self, path: str) -> bool:
        node = self.node(path)
        return node is not None and node.kind == stat.S_IFDIR

    def resolve(self, path: str) -> str:
        """Return the path behind all links, the last part's too; what is not there is what it is
        called. Raises Unusable for a circle."""
        try:
            return inside.behind_links(path, self.node)
        except inside.LinkCircle:
            raise Unusable(f"/{path} leads in a circle") from None

    def read(self, path: str) -> str:
        """Read a small plain file; empty where there is none."""
        path = self.resolve(path)
        for layer in reversed(self._layers):
            if path in layer.data:
                offset, size = layer.data[path]
                with open(layer.path, "rb") as file:
                    file.seek(offset)
                    return file.read(min(size, inside.MAX_SMALL)).decode("utf-8", "replace")
            if path in layer.nodes or layer.hides(path):
                return ""
        return "" if self._root < 0 else inside.read_small(self._root, path)


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
