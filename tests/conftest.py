"""Shared by all tests: folders for results and caches, number of threads, real data, and a GPU where available."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parent.parent
DEVICE = os.environ.get("S2FPN_TEST_DEVICE", "cuda")  # "cpu" runs the tests marked cuda on the CPU
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory):
    """Results and caches go to temporary folders, for kernels and other child processes too. The processes of
    pytest-xdist share the cache, so that each image is drawn or decoded once."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2FPN_RESULTS", str(tmp_path_factory.mktemp("results")))
        patch.setenv("S2FPN_CACHE", str(shared / "cache"))
        patch.setenv("MPLBACKEND", "agg")
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """One thread per process, for kernels and other child processes too: pytest-xdist runs one process per core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Undoes that a shell ignores SIGINT in what it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """The folder S2FPN_DATA names, if CamVid is found in it; the test is skipped otherwise."""
    from s2fpn_lib.data import DatasetNotFound, open_dataset

    root = os.environ.get("S2FPN_DATA")
    if not root:
        pytest.skip("needs CamVid: set S2FPN_DATA to the folder that holds camvid/")
    try:
        open_dataset("camvid", root, split="val", cache=False)
    except DatasetNotFound:
        pytest.skip(f"needs CamVid: S2FPN_DATA={root} holds none")
    return Path(root)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of a test marked cuda."""
    return torch.device(DEVICE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            if DEVICE == "cuda":
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch sees none here"))
            elif "device" not in item.fixturenames:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, whatever S2FPN_TEST_DEVICE says"))
