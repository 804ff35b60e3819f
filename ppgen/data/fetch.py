"""Published files: looked up here, downloaded when absent, verified by their checksums whenever read."""

import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppgen.files import write_bytes

TIMEOUT = 30.0  # seconds without a byte before the next mirror is tried
MAX_BYTES = 2**29  # 512 MiB: no published file, and nothing that one unpacks to, is larger


def unchanged(data: bytes) -> bytes:
    """The bytes of a file as they are."""
    return data


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors publish it.

    Args:
        name: its published name, under which it is looked for and stored.
        mirrors: addresses to download it from, in the order in which they are tried.
        checksum: `"sha256:<hex>"`, or `"git:<hex>"` for the name that git gives to the content; it is about
            what `content` returns, so that a file packed anew, with the same content, is accepted.
        content: turns the file's bytes into what a reader reads; a ValueError if they are of the wrong
            format.
        also: further names under which the same content is looked for.
    """

    name: str
    mirrors: tuple[str, ...]
    checksum: str
    content: Callable[[bytes], bytes] = unchanged
    also: tuple[str, ...] = ()

    def verified(self, data: bytes) -> bytes:
        """The content of `data`, or a ValueError with the reason why this is not the published file."""
        content = self.content(data)
        algorithm, _, expected = self.checksum.partition(":")
        if algorithm == "git":
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            found = hashlib.new(algorithm, content).hexdigest()
        if found != expected:
            raise ValueError(f"its {algorithm} checksum is {found}, the published one is {expected}")
        return content


def cache_dir() -> Path:
    """The per-user folder where downloads go if no other folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ppgen"


def folders(data_dir: str | Path | None) -> list[Path]:
    """The folders in which data are looked for, in order: `data_dir`, `$PPGEN_DATA`, the cache."""
    named = [data_dir, os.environ.get("PPGEN_DATA")]
    found = [Path(folder).expanduser() for folder in named if folder]
    for folder in found:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"data_dir and PPGEN_DATA name folders, but {folder} is a file.")
    return list(dict.fromkeys([*found, cache_dir()]))


def obtain(
    name: str, files: Sequence[PublishedFile], data_dir: str | Path | None = None, download: bool = True
) -> list[bytes]:
    """The verified content of every file of the data set `name`.

    Each is looked for as `<folder>/<name>/<file>`, then as `<folder>/<file>`, in each of `folders(data_dir)`,
    and downloaded into the first of these folders that can be written to if it is in none; where it cannot be
    stored, it is given back all the same.

    Raises:
        ValueError: a file in the data set's own folder is not the published one.
        FileNotFoundError: a file is nowhere and cannot be downloaded.
    """
    searched = folders(data_dir)
    contents = []
    for file in files:
        failures: list[str] = []
        content = _look_up(name, file, searched, failures)
        if content is None and download:
            content = _download(name, file, searched, failures)
        if content is None:
            places = [str(folder / name) for folder in searched]
            raise FileNotFoundError(
                f"The data set {name!r} needs {', '.join(each.name for each in files)}; "
                f"{file.name} is in none of {', '.join(places)} and the folders above them; "
                f"{'' if download else 'with download=False nothing was downloaded; '}"
                f"{''.join(f'tried {failure}; ' for failure in failures)}"
                "put the files there, or name the folder that has them by data_dir or by the environment "
                "variable PPGEN_DATA."
            )
        contents.append(content)
    return contents


def _look_up(name: str, file: PublishedFile, searched: list[Path], failures: list[str]) -> bytes | None:
    """The content of a file that is here; what was found and is not the published file goes to `failures`."""
    places = [place for folder in searched for place in (folder / name, folder)]
    for path in (place / each for place in places for each in (file.name, *file.also)):
        if not path.is_file():
            continue
        try:
            return file.verified(path.read_bytes())
        except ValueError as error:
            # Data sets share names of files, and only the folder of its own is sure to mean this data set.
            if path.parent.name == name:
                raise ValueError(
                    f"{path} is not the published file of the data set {name!r}: {error}. Remove it, and it "
                    f"is downloaded anew, or replace it by the original from {file.mirrors[0]}."
                ) from error
            failures.append(f"{path} ({error})")
    return None


def _download(name: str, file: PublishedFile, searched: list[Path], failures: list[str]) -> bytes | None:
    """The content of a file from the first mirror that has it; why the others do not goes to `failures`."""
    target = next((folder for folder in searched if _writable(folder / name)), searched[-1]) / name
    for url in file.mirrors:
        print(f"ppgen: downloading {url} to {target}", file=sys.stderr)
        try:
            data = _downloaded(url)
            content = file.verified(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{url} ({error})")
            continue
        try:
            target.mkdir(parents=True, exist_ok=True)
            write_bytes(target / file.name, data)
        except OSError as error:  # no fault of the mirror's
            print(
                f"ppgen: {file.name} could not be stored in {target} ({error}), so it will be downloaded again next "
                "time: name a folder with room that can be written to by data_dir or by PPGEN_DATA",
                file=sys.stderr,
            )
        return content
    return None


def _writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or `folder` itself where its nearest existing parent is."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _downloaded(url: str) -> bytes:
    """The bytes at `url`, if they are all there."""
    request = urllib.request.Request(url, headers={"User-Agent": "ppgen"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        expected = response.headers.get("Content-Length")
        if expected is not None and int(expected) > MAX_BYTES:
            raise ValueError(f"it announces {expected} bytes, which is more than any published file has")
        data = response.read(MAX_BYTES)
    if expected is not None and len(data) != int(expected):
        raise ValueError(f"only {len(data)} of {expected} bytes arrived")
    return data
