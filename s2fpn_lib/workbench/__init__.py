"""What notebooks and batch runs share: parameters, studies, running notebooks, provenance, prediction of files."""
