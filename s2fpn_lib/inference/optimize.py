"""The network prepared for inference: batch norms folded, auxiliary heads removed, and one of four backends."""

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.evaluate import evaluate, seen_caveat
from s2fpn_lib.inference.export import logit_difference
from s2fpn_lib.inference.runtimes import RUNTIMES, RuntimeRunner
from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.apf import APF, FRB
from s2fpn_lib.model.blocks import resize_like
from s2fpn_lib.model.gfu import GFUv1
from s2fpn_lib.model.ssam import StripGate
from s2fpn_lib.model.tta import AMP_DTYPES, at_size

TORCH_PRECISIONS = {"float32": None, **AMP_DTYPES}
BACKENDS = {"eager": tuple(TORCH_PRECISIONS), "compile": tuple(TORCH_PRECISIONS), **RUNTIMES}  # and their precisions
CALIBRATION_IMAGES = 8


class OptimizedModel(nn.Module):
    """A network for prediction only: `fast(x)` gives the logits (B, K, H, W) of the original `model(x)`.

    `max_difference` is the largest |difference| between its logits and the original's on the example. Of int8 also:
    `miou_cost` in percentage points (NaN if it was not measured), `statement`, which says it in words, `changed`, the
    share of the example's pixels that get another class, `float_layers`, the names of the layers that stay in float,
    and `speedup`, how many times as fast as float32 of the same backend.
    """

    def __init__(self, model: S2FPN, run: Callable[[Tensor], Tensor], backend: str, precision: str):
        super().__init__()
        self.config, self.num_classes, self.preprocess = model.config, model.num_classes, model.preprocess
        self.metadata = getattr(model, "metadata", {})
        self.device = next(model.parameters()).device
        self.backend, self.precision, self._run = backend, precision, run
        self.max_difference = self.miou_cost = self.changed = self.speedup = float("nan")
        self.float_layers: list[str] = []
        self.statement = ""

    def __repr__(self) -> str:
        name = f"{self.config['name']} {self.config['revision']}"
        return f"OptimizedModel({name}, {self.backend}, {self.precision}, differs by {self.max_difference:.1e})"

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W), float32. The first input of a size may start a compilation."""
        with torch.inference_mode():
            return self._run(x)


def optimize_for_inference(
    model: S2FPN,
    example: Tensor | SegmentationDataset,
    backend: str = "eager",
    *,
    precision: str = "float32",
    scored: SegmentationDataset | None = None,
    limit: int | None = None,
    tolerance: float = 0.01,
    verbose: bool = True,
) -> OptimizedModel:
    """A faster callable with `model`'s logits. `model` itself is left unchanged.

    Args:
        model: made by `build_model`, on the device on which it shall run.
        example: (B, 3, H, W) float input from `model.preprocess`, of the size to expect; the result is checked on it.
            Or a dataset: some evenly spaced images of it, at its protocol's size.
        backend: "eager"; "compile", which takes a minute once per input size and needs a C++ compiler on a CPU; or
            "onnxruntime" or "openvino", which run on the CPU and need the extra [onnx] or [openvino].
        precision: "float32", on CUDA with TF32 convolutions unless torch.backends forbids them; "bf16" or "fp16" run
            convolutions in half precision; "int8" quantizes with the activation ranges of `example`, which should then
            be real training images. Below float32, also in TF32, the difference of the logits is not bounded.
        scored: for int8, a labeled dataset that shares no image with `example`; the mIoU cost is measured on it.
        limit: number of scored images, evenly spaced; None for all.
        tolerance: for int8, the largest share of the example's pixels that may get another class. Layers whose
            quantization changes more stay in float; finding them takes minutes.
        verbose: print the largest difference, and what int8 costs.

    Raises TypeError for a model that `build_model` did not make, ValueError for a backend or precision that is unknown
    or that the device lacks and for scored images in the example, ImportError if the package of the backend is missing,
    and RuntimeError if the float32 logits differ by more than `export.PARITY` (relative to the largest logit above 1).
    """
    if not isinstance(model, S2FPN):
        raise TypeError(f"optimize_for_inference takes a model made by build_model, got {type(model).__name__}")
    device = next(model.parameters()).device
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if precision not in BACKENDS[backend]:
        raise ValueError(f"precision is {precision!r}; backend {backend!r} has {', '.join(BACKENDS[backend])}")
    if backend in RUNTIMES and device.type != "cpu":
        raise ValueError(f"backend {backend!r} runs on the CPU here, and the model is on {device}")
    example = calibration_images(model, example, scored if precision == "int8" else None)
    if backend in RUNTIMES:
        run = RuntimeRunner(simplify(model), example, backend, precision, tolerance)
    else:
        run = _torch_runner(simplify(model), TORCH_PRECISIONS[precision], compiled=backend == "compile")
    optimized = OptimizedModel(model, run, backend, precision)
    rounded = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    options = {"source": backend, "bounded": precision == "float32" and not rounded}
    inputs = example.split(1) if precision == "int8" else (example,)  # the size of the int8 session that exists
    optimized.max_difference = max(logit_difference(model, optimized(x), x, **options) for x in inputs)
    if precision == "int8":
        _state_cost(optimized, model, run, scored, limit)
    if verbose:
        print(f"{optimized}: largest difference of a logit on {tuple(example.shape)}\n{optimized.statement}".strip())
    return optimized


def calibration_images(
    model: S2FPN, example: Tensor | SegmentationDataset, scored: SegmentationDataset | None
) -> Tensor:
    """The inputs (B, 3, H, W) whose activations give the ranges: `example`, or evenly spaced images of a dataset.
    Raises ValueError if one of them is an image of `scored`: by name for a dataset, otherwise by its pixels."""
    if isinstance(example, SegmentationDataset):
        if scored is not None and (both := set(example.names) & set(scored.names)):
            both = f"{min(both)} and {len(both) - 1} more"
            raise ValueError(f"{example.split} (ranges of int8) and {scored.split} (score) share images: {both}")
        indices, size = evenly_spaced(len(example), CALIBRATION_IMAGES), example.protocol.size
        return model.preprocess(torch.stack([at_size(example[i][0], size) for i in indices]))
    for index in range(len(scored) if scored is not None else 0):
        image = model.preprocess(at_size(scored[index][0], example.shape[-2:])[None])
        if (example == image).flatten(1).all(1).any():
            raise ValueError(f"{scored.names[index]} of {scored.split} is scored and gives the ranges of int8")
    return example


def _state_cost(
    optimized: OptimizedModel, model: S2FPN, run: RuntimeRunner, scored: SegmentationDataset | None, limit: int | None
) -> None:
    """Fill in the attributes of an int8 network."""
    optimized.changed, optimized.float_layers = run.changed, run.float_layers
    integer, exact = run.milliseconds
    optimized.speedup = exact / integer
    cost, caveat = "its cost in mIoU is not known: give labeled images as `scored`", ""
    if scored is not None:
        before, after = (evaluate(m, scored, batch_size=1, limit=limit, progress=False) for m in (model, optimized))
        optimized.miou_cost = 100 * (before.confusion.miou() - after.confusion.miou())
        count, where = len(after.indices), f"{after.settings['protocol']} {after.settings['split']}"
        cost = f"int8 costs {optimized.miou_cost:z.1f} points of mIoU on {count} images of {where}"
        caveat = seen_caveat(after.settings.get("images_seen", 0), count)
    changed = f"{100 * run.changed:.2f} % of the pixels of {len(run.example)} calibration images change their class"
    speed = f"{integer:.3g} ms per image, {optimized.speedup:.1f} times as fast as float32 ({exact:.3g} ms)"
    kept = f"layers in float: {', '.join(run.float_layers) or 'none'}"
    optimized.statement = "\n".join(filter(None, (cost, caveat, changed, kept, speed)))
    if optimized.speedup <= 1:
        warnings.warn(f"int8 does not pay off with {optimized.backend} here, use float32: {speed}", stacklevel=3)


def simplify(model: S2FPN) -> S2FPN:
    """A copy for inference, equal to `model` in real arithmetic: in evaluation mode, without auxiliary heads, with
    batch norms folded into convolutions, and in channels_last."""
    simple = copy.deepcopy(model).eval().requires_grad_(False)
    simple.auxiliary = nn.ModuleList()
    fold_batch_norms(simple)
    # A 1x1 convolution without bias and a bilinear resize commute: the convolution runs on a quarter of the pixels
    for module in simple.children():
        if isinstance(module, APF):
            module.frb = SplitFRB(module.frb)
        elif isinstance(module, GFUv1):
            module.reduce_first = True
    return simple.to(memory_format=torch.channels_last)


def fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, another child of the same module, in place. torch fuses one
    pair; its `torch.fx` pass over a whole module needs static control flow."""
    for parent in module.modules():
        if isinstance(parent, StripGate):  # its convolution has two norms
            continue
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())


class SplitFRB(nn.Module):
    """An FRB with folded batch norms: W [L, U] + b = W_low L + b + resize(W_high high), because U = resize(high)."""

    def __init__(self, frb: FRB) -> None:
        super().__init__()
        first, self.rest = frb
        low, high = (half.detach().contiguous() for half in first.conv.weight.chunk(2, dim=1))
        self.low, self.high = nn.Buffer(low), nn.Buffer(high)
        self.bias, self.act = nn.Buffer(first.conv.bias.detach()), first.act

    def forward(self, lateral: Tensor, high: Tensor, upsampled: Tensor) -> Tensor:
        coarse = resize_like(F.conv2d(high, self.high), lateral, align_corners=False)
        return self.rest(self.act(F.conv2d(lateral, self.low, self.bias) + coarse))


def _torch_runner(network: S2FPN, dtype: torch.dtype | None, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    device = next(network.parameters()).device
    freezing = contextlib.nullcontext
    if compiled:
        from torch._inductor import config  # takes seconds to import

        # Freezing makes weights constants of the graph: on the CPU they are packed for oneDNN once, with the activation
        # fused. It has to be active while tracing; an option of torch.compile only reaches the stages after it.
        freezing = partial(config.patch, freezing=True)
        network = torch.compile(network, dynamic=False)

    def run(x: Tensor) -> Tensor:
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype is not None), freezing():
            return network(x).float()

    return cuda_graphs(run) if device.type == "cuda" else run


def cuda_graphs(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`run`, a function of one CUDA tensor without host syncs, recorded as one CUDA graph per input shape."""
    graphs: dict[torch.Size, Callable[[Tensor], Tensor]] = {}

    def replay(x: Tensor) -> Tensor:
        if x.shape not in graphs:
            graphs[x.shape] = torch.cuda.make_graphed_callables(run, (x.clone(),))
        return graphs[x.shape](x).clone()  # the next call overwrites the result

    return replay
