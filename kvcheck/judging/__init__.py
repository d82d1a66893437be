"""From records to verdicts: statistics, pairing, questions, budgets, reasons. No torch, no model.

Read `budget.py` first.
"""
