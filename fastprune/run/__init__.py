"""Running: stages, the run directory, reports, and what the commands compute."""
