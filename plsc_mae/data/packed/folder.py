"""Folder tree of archive members; the listing applies the rules for folders on disk to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


class MemberTree:
    """Members of several archives by folder. Members of equal names in different archives are all kept.

    Args:
        archives: path of each archive, relative to the root of the list.
        members: names of the members of each archive.
    """

    def __init__(self, archives: Sequence[str], members: Iterable[Iterable[str]]) -> None:
        self._archives = archives
        self._names: dict[str, dict[int, list[str]]] = {"": {}}  # by folder and archive
        self._folders: dict[str, set[str]] = {"": set()}
        for number, names in enumerate(members):
            for name in names:
                folder, _, base = name.rpartition("/")
                self._names.setdefault(folder, {}).setdefault(number, []).append(base)
        for folder in list(self._names):
            self._add_to_parents(folder)

    def _add_to_parents(self, folder: str) -> None:
        while folder:
            parent, _, base = folder.rpartition("/")
            self._folders.setdefault(parent, set()).add(base)
            folder = parent

    def has_folder(self, folder: str) -> bool:
        """Return whether a folder exists in one of the archives."""
        return folder in self._names or folder in self._folders

    def folders_in(self, folder: str) -> set[str]:
        """Return the names of the folders in a folder."""
        return self._folders.get(folder, set())

    def files_in(self, folder: str) -> set[str]:
        """Return the names of the files in a folder."""
        return {name for names in self._names.get(folder, {}).values() for name in names}

    def paths_in(self, folder: str, names: Iterable[str]) -> Iterator[str]:
        """Yield the paths "archive/folder/name" of those of `names` that a folder has, by name, then by archive."""
        wanted = set(names)
        found = [
            (name, number)
            for number, present in self._names.get(folder, {}).items()
            for name in present
            if name in wanted
        ]
        prefix = f"{folder}/" if folder else ""
        for name, number in sorted(found):
            yield f"{self._archives[number]}/{prefix}{name}"


class PackedFolder:
    """Folder of a `MemberTree`, with the part of the interface of `pathlib.Path` that the listing uses."""

    def __init__(self, tree: MemberTree, source: str, inner: str = "") -> None:
        self.tree, self.source, self.inner = tree, source, inner

    def __truediv__(self, name: str) -> PackedFolder:
        return PackedFolder(self.tree, self.source, f"{self.inner}/{name}" if self.inner else name)

    def __str__(self) -> str:
        return f"{self.source}/{self.inner}" if self.inner else self.source

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.inner.rpartition("/")[2]

    def absolute(self) -> PackedFolder:
        """Return the folder itself."""
        return self

    def is_dir(self) -> bool:
        """Return whether the folder exists."""
        return self.tree.has_folder(self.inner)

    def paths(self, names: Iterable[str]) -> list[str]:
        """Return the paths of files of this folder, see `MemberTree.paths_in`."""
        return list(self.tree.paths_in(self.inner, names))
