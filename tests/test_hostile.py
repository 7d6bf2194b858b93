"""Files that an attacker or a broken disk could send: each reader ends in its documented error or in a valid value.

The fuzzers change a valid file at random, within a bounded time: `S2FPN_FUZZ=N` makes N times as many examples, of
other random numbers in every run.
"""

import contextlib
import io
import json
import os
import pickle
import socket
import struct
import threading
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from s2fpn_lib.checkpoint import (
    CheckpointError,
    find_weights,
    initialize,
    load_model,
    load_state,
    read_metadata,
    recorded_network,
    save_state,
    save_weights,
)
from s2fpn_lib.data import DatasetError, check_dataset, get_protocol, open_dataset
from s2fpn_lib.data.camvid import CamVid
from s2fpn_lib.data.custom import CustomDataset, Description, read_description
from s2fpn_lib.data.download import unpack
from s2fpn_lib.data.images import ImageError, read_image, read_label
from s2fpn_lib.data.protocols import Protocol, register
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.model import S2FPN, build_model
from s2fpn_lib.report.comparison import load_samples
from s2fpn_lib.runs import read_json, read_rows
from s2fpn_lib.validate import as_text
from s2fpn_lib.viz.charts import class_shares_bars, per_class_bars
from s2fpn_lib.viz.images import image_grid
from s2fpn_lib.workbench.media import MediaError, video_frames, write_video
from s2fpn_lib.workbench.studies import Job, StudyError, read_study
from tests.reporting import evaluation

FUZZ = int(os.environ.get("S2FPN_FUZZ", "0"))
DESCRIPTION = "name: own\nclasses: [a, b]\nsize: [32, 32]\nsplits: {train: {images: images, labels: labels}}\n"
OWN = {
    "name": "own-32x32-0000",
    "dataset": "own",
    "size": [32, 32],
    "classes": ["a", "b", "c"],
    "palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]],
    "ignore_id": 255,
    "mean_published": [1.0, 1.0, 1.0],
    "source": "drawn",
}


def examples(count: int):
    """Hypothesis' settings: `count` examples, the same in every run unless S2FPN_FUZZ is set."""
    ignored = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    options = {"deadline": None, "database": None, "suppress_health_check": ignored}
    return settings(max_examples=max(1, FUZZ) * count, derandomize=not FUZZ, **options)


@st.composite
def damaged(draw, valid: bytes):
    """A file that is cut, flipped, overwritten, or longer in up to three places, or other bytes altogether."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("cut", "flip", "write", "insert", "remove")))
        if kind == "cut":
            del data[place:]
        elif kind == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            new = draw(
                st.one_of(st.binary(max_size=8), st.sampled_from((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7)))
            )
            data[place : place + len(new)] = new
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=20))
        else:
            del data[place : place + draw(st.integers(1, 40))]
    return bytes(data) if draw(st.integers(0, 9)) else draw(st.binary(max_size=200))


def read_or_refused(reader, path: Path, error: type[Exception]):
    """What the reader gives, or None where it raises its documented error, which names the file."""
    try:
        return reader(path)
    except error as found:
        if path.name not in str(found):
            raise AssertionError(f"the error does not name the file: {found}") from found
        return None


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG file of some bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


class Malicious:
    """Its pickle writes a file when it is read as `pickle.load` reads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


# Images


@pytest.mark.parametrize(("kind", "place", "form"), [("BMP", 18, "<ii"), ("GIF", 6, "<HH"), ("PNG", 16, ">II")])
@pytest.mark.parametrize("reader", [read_image, read_label])
def test_an_image_that_claims_too_many_pixels(tmp_path, kind, place, form, reader):
    content = bytearray(png(8, 8) if kind == "PNG" else encoded(kind))
    side = 60_000 if kind == "GIF" else 100_000
    content[place : place + struct.calcsize(form)] = struct.pack(form, side, side)
    path = tmp_path / "large.png"
    path.write_bytes(png(side, side) if kind == "PNG" else content)
    with pytest.raises(ImageError, match=rf"large\.png: claims {side * side} pixels, more than .* cut it into tiles"):
        reader(path)


def test_one_limit_for_all_images(tmp_path, monkeypatch):
    """Pillow itself only warns up to twice the limit."""
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert read_image(tmp_path / "a.png").shape == (40, 50, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1999)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ImageError, match="claims 50 x 40, more than"):
        read_image(tmp_path / "a.png")


def test_an_aerial_image_is_below_the_limit():
    assert 10_000 * 8_000 <= Image.MAX_IMAGE_PIXELS < 100_000 * 1_000


@pytest.mark.parametrize("reader", [read_image, read_label])
def test_paths_that_are_no_files(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "empty.png").touch()
    for name, message in {
        "pipe": "is a pipe or device, not a file",
        "folder": "is a folder, not a file",
        "loop": "is a link to a missing file, or to itself",
        "gone": "is a link to a missing file, or to itself",
        "device": "is a pipe or device, not a file",
        "empty": "cannot be decoded",
        "missing": "file is missing",
        "x" * 300: "cannot be decoded",
        "a\0b": "file is missing",
    }.items():
        with pytest.raises(ImageError, match=message) as found:
            reader(tmp_path / f"{name}.png")
        assert f"{name}.png" in str(found.value)


def test_compressed_text_in_an_image_is_bounded(tmp_path):
    content = b"k\0\0" + zlib.compress(bytes(100_000_000))
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    (tmp_path / "text.png").write_bytes(png(8, 8, chunk))
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "text.png")


def test_no_program_is_run_for_an_image(tmp_path):
    """Pillow would start Ghostscript for PostScript, whatever the file's suffix."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ImageError, match="cannot identify"):
        read_image(tmp_path / "a.png")


@examples(60)
@given(st.sampled_from(("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")).flatmap(lambda k: damaged(encoded(k))))
def test_any_bytes_are_an_image_or_an_error(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for reader in (read_image, read_label):
        found = read_or_refused(reader, path, ImageError)
        assert found is None or found.dtype == np.uint8
    assert files_in(tmp_path) == {path}


# Descriptions and studies in YAML

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
LAUGHS += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DESCRIPTION + "source: !!python/object/apply:pathlib.Path.touch [MARKER]\n", "constructor for the tag"),
        (LAUGHS + DESCRIPTION, "aliases .* repeat values"),
        ("classes: &a [*a]\n" + DESCRIPTION.replace("classes: [a, b]\n", ""), "aliases .* without end"),
        (DESCRIPTION + "source: " + "[" * 2000 + "]" * 2000, "recursion"),
        (DESCRIPTION + f"source: '{'x' * 300_000}'\n", "more than 250000 bytes"),
        (DESCRIPTION + "name: other\n", "name occurs more than once, line 1"),
        (DESCRIPTION.replace("labels: labels", "labels: a, labels: b"), "labels occurs more than once"),
        (DESCRIPTION + "source: ä\n", "codec can't decode"),
        (DESCRIPTION.replace("[a, b]", '["a\\nb", c]'), "without control characters"),
        (DESCRIPTION.replace("[a, b]", '["a\\u202eb", c]'), "without control characters"),
        (DESCRIPTION.replace("[a, b]", f"[{'a' * 101}, c]"), "1 to 100 characters"),
        (DESCRIPTION.replace("[32, 32]", "[1000000000, 1000000000]"), "size is not in 1 to 100000000 pixels"),
        (DESCRIPTION.replace("[32, 32]", "[1" + ":59" * 3000 + ", 32]"), "digits"),
        (DESCRIPTION.replace("own", "o" * 200), "up to 150"),
    ],
)
def test_a_hostile_description(tmp_path, text, message):
    path, marker = tmp_path / "data.yaml", tmp_path / "marker"
    path.write_bytes(text.replace("MARKER", str(marker)).encode("latin-1" if "ä" in text else "utf-8"))
    with pytest.raises(DatasetError, match=message) as found:
        read_description(path)
    assert str(path) in str(found.value)
    assert len(str(found.value)) < 1000
    assert not marker.exists()


def test_a_description_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(DatasetError, match="not a regular file"):
        read_description(tmp_path / "pipe.yaml")


def test_anchors_and_markup_are_allowed(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(DESCRIPTION.replace("[a, b]", "['<script>alert(1)</script>', '$x$']") + "label_map: &m {0: $x$}\n")
    assert read_description(path).classes == ["<script>alert(1)</script>", "$x$"]


@examples(60)
@given(damaged((DESCRIPTION + "label_map: {0: a, 7: &x b}\nignore: 255\nsource: *x\n").encode()))
def test_any_bytes_are_a_description_or_an_error(tmp_path, content):
    path = tmp_path / "data.yaml"
    path.write_bytes(content)
    found = read_or_refused(read_description, path, DatasetError)
    assert found is None or isinstance(found, Description)
    assert files_in(tmp_path) == {path}


STUDY = "question: what\npreset: quick\ndatasets: [roadscenes]\nmodels: [s2fpn_lite]\nseeds: [0]\ndevice: cpu\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STUDY + "notebook: ../../evil\n", "not the name of a notebook"),
        (STUDY.replace("[0]", str(list(range(20_000)))), "20000 jobs"),
        (LAUGHS + STUDY, "aliases"),
        (STUDY + "variants: !!python/name:os.system\n", "tag"),
    ],
)
def test_a_hostile_study(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(StudyError, match=message):
        read_study(tmp_path / "s.yaml")


@examples(20)
@given(damaged((STUDY + "changes: {max_epochs: 1}\nvariants: {full: {}, no-crb: {crb: false}}\n").encode()))
def test_any_bytes_are_a_study_or_an_error(tmp_path, content):
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    jobs = read_or_refused(read_study, path, StudyError)
    assert all(isinstance(job, Job) for job in jobs or ())


# Paths


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Writes a description with one split and opens it."""
    monkeypatch.setenv("S2FPN_CACHE", str(tmp_path / "cache"))
    for folder in ("set/images", "set/labels", "outside"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / folder / "a.png")

    def opened(split: str, root: Path | None = None, listed: str = ""):
        (tmp_path / "set" / "list.txt").write_text(listed)
        text = DESCRIPTION.replace("{images: images, labels: labels}", split)
        (tmp_path / "set" / "data.yaml").write_text(text)
        return open_dataset(tmp_path / "set" / "data.yaml", root)

    return opened


def test_paths_stay_inside_of_the_data_root(tmp_path, dataset):
    outside = tmp_path / "outside"
    for split, listed in (
        ("{images: ../outside, labels: labels}", ""),
        (f"{{images: images, labels: {outside}}}", ""),
        ("{list: ../list.txt}", ""),
        ("{list: list.txt}", "images/a.png ../outside/a.png\n"),
        ("{list: list.txt}", f"{outside}/a.png labels/a.png\n"),
        ("{list: list.txt}", "images/../../outside/a.png labels/a.png\n"),
        ('{images: "a\\0", labels: labels}', ""),
    ):
        with pytest.raises(DatasetError, match=r"not a path inside .*set; move the files there, or give as data_root"):
            dataset(split, listed=listed)
    for split in (f"{{images: {outside}, labels: set/labels}}", "{images: set/../outside, labels: set/labels}"):
        assert dataset(split, tmp_path).files
        assert CustomDataset(tmp_path / "set" / "data.yaml", "train", tmp_path).samples[0].image == outside / "a.png"
    (tmp_path / "set" / "linked").symlink_to(outside)
    assert len(dataset("{images: linked, labels: labels}")) == 1


def test_links_in_circles_and_pipes_end_the_audit(tmp_path, dataset):
    (tmp_path / "set/images/circle").symlink_to(tmp_path / "set")
    (tmp_path / "set/images/loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "set/images/pipe.png")
    with pytest.warns(UserWarning, match=r"not a regular file|symbolic links"):
        found = dataset("{images: images, labels: labels}")
    assert found.names == ["a", "loop", "pipe"]
    errors = "\n".join(check_dataset(found).errors)
    assert "pipe.png: is a pipe or device, not a file" in errors
    assert "loop.png: is a link to a missing file, or to itself" in errors
    os.mkfifo(tmp_path / "set/pipe.txt")
    with pytest.raises(FileNotFoundError, match="cannot be read"):
        dataset("{list: pipe.txt}")


# Archives


def archive(*members: tuple[str, bytes], kind: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            packed.writestr(info, content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(("../evil", b"x")), "leads out of the folder"),
        (archive(("a/../../evil", b"x")), "leads out of the folder"),
        (archive(("/evil", b"x")), "leads out of the folder"),
        (archive(("..\\evil", b"x")), "leads out of the folder"),
        (archive(("C:\\evil", b"x")), "leads out of the folder"),
        (archive(("link", b"/etc/passwd"), kind=0o120000), "a link or a device"),
        (archive(("device", b""), kind=0o020000), "a link or a device"),
        (archive(("bomb", bytes(10_000_000))), "50 times as large"),
        (b"no archive", "not a zip file"),
    ],
)
def test_a_hostile_archive_writes_nothing(tmp_path, content, message):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match=message):
        unpack(tmp_path / "a.zip", tmp_path / "into")
    assert files_in(tmp_path) == {tmp_path / "a.zip"}


@examples(40)
@given(damaged(archive(("camvid/train/a.png", encoded("PNG")), ("camvid/train.txt", b"a b\n" * 20))))
def test_any_bytes_are_an_archive_or_an_error(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("archive")
    (folder / "in").mkdir()
    (folder / "in" / "a.zip").write_bytes(content)
    with contextlib.suppress(zipfile.BadZipFile, OSError):
        unpack(folder / "in" / "a.zip", folder / "in" / "into")
    assert {path.name for path in folder.iterdir()} == {"in"}
    assert {path.name for path in (folder / "in").iterdir()} <= {"a.zip", "into"}


# Weights


@pytest.fixture(scope="module")
def model():
    return build_model("s2fpn_lite", num_classes=3)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    save_weights(model, path, {"dataset": "own", "train_split": "train"})
    return path.read_bytes()


def parts(content: bytes) -> tuple[dict, bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict | bytes, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def described(weights: bytes, **changes) -> bytes:
    """The file with other fields in its description, and without a digest."""
    header, body = parts(weights)
    document = {**json.loads(header["__metadata__"]["s2fpn"]), **changes}
    del document["sha256"]
    header["__metadata__"]["s2fpn"] = json.dumps(document)
    return joined(header, body)


def refused(path: Path, model: S2FPN) -> None:
    """No reader of weights takes the file, and none changes the model."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for reader in (load_model, lambda path: initialize(model, path)):
        with pytest.raises(CheckpointError) as found:
            reader(path)
        assert path.name in str(found.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_absurd_headers_of_safetensors(tmp_path, model, weights):
    header, body = parts(weights)
    tensor = "head.weight"
    changed = {
        "overlap": {"data_offsets": [0, 384]},
        "outside": {"data_offsets": [0, 2**62]},
        "negative": {"data_offsets": [-8, 8]},
        "overflow": {"shape": [2**33, 2**33]},
        "large": {"shape": [2**40]},
        "type": {"dtype": "X9"},
    }
    contents = {name: joined({**header, tensor: header[tensor] | each}, body) for name, each in changed.items()}
    for name, length in {"endless": 2**63, "longer": 2**37, "short": 3}.items():
        contents[name] = joined(header, body, length)
    contents |= {"deep": joined(b"[" * 100_000, body), "list": joined(b"[]", b""), "empty": b""}
    for name, content in contents.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        refused(path, model)


def test_absurd_descriptions_in_safetensors(tmp_path, model, weights):
    header, body = parts(weights)
    config = model.config
    path = tmp_path / "a.safetensors"
    for text in ("[]", "3", "null", '"a"', "{", "[" * 100_000, '{"config": [1]}'):
        header["__metadata__"]["s2fpn"] = text
        path.write_bytes(joined(header, body))
        for reader in (load_model, read_metadata, recorded_network):
            with pytest.raises(CheckpointError, match=r"a\.safetensors"):
                reader(path)
    for changes in (
        *({"config": {**config, "num_classes": number}} for number in (10**9, 10**30, 2, -1, "3", None)),
        *({"config": {**config, "name": name}} for name in ("unknown", ["s2fpn18"], {})),
        *({"config": {**config, "encoder_weights": file}} for file in ("imagenet", "/etc/passwd")),
        {"config": {}},
        {"config": {**config, "ssam": "no"}},
        {"config": {**config, "other": 1}},
        {"config": {**config, "dropout": 7.0}},
        {"config": {**config, "normalization": [1]}},
        *({"training": each} for each in ("abc", [1], [{"dataset": "a"}], [{"dataset": [], "split": "val"}])),
        *({name: [1]} for name in ("pretraining", "protocol", "dataset", "val_miou", "step")),
        *({"protocol_definition": each} for each in ("abc", [1], {"name": "x"}, {**OWN, "other": 1})),
        *({"protocol_definition": {**OWN, "size": size}} for size in (["a", 2], [10**9, 10**9], [0, 5], [32])),
        *({"protocol_definition": {**OWN, "name": name}} for name in ("<b>", "../x", "", "camvid-segnet-360x480")),
        *({"protocol_definition": {**OWN, "palette": each}} for each in ([[0, 0, 0]], [[0, 0, 999]] * 3, "abc")),
        *({"protocol_definition": {**OWN, "classes": each}} for each in (["a\n", "b", "c"], ["a", "a", "a"])),
    ):
        path.write_bytes(described(weights, **changes))
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_model(path)
    path.write_bytes(
        described(weights, protocol_definition={**OWN, "name": "own-3-b", "classes": ["<b>", "$x$", "=1"]})
    )
    assert load_model(path).metadata["protocol_definition"]["classes"] == ["<b>", "$x$", "=1"]
    assert get_protocol("own-3-b").classes == ("<b>", "$x$", "=1")


def test_a_file_cannot_rename_the_classes_of_a_known_protocol():
    own = Protocol.from_dict({**OWN, "name": "own-known"})
    assert register(own) is own
    assert register(Protocol.from_dict({**OWN, "name": "own-known", "source": "elsewhere"})).source == "elsewhere"
    for changes in ({"classes": ["b", "a", "c"]}, {"size": [64, 64]}, {"ignore_id": 254}, {"dataset": "other"}):
        with pytest.raises(ValueError, match="known with other values"):
            register(Protocol.from_dict({**OWN, "name": "own-known", **changes}))


def test_a_shared_network_with_an_absurd_description(tmp_path, model):
    folder = model.save_pretrained(tmp_path / "shared")
    for text in ("[]", "[" * 100_000, "{}", '{"config": {"name": "s2fpn_lite", "num_classes": 1000000000}}', "\xff"):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(RuntimeError, match="shared holds no network"):
            S2FPN.from_pretrained(folder)


def test_pickles_run_no_code(tmp_path, model):
    marker = tmp_path / "marker"
    torch.save({"model": Malicious(marker), "step": 1}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Malicious(marker)))
    for name in ("zip.pth", "raw.pth"):
        with pytest.raises(CheckpointError, match=name):
            load_model(tmp_path / name, name="s2fpn_lite", num_classes=3)
        with pytest.raises(CheckpointError, match=name):
            initialize(model, tmp_path / name)
        (tmp_path / "last.pt").write_bytes((tmp_path / name).read_bytes())
        with pytest.raises(CheckpointError, match=r"last\.pt"):
            load_state(tmp_path / "last.pt")
        (tmp_path / "a.safetensors").write_bytes((tmp_path / name).read_bytes())
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_model(tmp_path / "a.safetensors")
    arrays = {"protocol": np.array("roadscenes"), "image:a": np.array([Malicious(marker)], dtype=object)}
    np.savez(tmp_path / "samples.npz", **arrays)
    with pytest.raises(ValueError, match=r"samples\.npz is damaged"):
        load_samples(tmp_path)
    assert not marker.exists()


class Bytes:
    def __reduce__(self):
        return bytearray, (10**9,)


def test_a_small_file_of_tensors_takes_little_memory(tmp_path, model):
    torch.save({"a": Bytes()}, tmp_path / "bytes.pth")
    file = io.BytesIO()
    torch.save({"a": torch.zeros(100_000)}, file)
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed, zipfile.ZipFile(file) as stored:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    for name in ("bytes.pth", "packed.pth"):
        with pytest.raises(CheckpointError, match=rf"{name} is compressed, or holds a byte array"):
            initialize(model, tmp_path / name)


@pytest.mark.parametrize("chosen", ["../a.safetensors", "/etc/passwd", [1], {"a": 1}, "a/b"])
def test_a_run_folder_names_only_its_own_files(tmp_path, weights, chosen):
    (tmp_path / "run").mkdir()
    (tmp_path / "a.safetensors").write_bytes(weights)
    (tmp_path / "run" / "best.safetensors").write_bytes(weights)
    (tmp_path / "run" / "result.json").write_text(json.dumps({"checkpoint": chosen}))
    with pytest.raises(CheckpointError, match=r"result\.json .*not the name of a file in the folder"):
        find_weights(tmp_path / "run")


def test_pipes_in_a_run_folder(tmp_path):
    for name in ("best.safetensors", "last.pt"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="holds no"):
        find_weights(tmp_path)
    assert load_state(tmp_path / "last.pt") is None
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        find_weights(tmp_path)


@pytest.fixture(scope="module")
def small_weights() -> bytes:
    return safetensors.torch.save(
        {"a": torch.zeros(2, 3), "head.weight": torch.zeros(3, 4, 1, 1)},
        {"s2fpn": json.dumps({"config": {"name": "s2fpn_lite", "num_classes": 3}, "protocol_definition": OWN})},
    )


@examples(60)
@given(data=st.data())
def test_any_bytes_are_weights_or_an_error(tmp_path, small_weights, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data.draw(damaged(small_weights)))
    for reader in (load_model, read_metadata):
        found = read_or_refused(reader, path, CheckpointError)
        assert found is None or isinstance(found, dict), "three tensors are no network"
    assert files_in(tmp_path) == {path}


@pytest.fixture(scope="module")
def small_state(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("state") / "last.pt"
    save_state(path, {"model": {"a": torch.arange(6.0)}, "step": 3, "epoch": 1})
    return path.read_bytes()


@examples(60)
@given(data=st.data())
def test_any_bytes_are_a_state_or_an_error(tmp_path, small_state, data):
    path = tmp_path / "last.pt"
    path.write_bytes(data.draw(damaged(small_state)))
    state = read_or_refused(load_state, path, CheckpointError)
    assert state is None or (state["step"] == 3 and torch.equal(state["model"]["a"], torch.arange(6.0)))
    assert files_in(tmp_path) == {path}


# Records


@pytest.mark.parametrize("content", [b"[]", b"3", b"[" * 100_000, b"\xff", b"", b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_record_that_is_no_object(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        read_json(tmp_path / "result.json")
    if content:
        (tmp_path / "metrics.jsonl").write_bytes(content + b"\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl line 1 is not JSON"):
            read_rows(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        {"matrix": [1] * 11},
        {"matrix": [[1.5] * 11] * 11},
        {"matrix": [[-1] * 11] * 11},
        {"matrix": [[2**70] * 11] * 11},
        {"matrix": [[0] * 5] * 5},
        {"per_image": [[[1, 2, 3]]]},
        {"boundary_f": [0.5]},
        {"names": ["a"]},
        {"names": [1, 2]},
        {"indices": ["a", "b"]},
        {"settings": {"protocol": "unknown"}},
        {"settings": {}},
        {"settings": []},
        {"provenance": {"a": [1]}},
        {"protocol": OWN},
        {"other": 1},
    ],
)
def test_an_evaluation_with_absurd_fields(tmp_path, changes):
    path = tmp_path / "evaluation.json"
    evaluation(1).save(path)
    fields = json.loads(path.read_text())
    if changes == {"protocol": OWN}:
        changes = {"protocol": OWN, "settings": fields["settings"] | {"protocol": OWN["name"]}}
    path.write_text(json.dumps(fields | changes))
    with pytest.raises(ValueError, match=r"evaluation\.json is not an evaluation"):
        Evaluation.load(path)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("evaluation") / "evaluation.json"
    evaluation(1).save(path)
    return path.read_bytes()


@examples(60)
@given(data=st.data())
def test_any_bytes_are_a_record_or_an_error(tmp_path, records, data):
    path = tmp_path / "a.json"
    path.write_bytes(data.draw(damaged(records)))
    for reader, kind in ((read_json, dict), (read_rows, list), (Evaluation.load, Evaluation)):
        found = read_or_refused(reader, path, ValueError)
        assert found is None or isinstance(found, kind)
    assert files_in(tmp_path) == {path}


def test_readers_do_not_wait_for_a_pipe(tmp_path):
    """In a thread, so that a reader that waits fails the test instead of stopping it."""
    os.mkfifo(tmp_path / "pipe")
    failed = []

    def read() -> None:
        for reader in (read_json, read_rows, Evaluation.load):
            with pytest.raises(ValueError, match="not a regular file"):
                reader(tmp_path / "pipe")
            failed.append(reader)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert len(failed) == 3


@pytest.mark.parametrize("text", ["<b>", "[a](javascript:alert(1))", "$x$", "**a**", "a\n\n# b", "&amp;", "`a`"])
def test_text_stays_text_in_markdown(text):
    from html import unescape

    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    page = markdown2html_mistune(f"before {as_text(text)} after")
    assert unescape(page.strip().removeprefix("<p>").removesuffix("</p>")) == f"before {' '.join(text.split())} after"
    assert page.count("<") == 2


def test_names_in_a_model_card_are_text(tmp_path, model):
    model.metadata = {
        "pretraining": "<script>alert(1)</script>",
        "training": [{"dataset": "own", "split": "train"}],
        "val_split": "<b>",
        "val_miou": 0.5,
        "protocol": "own-32x32-0000",
        "protocol_definition": {
            **OWN,
            "classes": ["<img src=x>", "a\n\n# b", "c|d"],
            "source": "<svg/onload=alert(1)>",
        },
    }
    try:
        card = (model.save_pretrained(tmp_path / "<i>") / "README.md").read_text()
    finally:
        model.metadata = {}
    assert "<" not in card
    assert "\n# b" not in card
    assert "| 0 | &lt;img src=x&gt; |" in card


def test_a_frame_of_a_video_is_limited_like_an_image(tmp_path, monkeypatch):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4", [tmp_path / "a.png"], Fraction(10))
    assert [load().shape for _, load in video_frames(tmp_path / "a.mp4")] == [(48, 64, 3)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(MediaError, match=r"a\.mp4: claims 64 x 48, more than"):
        next(video_frames(tmp_path / "a.mp4"))


def test_a_playlist_named_like_a_video_opens_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        (tmp_path / "a.ts").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(MediaError, match="no readable video"):
            list(video_frames(tmp_path / "a.ts"))
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("names", [("$x^2$", "a$", "$\\undefined$"), ("<b>", "_background_", "=1+1")])
def test_names_in_figures_are_no_formulas(names):
    protocol = Protocol.from_dict({**OWN, "name": "own-figures", "classes": list(names)})
    shares = class_shares_bars({"train $a$": [0.3, 0.31, 0.39]}, protocol)
    bars = per_class_bars(pd.DataFrame({"iou": [0.1, 0.2, 0.3]}, index=list(names)), protocol)
    image = np.zeros((32, 32, 3), np.uint8)
    for figure in (shares, bars, image_grid([[image]], ["$a$"], ["$x$ {"], protocol, 6.0)):
        figure.savefig(io.BytesIO())  # a formula that cannot be parsed would raise
        texts = {text.get_text() for text in figure.findobj(Text) if not text.get_parse_math()}
        assert not [text.get_text() for text in figure.findobj(Text) if "\\mathdefault" in text.get_text()]
        assert set(names) <= texts


def test_a_list_of_camvid_stays_inside_of_its_folder(tmp_path):
    for folder in ("train", "trainannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
        (tmp_path / "camvid" / folder / "a.png").touch()
    for line in ("../a.png trainannot/a.png", "train/a.png /x/../a.png"):
        (tmp_path / "camvid" / "train.txt").write_text(line)
        with pytest.raises(DatasetError, match=r"train\.txt, line 1: .* not a path inside .*camvid"):
            CamVid(tmp_path / "camvid", "train")
