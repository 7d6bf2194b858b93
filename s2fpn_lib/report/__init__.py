"""From run directories to tables and the report.

collect.py reads what runs wrote, results_table.py makes the tidy table of it; scores.py, speed.py and studies.py are
the report's sections, page.py is the HTML page they go onto, and build.py puts everything together.
"""
