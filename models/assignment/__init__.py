"""Which slots learn from which objects: the strategies of ``--match``."""
