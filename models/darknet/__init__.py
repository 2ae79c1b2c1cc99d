"""From the text of a Darknet cfg to the layers of a network."""
