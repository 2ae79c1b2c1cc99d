"""The training loop, the folder of a run, and what the scripts share."""
