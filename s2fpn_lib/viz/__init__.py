"""Style, images, and charts of the notebooks and the report."""
