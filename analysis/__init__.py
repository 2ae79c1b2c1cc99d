"""Statistics of data sets, anchors, matches, predictions and training runs, and how they are written."""
