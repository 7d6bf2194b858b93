"""S²-FPN workbench: models, data, training, evaluation and inspection, used by the notebooks.

Nothing is imported here: `import s2fpn_lib` stays instant, and each notebook names the parts it uses, for
example `from s2fpn_lib.model import build_model`.
"""

__version__ = "0.1.0"
