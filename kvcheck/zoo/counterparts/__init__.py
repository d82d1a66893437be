"""Correct methods that bugs of the zoo break, where no registered method has the code path in question."""
