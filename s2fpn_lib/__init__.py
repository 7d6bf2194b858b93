"""S²-FPN workbench. Nothing is imported here, so that `import s2fpn_lib` stays instant."""

__version__ = "0.1.0"
