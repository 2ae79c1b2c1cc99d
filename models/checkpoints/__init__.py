"""Files of weights: our own checkpoints, Darknet's and YOLOv5's, told apart by content and filled completely."""
