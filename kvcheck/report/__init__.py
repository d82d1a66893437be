"""Reports: pure functions from runs to lines. They print nothing, write nothing and need no torch.

Read `rows.py` first (a run as rows), then `summary.py` (the tables of a method, for every renderer) and `table.py`.
"""
