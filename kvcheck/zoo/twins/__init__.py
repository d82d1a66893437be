"""Correct methods that bugs of the zoo break, where no method of kvcheck fits. They are not registered."""
