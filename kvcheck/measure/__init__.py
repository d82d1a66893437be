"""What a method costs: bytes held by its cache, the proof that it acted, latency."""
