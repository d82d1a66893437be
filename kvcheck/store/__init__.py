"""What is kept: baselines (text files, remote places, publishing), run files and their journals. No torch, no model.

Read `baselines.py` first, then `run_file.py`.
"""
