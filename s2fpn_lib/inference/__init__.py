"""Running a trained network fast: folding and backends, ONNX and torch.export files, int8."""

from s2fpn_lib.inference.export import export_onnx, export_program, onnx_difference
from s2fpn_lib.inference.optimize import OptimizedModel, optimize_for_inference, simplify
