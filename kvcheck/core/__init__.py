"""Plain data and contracts: records, specs, registries, errors, settings, files, paths. No torch, and nothing of ours.

Read `record.py` first, then `errors.py`; every option is declared in `settings.py`.
"""
