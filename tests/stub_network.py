"""What a detector asks of a network, for networks of tests that only have heads and raw maps."""

from torch import nn

from models.decode import candidates_of_maps


class StubNetwork(nn.Module):
    fixed_size = False
    knows_half = True
    suppresses = True
    finds = frozenset()
    nms_beta = None

    def looking_above(self, confidence):
        return self

    def candidates(self, raw, confidence):
        return candidates_of_maps(raw, self.heads, confidence)

    def fuse(self):
        return self
