"""A grid of methods, models and lengths over many workers: `kvcheck sweep`. No torch, no Ray at import.

Read first: schedule.py, which gives every worker the cases of one set of contexts, so that they are prefilled once for
all methods; then worker.py (what a worker does with a piece of work), pools.py (workers as processes of this machine)
and cluster.py (as actors of Ray). book.py keeps the run file of a model; cost.py reckons what a grid takes on paper.
What enters: who runs what, where and when. How a case is measured, judged and written down is the business of
kvcheck/plugin, kvcheck/judging and kvcheck/store, whose code is used here as it is.
"""
