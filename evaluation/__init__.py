"""From results and ground truth to metrics, without a network or a loader."""
