"""The suites: `pytest --kv-method=NAME` here, `pytest --pyargs kvcheck.suites --kv-method=NAME` anywhere else."""
