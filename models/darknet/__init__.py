"""Darknet's dialect: the text of a cfg to the layers of a network."""
