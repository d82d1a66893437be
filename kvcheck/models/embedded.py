"""The names of the models that ship with kvcheck, known without torch."""

EMBEDDED = ("mini", "mini_window", "mini_hybrid")
"""The models that ship with kvcheck, each a folder of fixtures/."""
