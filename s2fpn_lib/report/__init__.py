"""From run folders to the tables and figures of the report: the notebook 90_report, converted without its code.

collect.py reads what runs wrote, and writes it as one tidy table. tables.py makes tables of scores and exports every
table; published.py, studies.py, and comparison.py make the other tables and figures.
"""
