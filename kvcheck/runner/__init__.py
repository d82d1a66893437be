"""What drives a backend through a case, without torch: prompts, modes, grading."""
