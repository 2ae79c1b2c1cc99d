"""The COCO download against a server on loopback: Range, an interrupted transfer, no Range, wrong content."""

import hashlib
import http.server
import io
import threading
import zipfile
from dataclasses import replace

import pytest

from data import download_coco
from data.download_coco import Archive, download, fetch
from utils.errors import UserError


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("val2017/a.jpg", bytes(range(256)) * 2000)
        file.writestr("val2017/b.jpg", b"b")
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``; the first ``breaks`` answers stop half-way through what was asked for."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks, self.ranges, self.status = content, 0, True, 200
        self.requests: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        body = server.content[start:]
        self.send_response(206 if wanted and server.ranges else 200)
        if wanted and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks > 0:
            server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


@pytest.fixture
def server():
    with Server(zip_bytes()) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def archive(server):
    url = f"http://127.0.0.1:{server.server_port}/val2017.zip"
    digest = hashlib.md5(server.content).hexdigest()
    return Archive(url, len(server.content), digest, "val2017", "images/val2017")


def test_fetch_unpacks_and_does_nothing_the_second_time(server, archive, tmp_path):
    fetch([archive], tmp_path, pause=0)
    assert (tmp_path / "images/val2017/a.jpg").read_bytes() == bytes(range(256)) * 2000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    fetch([archive], tmp_path, pause=0)
    assert server.requests == [None]


def test_a_broken_transfer_goes_on_where_it_stopped(server, archive, tmp_path):
    server.breaks = 2
    download(archive, tmp_path / "z.zip", pause=0)
    assert (tmp_path / "z.zip").read_bytes() == server.content
    half = len(server.content) // 2
    rest = len(server.content) - half
    assert server.requests == [None, f"bytes={half}-", f"bytes={half + rest // 2}-"]


def test_a_part_from_an_earlier_run_is_continued(server, archive, tmp_path):
    (tmp_path / "z.zip.part").write_bytes(server.content[:1000])
    download(archive, tmp_path / "z.zip", pause=0)
    assert server.requests == ["bytes=1000-"] and (tmp_path / "z.zip").read_bytes() == server.content


def test_a_server_without_range_starts_over(server, archive, tmp_path):
    server.ranges = False
    (tmp_path / "z.zip.part").write_bytes(b"x" * 1000)
    download(archive, tmp_path / "z.zip", pause=0)
    assert (tmp_path / "z.zip").read_bytes() == server.content


def test_a_wrong_checksum_is_refused_and_the_next_run_can_succeed(server, archive, tmp_path):
    (tmp_path / "z.zip.part").write_bytes(b"x" * 1000)  # of another file
    with pytest.raises(UserError, match=r"is not http.*MD5"):
        download(archive, tmp_path / "z.zip", pause=0)
    assert not list(tmp_path.iterdir())
    download(archive, tmp_path / "z.zip", pause=0)
    assert (tmp_path / "z.zip").read_bytes() == server.content


def test_a_file_of_that_name_with_other_content_is_kept(archive, tmp_path):
    (tmp_path / "z.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match="remove it"):
        download(archive, tmp_path / "z.zip", pause=0)
    assert (tmp_path / "z.zip").read_bytes() == b"mine"


def test_giving_up_keeps_what_arrived(server, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(download_coco, "ATTEMPTS", 2)
    (tmp_path / "z.zip.part").write_bytes(server.content[:1000])
    server.status = 503
    with pytest.raises(UserError, match="run the command again to go on"):
        download(archive, tmp_path / "z.zip", pause=0)
    assert len(server.requests) == 2 and (tmp_path / "z.zip.part").stat().st_size == 1000
    server.status = 404
    with pytest.raises(UserError, match="the server answers 404"):
        download(archive, tmp_path / "z.zip", pause=0)


def test_no_server_and_no_space(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(download_coco, "ATTEMPTS", 2)
    with pytest.raises(UserError, match="run the command again"):
        download(replace(archive, url="http://127.0.0.1:9/val2017.zip"), tmp_path / "z.zip", pause=0)
    with pytest.raises(UserError, match="the host is not known"):
        download(replace(archive, url="http://no-such-host.invalid/val2017.zip"), tmp_path / "z.zip")
    with pytest.raises(UserError, match="GB are free"):
        fetch([replace(archive, size=10**18)], tmp_path, pause=0)


def test_members_that_would_leave_the_folder_are_refused(archive, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        file.writestr("../evil", "x")
    with pytest.raises(UserError, match="would leave the folder"):
        download_coco.unpack(archive, tmp_path / "z.zip", tmp_path / "root")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "root" / "images").exists()
    (tmp_path / "z.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a zip file"):
        download_coco.unpack(archive, tmp_path / "z.zip", tmp_path / "root")


def test_the_official_archives():
    archives = [download_coco.ANNOTATIONS, *download_coco.IMAGES.values()]
    assert all(
        archive.url.startswith("http://images.cocodataset.org/") and len(archive.md5) == 32 for archive in archives
    )
    # http://images.cocodataset.org lists these sizes: 241 MB, 778 MB and 18 GB.
    assert [round(archive.size / 2**20) for archive in archives] == [241, 778, 18441]
