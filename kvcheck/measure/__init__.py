"""What a method costs: bytes held by its cache, the proof that it acted, latency.

Read `memory.py` first (what is held, and by whom), then `audit.py`. Whatever weighs or times may enter; what is judged
of it is in kvcheck/judging.
"""
