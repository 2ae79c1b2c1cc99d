"""``analyze.py --matching-stats``: which slots match which objects, and how well the predictions of all slots fit."""
