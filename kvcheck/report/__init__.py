"""Reports: pure functions from runs to lines. They print nothing, write nothing and need no torch."""
