"""Many trainings: a search over options by Optuna, or a grid of options and seeds; one training each is a process."""
