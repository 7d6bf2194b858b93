"""From run folders to the tables and figures of the report: the notebook 90_report, converted without its code."""
