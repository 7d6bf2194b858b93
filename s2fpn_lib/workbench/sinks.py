"""What a run's numbers go to besides metrics.jsonl: curves in the notebook, and sinks, that is TensorBoard and MLflow.

with RunLogger("tensorboard,mlflow", config, run_dir=None, results=None) as logger:
    result = train(config, run_dir=logger.run_dir, on_epoch=LiveCurves(logger.run_dir, logger))
"""

import importlib.util
import logging
import os
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from torch import nn

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import evenly_spaced
from s2fpn_lib.distributed.launch import WorkerFailed, node_rank
from s2fpn_lib.runs import RunDirectory, config_hash, read_json, read_rows, results_root, write_json
from s2fpn_lib.state import data_digests, default_run_dir, open_splits
from s2fpn_lib.validate import did_you_mean
from s2fpn_lib.viz.charts import training_curves
from s2fpn_lib.viz.images import prediction_grid

Row = dict[str, Any]
Folder = str | Path | None
LARGEST_SHARE = 0.25  # of the time that goes into redrawing the curves, where epochs are very short


class LiveCurves:
    """`on_epoch` of `train`, which displays the curves where it is created; papermill keeps the last figure.

    It is picklable, and draws nothing in processes without a notebook. then: further functions, called first.
    """

    def __init__(self, run_dir: str | Path, *then: Any):
        self.metrics, self.then = RunDirectory(run_dir).metrics, then
        self.shown = display(Markdown("*The curves appear after the first epoch.*"), display_id=True)
        self.draw()  # the epochs of an interrupted run

    def __call__(self, row: Row, model: nn.Module) -> None:
        for each in self.then:
            each(row, model)
        if get_ipython() is not None and time.monotonic() >= self.due:
            self.draw()

    def draw(self) -> Figure | None:
        """Redraws the epochs in metrics.jsonl and returns the figure; None if there are none."""
        start = time.monotonic()
        figure = training_curves(rows) if (rows := read_rows(self.metrics)) else None
        if figure and self.shown:
            self.shown.update(figure)
        self.due = time.monotonic() + (time.monotonic() - start) / LARGEST_SHARE
        return figure


class Sink:
    """Base of the sinks. A subclass has an entry in `SINKS`, writes nothing before `open`, and has three methods.

    - ``open(epoch)`` starts or continues the run and sets `last`, the last epoch that the sink has. Epochs from `epoch`
      on, which an interrupted training logged before it saved its state, are removed where the sink can do that.
    - ``log(row, figure)`` writes the row of the epoch after `last`, and a figure of example images if there is one.
    - ``close(status)`` ends the run, which is FINISHED, FAILED, or KILLED (by the user).
    """

    packages: tuple[str, ...] = ()  # what it imports, all in the extra `logging`
    last: int = 0

    def __init__(self, config: TrainConfig, run_dir: Path, results: Path):
        self.config, self.run_dir, self.results = config, run_dir, results


class TensorBoard(Sink):
    """Event files in the run's folder `tensorboard/`: scalars under the names in the row, and the text `config`."""

    packages = ("tensorboard",)

    def open(self, epoch: int) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run_dir / "tensorboard"
        written = EventAccumulator(str(folder)).Reload() if folder.exists() else None
        losses = written.Scalars("loss") if written and "loss" in written.Tags()["scalars"] else []
        kept = [event.step for event in losses if event.step < epoch]
        # TensorBoard drops the steps from `purge_step` on that were written before
        self.writer = SummaryWriter(str(folder), purge_step=epoch if len(kept) < len(losses) else None)
        if not losses:
            lines = [f"| {name} | {value!r} |" for name, value in self.config.to_dict().items()]
            self.writer.add_text("config", "\n".join(["| field | value |", "|---|---|", *lines]), 0)
        self.last = max(kept, default=0)

    def log(self, row: Row, figure: Figure | None) -> None:
        for name, value in _values(row).items():
            self.writer.add_scalar(name, value, row["epoch"])
        if figure:
            self.writer.add_figure("predictions", figure, row["epoch"], close=False)
        self.writer.flush()

    def close(self, status: str) -> None:
        self.writer.close()


class MLflow(Sink):
    """A run at MLFLOW_TRACKING_URI, or in mlflow.db of the results folder, in the experiment MLFLOW_EXPERIMENT_NAME.

    mlflow.json in the run's folder identifies it. Of epochs that are trained again, MLflow keeps the first values.
    """

    packages = ("mlflow", "sqlalchemy", "alembic")  # the last two for the local store

    def open(self, epoch: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a training reports to nobody unless it is asked to
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        given = os.environ.get("MLFLOW_TRACKING_URI")
        uri = given or f"sqlite:///{self.results / 'mlflow.db'}"
        self.client = MlflowClient(uri)
        record, key = self.run_dir / "mlflow.json", config_hash({"uri": uri})  # an address may contain a password
        known = read_json(record) if record.exists() else {}
        if key in known:
            self.run_id = known[key]
            self.client.update_run(self.run_id, status="RUNNING")
            self.last = max((each.step for each in self.client.get_metric_history(self.run_id, "loss")), default=0)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "s2fpn"
        experiment = self.client.get_experiment_by_name(name)
        artifacts = None if given else (self.results / "mlflow-artifacts").as_uri()
        number = experiment.experiment_id if experiment else self.client.create_experiment(name, artifacts)
        tags = {"run_dir": str(self.run_dir)}
        self.run_id = self.client.create_run(number, run_name=self.run_dir.name, tags=tags).info.run_id
        write_json(record, known | {key: self.run_id})
        params = [Param(field, str(value)) for field, value in self.config.to_dict().items()]
        self.client.log_batch(self.run_id, params=params)

    def log(self, row: Row, figure: Figure | None) -> None:
        from mlflow.entities import Metric

        if figure:  # before the metrics, by which `open` finds the last epoch
            self.client.log_figure(self.run_id, figure, f"predictions/epoch-{row['epoch']:04d}.png")
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, row["epoch"]) for name, value in _values(row).items()]
        self.client.log_batch(self.run_id, metrics)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def _values(row: Row) -> dict[str, float]:
    """The numbers of a row without the epoch, under which a sink has them."""
    return {name: float(value) for name, value in row.items() if name != "epoch" and value is not None}


class RunLogger(AbstractContextManager):
    """`on_epoch` of `train` that writes to sinks; a context manager, which ends the sinks' runs. It is picklable.

    Sinks are filled from metrics.jsonl: one that fails, such as a server that does not answer, gives a warning and gets
    the epochs that it missed after the next one. log_to: names of `SINKS`, separated by commas; empty: none, and the
    attribute `run_dir` stays None. run_dir: None: `default_run_dir` under `results` (None: `results_root()`). images:
    number of examples. Raises ValueError for an unknown sink, and ImportError if its package is not installed.
    """

    def __init__(
        self, log_to: str, config: TrainConfig, run_dir: Folder = None, results: Folder = None, images: int = 3
    ):
        self.names = [name.strip() for name in log_to.split(",") if name.strip()]
        for name in self.names:
            if name not in SINKS:
                raise ValueError(f"log_to: no sink {name!r}.{did_you_mean(name, SINKS)} Sinks: {', '.join(SINKS)}")
            missing = [each for each in SINKS[name].packages if importlib.util.find_spec(each) is None]
            if missing:
                raise ImportError(f"log_to={name!r} needs {', '.join(missing)}: pip install 's2fpn-workbench[logging]'")
        if self.names:
            train_set, self.val_set = open_splits(config)
            if config.dataset == "auto":
                config = config.replace(dataset=train_set.name)  # as `train` does
            data = data_digests(train_set, self.val_set)
            run_dir = Path(run_dir or default_run_dir(config, train_set.name, data, results)).resolve()
        self.config, self.run_dir, self.images = config, run_dir, images
        self.results = Path(results or results_root()).resolve()
        self._open: dict[str, Sink] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}  # another process opens its own

    def __call__(self, row: Row, model: nn.Module) -> None:
        """Writes the rows of metrics.jsonl up to `row`, the last one. `model`: the network of that epoch."""
        if self.names:
            some = evenly_spaced(len(self.val_set), self.images) if row["val_miou"] is not None else []
            self._log(row["epoch"], prediction_grid(model, self.val_set, some) if some else None)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        trained = error is None or self._open or isinstance(error, WorkerFailed)  # else another process has the run
        rows = read_rows(RunDirectory(self.run_dir).metrics) if self.names and trained else []
        if rows and node_rank(self.config.nodes) == 0:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED" if error else "FINISHED"
            self._log(rows[-1]["epoch"] + 1, status=status)

    def _log(self, epoch: int, figure: Figure | None = None, status: str = "") -> None:
        """Gives each sink the rows that it lacks, the last one with `figure`, and ends its run if there is a status."""
        rows = read_rows(RunDirectory(self.run_dir).metrics)
        for name in self.names:
            try:
                if name not in self._open:
                    self._open[name] = SINKS[name](self.config, self.run_dir, self.results)
                    self._open[name].open(epoch)
                sink = self._open[name]
                for row in (row for row in rows if row["epoch"] > sink.last):
                    sink.log(row, figure if row is rows[-1] else None)
                    sink.last = row["epoch"]
                if status:
                    self._open.pop(name).close(status)
            except Exception as error:
                self._open.pop(name, None)
                again = f"{name} was not written and is tried again after the next epoch"
                warnings.warn(f"{again}: {type(error).__name__}: {error}", stacklevel=3)
