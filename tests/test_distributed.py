"""Two gloo processes against one: losses, gradients, BatchNorm, confusion matrices, resuming, failures.

Dropout is off wherever two processes are compared with one, because each process draws its own masks. The network
starts from trained weights: with random ones, rounding alone moves the loss of s2fpn_lite by 4e-5.
`python tests/test_distributed.py RUN_DIR CHANGES` trains, for the tests that kill a process.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from s2fpn_lib import state as state_module
from s2fpn_lib.checkpoint import RELEASED, load_model, load_state
from s2fpn_lib.data.roadscenes import RoadScenes
from s2fpn_lib.distributed import (
    SyncBatchNorm,
    any_process,
    choose_device,
    from_first,
    mean_over_processes,
    rank,
    require_equal,
    sum_over_processes,
    synchronize_batch_norm,
    world_size,
)
from s2fpn_lib.distributed.launch import WorkerFailed, launch, node_rank
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.losses import DeepSupervisionLoss
from s2fpn_lib.state import step_seed
from s2fpn_lib.train import TrainConfig, train

PROJECT = Path(__file__).resolve().parent.parent
SIZE = (64, 96)
IGNORED = 11
START = "s2fpn_lite-camvid-v1"


class Scenes(RoadScenes):
    """A few small scenes. Most labels of every third one are ignored, so the processes' weights differ widely."""

    def __init__(self, split: str, count: int):
        super().__init__(split, size=SIZE, count=count)
        self.pairs = [super(Scenes, self).arrays(index) for index in range(len(self))]
        for _, label in self.pairs[::3]:
            label[10:] = IGNORED

    def arrays(self, index):
        return self.pairs[index]


class Breaking(Scenes):
    """The second process cannot read the fourth step's batch."""

    reads = 0

    def arrays(self, index):
        if rank() == 1:
            self.reads += 1
            if self.reads > len(self) + 6:  # each label once for the class weights, then the halves of three steps
                raise OSError("the disk is gone")
        return super().arrays(index)


def few_scenes(name, root=None, split="train"):
    return Scenes(split, {"train": 8, "val": 5}[split])


def breaking_scenes(name, root=None, split="train"):
    return Breaking(split, 8) if split == "train" else few_scenes(name, root, split)


def run(run_dir, scenes=few_scenes, **changes):
    """A short training with two steps per epoch; `changes` of its configuration."""
    config = TrainConfig.preset(
        "quick",
        **{
            "dataset": "roadscenes",
            "crop": SIZE,
            "scale_range": (0.9, 1.2),
            "batch_size": 4,
            "epochs": 2,
            "warmup": 0,
            "optimizer": "sgd",
            "lr": 5e-4,  # small steps: rounding errors grow with their length
            "encoder_lr": 0.0,
            "encoder_weights": "",
            "init_from": START,
            "switches": {"dropout": 0.0},
            "init_changes": ["dropout"],
            "amp": "off",
            "device": "cpu",
            "eval_images": 0,
            "eval_every": 1,
            "checkpoint_minutes": 1e-6,
            **changes,
        },
    )
    with mock.patch.object(state_module, "open_dataset", scenes):
        return train(config, run_dir=run_dir)


@contextmanager
def program(run_dir, environment=(), **changes):
    """`run` in another Python process, without the breaking scenes."""
    command = [sys.executable, __file__, str(run_dir), json.dumps(changes)]
    process = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **dict(environment)})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", autouse=True)
def _importable():
    """New processes inherit sys.path and find this module there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder, _importable):
    return run(folder / "alone")


@pytest.fixture(scope="module")
def together(folder, _importable):
    return run(folder / "together", devices=2)


def losses(result) -> list[float]:
    return [row["loss"] for row in result.history]


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def distance(result, other) -> float:
    """Distance between the last weights of two runs, relative to how far training moved them."""
    start = flat(load_file(RELEASED / f"{START}.safetensors"))
    first, second = (flat(load_file(each.run_dir / "last.safetensors")) for each in (result, other))
    return ((first - second).norm() / (first - start).norm()).item()


def assert_same_run(result, other):
    """Weights and learning curve are bit-equal."""
    assert losses(result) == losses(other)
    for name in ("last.safetensors", "best.safetensors"):
        assert torch.equal(*(flat(load_file(each.run_dir / name)) for each in (result, other)))


@pytest.mark.slow
def test_two_processes_train_as_one(alone, together):
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    assert [r["val_miou"] for r in together.history] == pytest.approx([r["val_miou"] for r in alone.history], abs=2e-3)
    assert 0 < distance(together, alone) < 0.01
    assert (together.summary["processes"], alone.summary["processes"]) == (2, 1)
    assert together.summary["recipe"] == alone.summary["recipe"]


@pytest.mark.slow
def test_a_failed_process_is_named_and_one_process_continues(alone, folder):
    with pytest.raises(WorkerFailed, match=r"process 1 of 2 failed: OSError: the disk is gone"):
        run(folder / "broken", breaking_scenes, devices=2)
    state, whole = (load_state(path / "last.pt") for path in (folder / "broken", alone.run_dir))
    assert state["step"] in (2, 3)  # the first process may have been stopped while it was saving the third
    assert list(state) == list(whole)
    assert list(state["model"]) == list(whole["model"])
    again = run(folder / "broken", devices=1)
    assert json.loads((again.run_dir / "environment.json").read_text())["resumed_at_step"] == state["step"]
    assert losses(again) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_a_stopped_and_a_killed_run_leave_no_process_and_resume_to_the_same_bits(together, folder, capfd):
    state, children = folder / "killed" / "last.pt", []
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = state.stat().st_mtime_ns if state.exists() else 0
        with program(folder / "killed", devices=2) as process:
            started = time.monotonic()
            while not state.exists() or state.stat().st_mtime_ns == before:
                assert process.poll() is None
                assert time.monotonic() - started < 100
                time.sleep(0.01)
            children += Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.send_signal(number)
            assert process.wait(60) == -number
        if number == signal.SIGTERM:
            step = load_state(state)["step"]
            assert f"stopped by SIGTERM after step {step} of 4: {state} holds the state" in capfd.readouterr().out
    assert len(children) >= 4
    again = run(folder / "killed", devices=2)
    assert load_state(state)["step"] == 4
    assert not any(Path(f"/proc/{child}/cmdline").exists() for child in children)
    assert_same_run(again, together)


def hang_up_and_stop(launcher: int) -> None:
    """Sends a signal to the launcher, and ends as after Ctrl-C in this process alone."""
    os.kill(launcher, signal.SIGHUP)
    time.sleep(0.5)
    raise KeyboardInterrupt


def test_a_launcher_ignores_what_nohup_ignores_and_does_not_wait_for_an_interrupted_process():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(WorkerFailed, match="the training was stopped"):
            launch(hang_up_and_stop, os.getpid(), devices=1, nodes=1, backend="gloo")
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_two_nodes_train_as_two_devices(together, folder, monkeypatch):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with program(folder / "nodes", {"NODE_RANK": "1"}, nodes=2) as second:
        result = run(folder / "nodes", nodes=2)
        assert second.wait(60) == 0
    assert losses(result) == pytest.approx(losses(together), rel=1e-5)  # more threads per process: not bit-equal
    assert distance(result, together) < 0.01
    assert result.summary["processes"] == 2


@pytest.mark.slow
def test_two_processes_compute_what_one_computes_on_the_whole_batch():
    assert launch(checks, devices=2, nodes=1, backend="gloo") == "what the first returns"


def checks() -> str:
    """The checks that each of two processes makes; a failure in one ends both."""
    assert world_size() == 2
    check_sums()
    check_batch_norm()
    check_loss("cross_entropy")
    check_loss("ohem")
    check_evaluation()
    return ["what the first returns", "what the second returns"][rank()]


def part(whole: torch.Tensor) -> torch.Tensor:
    """This process's half."""
    return whole.chunk(world_size())[rank()]


def check_sums():
    mine = torch.tensor([1.0, 10.0]) if rank() == 0 else torch.tensor([2.0, 30.0])
    assert_close(sum_over_processes(mine), torch.tensor([3.0, 40.0]))
    assert_close(mean_over_processes(mine), torch.tensor([1.5, 20.0]))
    assert from_first([rank(), "a"]) == [0, "a"]
    assert [any_process(flag) for flag in (False, rank() == 1, True)] == [False, True, True]
    require_equal("nothing", 5, "so nothing is wrong")
    with pytest.raises(ValueError, match=r"differ in step \(\[0, 1\]\): share a disk"):
        require_equal("step", rank(), "share a disk")


def check_batch_norm():
    """Outputs, gradients and running statistics against torch's BatchNorm on the whole batch, over two steps."""
    torch.manual_seed(0)
    for shape in ((6, 5, 4, 3), (6, 5, 7), (6, 5)):
        plain = nn.Sequential({4: nn.BatchNorm2d, 3: nn.BatchNorm1d, 2: nn.BatchNorm1d}[len(shape)](5))
        nn.init.uniform_(plain[0].weight)
        nn.init.uniform_(plain[0].bias)
        synced = nn.Sequential(type(plain[0])(5))
        synced.load_state_dict(plain.state_dict())
        synced = synchronize_batch_norm(synced)
        assert isinstance(synced[0], SyncBatchNorm)
        for _ in range(2):
            whole = (torch.randn(shape) * 3 + 100).requires_grad_()  # far from 0: a variance by E[x^2] - E[x]^2 fails
            half = part(whole.detach()).clone().requires_grad_()
            target = torch.randn(shape)
            expected, found = plain(whole), synced(half)
            assert_close(found, part(expected), rtol=1e-5, atol=2e-5)
            plain.zero_grad()
            synced.zero_grad()
            (expected * target).sum().backward()
            (found * part(target)).sum().backward()
            assert_close(half.grad, part(whole.grad), rtol=1e-4, atol=1e-5)
            for mine, theirs in zip(synced.parameters(), plain.parameters(), strict=True):
                assert_close(sum_over_processes(mine.grad), theirs.grad, rtol=1e-4, atol=1e-5)
        assert list(synced.state_dict()) == list(plain.state_dict())
        assert_close(synced.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)
        assert_close(synced.eval()(half), plain.eval()(half), rtol=1e-5, atol=1e-5)


def check_loss(criterion: str):
    """Mean losses and gradients, with nearly all or all pixels of one half ignored."""
    torch.manual_seed(1)
    weights = torch.rand(IGNORED) + 0.5
    loss = DeepSupervisionLoss(
        IGNORED, weights, criterion=criterion, aux_resolution="own", ohem_threshold=0.5, ohem_min_kept=0.0
    )
    for rows in (1, 0):
        logits, aux = torch.randn(4, IGNORED, 16, 24), torch.randn(4, IGNORED, 8, 12)
        label = torch.randint(0, IGNORED, (4, 16, 24))
        label[:2, rows:] = IGNORED
        whole = [logits.clone().requires_grad_(), aux.clone().requires_grad_()]
        half = [part(logits).clone().requires_grad_(), part(aux).clone().requires_grad_()]
        mine = loss((half[0], [half[1]]), part(label))
        mine.backward()
        with mock.patch("s2fpn_lib.losses.mean_over_processes", lambda total: total):
            expected = loss((whole[0], [whole[1]]), label)
        expected.backward()
        assert_close(mean_over_processes(mine), expected.detach())
        for found, reference in zip(half, whole, strict=True):
            assert_close(found.grad / world_size(), part(reference.grad))


def check_evaluation():
    """Distributed and single-process evaluation agree, with a short last batch and with a single batch."""
    model, scenes = load_model(START), few_scenes("roadscenes", split="val")
    for batch_size in (2, 8):
        whole = evaluate(model, scenes, batch_size=batch_size, progress=False)
        shared = evaluate(model, scenes, batch_size=batch_size, distributed=True, progress=False)
        assert_close(shared.confusion.matrix, whole.confusion.matrix, rtol=0, atol=0)
        assert_close(shared.per_image, whole.per_image, rtol=0, atol=0)
        assert_close(shared.boundary_f, whole.boundary_f, equal_nan=True)
        assert_close(shared.boundary_mean, whole.boundary_mean)
        assert shared.row() == whole.row() | {"boundary_f": shared.boundary_mean}


def test_one_process_alone():
    value = torch.ones(2)
    assert (rank(), world_size(), from_first("a"), any_process(False), any_process(True)) == (0, 1, "a", False, True)
    assert sum_over_processes(value) is value
    assert mean_over_processes(value) is value
    require_equal("anything", 1, "impossible")


def test_batch_size_is_a_multiple_of_the_processes():
    with pytest.raises(ValueError, match=r"batch_size is 8, which 3 processes \(devices=3, nodes=1\)"):
        TrainConfig(devices=3)
    with pytest.raises(ValueError, match="nodes is 0"):
        TrainConfig(nodes=0)
    assert TrainConfig(devices=2, nodes=2).recipe() == TrainConfig().recipe()


def test_nodes_need_a_meeting_point(monkeypatch):
    assert node_rank(1) == 0
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    with pytest.raises(ValueError, match=r"nodes is 2, but MASTER_PORT, NODE_RANK of the environment is not set"):
        node_rank(2)
    monkeypatch.setenv("MASTER_PORT", "29500")
    for wrong in ("2", "-1", "first"):
        monkeypatch.setenv("NODE_RANK", wrong)
        with pytest.raises(ValueError, match="it is a number from 0 to 1"):
            node_rank(2)
    monkeypatch.setenv("NODE_RANK", "1")
    assert node_rank(2) == 1


def test_each_process_gets_its_own_gpu():
    assert choose_device("cpu", 3) == torch.device("cpu")
    with mock.patch.multiple(torch.cuda, device_count=lambda: 2, is_available=lambda: True):
        assert [choose_device("auto", number) for number in (0, 1)] == [torch.device("cuda"), torch.device("cuda:1")]
        with pytest.raises(ValueError, match="3 processes on this node need as many GPUs, but torch sees 2"):
            choose_device("cuda", 2)
        with pytest.raises(ValueError, match="one GPU for several processes"):
            choose_device("cuda:1", 1)


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "gpu"])
def test_other_devices_are_refused_before_data_is_read(name):
    with pytest.raises(ValueError, match=f'device is \'{name}\', which is not supported; use "auto", "cpu"'):
        train(TrainConfig(dataset="no such dataset", device=name))


def test_processes_draw_different_dropout_masks():
    seeds = {step_seed(0, step, number) for step in range(200) for number in range(20)}
    assert len(seeds) == 200 * 20
    assert step_seed(3, 7, 0) == step_seed(3, 7)


def main(run_dir: str, changes: str) -> None:
    run(run_dir, **json.loads(changes))


if __name__ == "__main__":
    main(*sys.argv[1:])
