"""Results and truth to numbers: no network, no loader."""
