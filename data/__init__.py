"""From the files on the disk to the batches of training, testing and analysis."""
