"""Data sets fetched from local servers: mirrors that fail, damaged and foreign files, own folders, checksums."""

import hashlib
import os
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ppgen.data import fetch
from ppgen.data.fetch import PublishedFile, cache_dir, folders, obtain

CONTENT = b"the published bytes " * 1000
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        body = b"<html>moved</html>" if self.path.startswith("/changed") else CONTENT
        self.send_response(200)
        announced = 2**40 if self.path.startswith("/huge") else len(body)
        if not self.path.startswith("/unannounced"):
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path.startswith("/truncated") else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """Neither a cache nor a data folder nor a proxy of the machine that runs the tests."""
    monkeypatch.delenv("PPGEN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def published(*mirrors: str, **options) -> PublishedFile:
    options = {"checksum": CHECKSUM, **options}
    return PublishedFile("faces.bin", tuple(mirrors) or ("http://nowhere.invalid/faces.bin",), **options)


def left_behind(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", ["whole", "unannounced"])
def test_download_is_stored_and_then_read_from_disk(server, tmp_path, way):
    file = published(f"{server.url}/{way}")
    assert obtain("faces", [file], tmp_path / "data") == [CONTENT]
    assert left_behind(tmp_path) == ["data/faces/faces.bin"]
    assert (tmp_path / "data/faces/faces.bin").read_bytes() == CONTENT
    assert obtain("faces", [file], tmp_path / "data") == [CONTENT]
    assert server.asked == [f"/{way}"]


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("missing", "404"),
        ("changed", "checksum"),
        ("truncated", f"{len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("huge", str(2**40)),
    ],
)
def test_failing_mirror_leaves_nothing_and_the_next_one_is_tried(server, tmp_path, way, reason):
    bad, good = f"{server.url}/{way}", f"{server.url}/whole"
    with pytest.raises(FileNotFoundError) as error:
        obtain("faces", [published(bad)], tmp_path / "data")
    assert bad in str(error.value) and reason in str(error.value)
    assert left_behind(tmp_path) == []

    assert obtain("faces", [published(bad, good)], tmp_path / "data") == [CONTENT]
    assert server.asked == [f"/{way}", f"/{way}", "/whole"]
    assert left_behind(tmp_path) == ["data/faces/faces.bin"]


def test_silent_mirror_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = published(f"http://127.0.0.1:{silent.getsockname()[1]}/", f"{server.url}/whole")
        assert obtain("faces", [file], tmp_path) == [CONTENT]


@pytest.mark.parametrize("way", ["replace", "fsync", "mkdir"])
def test_what_cannot_be_stored_is_given_back_and_leaves_nothing(server, tmp_path, monkeypatch, capsys, way):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, "mkdir") if way == "mkdir" else (os, way)), full)
    file = published(f"{server.url}/whole", f"{server.url}/whole/mirror")
    assert obtain("faces", [file], tmp_path / "data") == [CONTENT]
    assert left_behind(tmp_path) == []
    said = capsys.readouterr().err
    facts = ["faces.bin could not be stored", str(tmp_path / "data/faces"), "No space left", "again", "data_dir"]
    assert [fact for fact in facts if fact not in said] == []
    assert server.asked == ["/whole"]  # the mirror is not to blame

    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert obtain("faces", [file], tmp_path / "data") == [CONTENT]
    assert left_behind(tmp_path) == ["data/faces/faces.bin"] and server.asked == ["/whole", "/whole"]


def test_absent_files_error_says_where_and_how(monkeypatch, tmp_path):
    monkeypatch.setenv("PPGEN_DATA", str(tmp_path / "shared"))
    with socket.create_server(("127.0.0.1", 0)) as closing:
        url = f"http://127.0.0.1:{closing.getsockname()[1]}/faces.bin"
    files = [published(url), PublishedFile("labels.bin", (url,), CHECKSUM)]
    with pytest.raises(FileNotFoundError) as error:
        obtain("faces", files, tmp_path / "mine")
    facts = ["faces.bin", "labels.bin", "PPGEN_DATA", "data_dir", url, "refused"]
    facts += [str(tmp_path / place / "faces") for place in ("mine", "shared", "cache/ppgen")]
    assert [fact for fact in facts if fact not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_no_download_asks_nobody(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="download=False"):
        obtain("faces", [published(f"{server.url}/whole")], tmp_path, download=False)
    assert server.asked == []


@pytest.mark.parametrize("place", ["mine/faces", "mine", "shared/faces", "shared", "cache/ppgen/faces"])
def test_places_where_files_are_found(monkeypatch, tmp_path, place):
    monkeypatch.setenv("PPGEN_DATA", str(tmp_path / "shared"))
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "faces.bin").write_bytes(CONTENT)
    assert obtain("faces", [published()], tmp_path / "mine", download=False) == [CONTENT]


def test_content_packed_anew_or_named_otherwise_is_accepted(tmp_path):
    (tmp_path / "other.bin").write_bytes(CONTENT[::-1])
    file = published(content=lambda data: data[::-1], also=("other.bin",))
    assert obtain("faces", [file], tmp_path, download=False) == [CONTENT]


def test_damaged_file_in_own_folder_is_an_error_and_is_kept(server, tmp_path):
    path = tmp_path / "faces" / "faces.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="not the published file") as error:
        obtain("faces", [published(f"{server.url}/whole")], tmp_path)
    assert str(path) in str(error.value) and "Remove it" in str(error.value)
    assert path.read_bytes() == CONTENT[:-1]
    assert server.asked == []


def test_file_of_another_data_set_is_passed_over(server, tmp_path):
    (tmp_path / "faces.bin").write_bytes(b"another data set's")
    with pytest.raises(FileNotFoundError) as error:
        obtain("faces", [published()], tmp_path, download=False)
    assert str(tmp_path / "faces.bin") in str(error.value)
    assert obtain("faces", [published(f"{server.url}/whole")], tmp_path) == [CONTENT]
    assert left_behind(tmp_path) == ["faces.bin", "faces/faces.bin"]


def test_folder_that_cannot_be_written_to_is_no_target(server, tmp_path, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "data" and allowed(path, mode))
    (tmp_path / "data").mkdir()
    assert obtain("faces", [published(f"{server.url}/whole")], tmp_path / "data") == [CONTENT]
    assert left_behind(tmp_path) == ["cache/ppgen/faces/faces.bin"]


def test_git_checksum_is_that_of_git():
    # `printf 'hello' | git hash-object --stdin`
    file = published(checksum="git:b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0")
    assert file.verified(b"hello") == b"hello"
    with pytest.raises(ValueError, match="git checksum"):
        file.verified(b"hello\n")


def test_folders_are_folders_and_each_is_searched_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PPGEN_DATA", str(tmp_path))
    assert folders(tmp_path) == [tmp_path, cache_dir()]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        folders(tmp_path / "file")
