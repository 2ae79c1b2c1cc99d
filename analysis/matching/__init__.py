"""``analyze.py --matching-stats``: which slots match which objects, and how well every prediction fits."""
