"""Which of the host's configuration commands may read, where a wall shows the host's programs."""

import msgspec

#: Beneath these it lies.
ROOTS = ("/etc/", "/var/lib/")


class HostConfiguration(msgspec.Struct, frozen=True):
    """``which`` is "packages", what the host's packages put there and every program needs, or
    "minimal", what the languages and the loader need. ``show`` adds paths, ``hide`` takes away."""

    which: str = "packages"
    show: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """For the report, behind a number of directories."""
        text = {"packages": "that packages put there", "minimal": "that languages need"}[self.which]
        more = {"shown besides": self.show, "hidden": self.hide}
        return ", ".join([text, *(f"{len(some)} {how}" for how, some in more.items() if some)])

    def hides(self, path: str) -> bool:
        return any(path == hidden or path.startswith(hidden + "/") for hidden in self.hide)

    def hides_in(self, path: str) -> bool:
        """Whether something below ``path`` is hidden."""
        return any(hidden.startswith(path + "/") for hidden in self.hide)


#: Of whoever says nothing else.
USUAL = HostConfiguration()
