"""The recorded runs that ship with kvcheck. Read through kvcheck.baseline, written only on --kv-record."""
