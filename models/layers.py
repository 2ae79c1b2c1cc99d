"""Plain torch modules for the sections of a Darknet cfg; they know nothing of cfg files.

Each takes the tensors of its source layers, in order, and returns one tensor.

Shape letters: B images, C channels, H W rows and columns, A anchors per cell, K classes, N sources, S stride.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.activations import build_activation


class Convolution(nn.Module):
    """Convolution, batch norm, activation, and Darknet's antialiasing blur, each where wanted.

    ``conv`` has a bias exactly where there is no batch norm; ``bn`` and ``blur`` are None where absent.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None, activation: str, blur: nn.Module | None = None):
        super().__init__()
        self.conv = conv
        self.bn = bn
        self.activation = build_activation(activation)
        self.blur = blur

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B C' H' W']."""
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        x = self.activation(x)
        return x if self.blur is None else self.blur(x)

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the batch norm's running statistics into the convolution; training is over for this copy."""
        if self.bn is None:
            return
        bn, old = self.bn, self.conv
        mean, variance = running_statistics(bn)
        scale = bn.weight.double() / (variance.double() + bn.eps).sqrt()
        # Without initial values: drawing some would change what the random generator gives next.
        self.conv = nn.utils.skip_init(
            type(old), old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation,
            old.groups, device=old.weight.device, dtype=old.weight.dtype,
        )  # fmt: skip
        self.conv.weight.copy_(old.weight.double() * scale[:, None, None, None])
        assert self.conv.bias is not None
        self.conv.bias.copy_(bn.bias.double() - mean.double() * scale)
        self.conv.train(old.training).requires_grad_(old.weight.requires_grad)
        self.bn = None


class BinaryConv2d(nn.Conv2d):
    """A convolution whose weights are their sign times each filter's mean size; for inference only."""

    def binarised(self) -> Tensor:
        """Return the weights as they are used, [out in rows cols]."""
        mean = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        return torch.where(self.weight > 0, mean, -mean)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B C' H' W']."""
        return self._conv_forward(x, self.binarised(), self.bias)


class XnorConv2d(BinaryConv2d):
    """Also the inputs are binary, -1 or 1; what lies outside of the map is -1, as in Darknet's bits."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B C' H' W']."""
        assert not isinstance(self.padding, str)
        rows, cols = self.padding
        x = functional.pad(torch.where(x > 0, 1.0, -1.0).to(x.dtype), (cols, cols, rows, rows), value=-1.0)
        return functional.conv2d(x, self.binarised(), self.bias, self.stride, 0, self.dilation, self.groups)


def running_statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the running means and variances of a batch norm, [C] each; in torch they are optional, here never None."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


class Pool(nn.Module):
    """Max or average pooling with Darknet's rule for the windows.

    The first window starts at ``-(padding // 2)``; there are ``(n + padding - size) // stride + 1`` of them along a
    side of n, so all surplus is at the right and bottom. What lies outside of the map counts as minus infinity for the
    maximum and is left out of averages.
    """

    def __init__(self, size: int, stride_xy: tuple[int, int], padding: int, average: bool = False):
        super().__init__()
        self.size = size
        self.stride_xy = stride_xy
        self.padding = padding
        self.average = average

    def output_side(self, side: int, stride: int) -> int:
        """Return how many windows there are along a side."""
        return (side + self.padding - self.size) // stride + 1

    def _borders(self, side: int, stride: int) -> tuple[int, int]:
        """Return how many cells the windows reach beyond a side's start and end."""
        before = self.padding // 2
        end = (self.output_side(side, stride) - 1) * stride + self.size - before
        return before, max(0, end - side)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B C H' W']."""
        rows, cols = x.shape[2:]
        left, right = self._borders(cols, self.stride_xy[0])
        top, bottom = self._borders(rows, self.stride_xy[1])
        stride = self.stride_xy[::-1]
        if self.average:
            return self._average(x, (left, right, top, bottom), stride)
        if left == right == top == bottom and 2 * left <= self.size:
            return functional.max_pool2d(x, self.size, stride, left)
        return functional.max_pool2d(functional.pad(x, (left, right, top, bottom), value=-torch.inf), self.size, stride)

    def _average(self, x: Tensor, borders: tuple[int, int, int, int], stride: tuple[int, int]) -> Tensor:
        """Return sums over the windows divided by how many cells of the map each window covers."""
        total = functional.avg_pool2d(functional.pad(x, borders), self.size, stride, divisor_override=1)
        ones = functional.pad(x.new_ones(1, 1, *x.shape[2:]), borders)
        return total / functional.avg_pool2d(ones, self.size, stride, divisor_override=1)

    def extra_repr(self) -> str:
        """Show the geometry."""
        return f"size={self.size}, stride_xy={self.stride_xy}, padding={self.padding}, average={self.average}"


class GlobalAverage(nn.Module):
    """Mean of every channel, [B C H W] -> [B C 1 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over rows and columns."""
        return x.mean(dim=(2, 3), keepdim=True)


class MaxDepth(nn.Module):
    """Maximum over every n-th channel: output channel g is the largest of the inputs g, g + n, g + 2n, ..."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B n H W]."""
        missing = -x.shape[1] % self.channels
        x = functional.pad(x, (0, 0, 0, 0, 0, missing), value=-torch.inf) if missing else x
        return x.unflatten(1, (-1, self.channels)).amax(dim=1)


class Blur(nn.Module):
    """Darknet's antialiasing: a fixed binomial filter of 3 x 3 or 2 x 2 cells that takes the strides of its layer."""

    KERNELS = ((0.5, 0.5), (0.25, 0.5, 0.25))
    kernel: Tensor  # [C 1 size size]

    def __init__(self, channels: int, size: int, stride_xy: tuple[int, int]):
        super().__init__()
        self.stride_xy = stride_xy
        self.padding = 1 if size == 3 else 0
        line = torch.tensor(self.KERNELS[size - 2])
        self.register_buffer("kernel", torch.outer(line, line).repeat(channels, 1, 1, 1), persistent=False)

    def output_side(self, side: int, stride: int) -> int:
        """Return how many cells are left along a side."""
        return (side + 2 * self.padding - self.kernel.shape[-1]) // stride + 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B C H' W']."""
        return functional.conv2d(x, self.kernel, None, self.stride_xy[::-1], self.padding, groups=x.shape[1])


class Reorg(nn.Module):
    """Cells to channels: S x S cells of one channel become S² channels of one cell; ``reverse`` goes the other way.

    ``flat=False`` (``[reorg3d]``): output channel ``(dy S + dx) C + c`` is input channel c at row offset dy, column
    offset dx. ``flat=True`` (``[reorg]``): Darknet's first version reads the memory of the input as if it were a map of
    C/S² channels of SH x SW cells; networks were trained with it, so it stays. Darknet's reversed layers are exchanged:
    a reversed ``[reorg3d]`` undoes ``[reorg]``, and a reversed ``[reorg]`` undoes ``[reorg3d]``.
    """

    def __init__(self, stride: int, reverse: bool, flat: bool):
        super().__init__()
        self.stride = stride
        self.reverse = reverse
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B CS² H/S W/S]; reversed to [B C/S² SH SW]."""
        batch, channels, rows, cols = x.shape
        stride, square = self.stride, self.stride**2
        if self.reverse:
            output = (channels // square, rows * stride, cols * stride)
        else:
            output = (channels * square, rows // stride, cols // stride)
        # The memory is read and written as maps of two shapes: many channels (these three) and 1/S² as many, S x S as
        # many cells.
        depth, height, width = (channels, rows, cols) if self.flat else output
        if self.reverse:  # B dy dx depth/S² height width -> B depth/S² height dy width dx
            x = x.reshape(batch, stride, stride, depth // square, height, width).permute(0, 3, 4, 1, 5, 2)
        else:  # B depth/S² height dy width dx -> B dy dx depth/S² height width
            x = x.reshape(batch, depth // square, height, stride, width, stride).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(batch, *output)


class Upsample(nn.Module):
    """Repeat every cell S x S times, and multiply by ``scale``."""

    def __init__(self, stride: int, scale: float = 1.0):
        super().__init__()
        self.stride = stride
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B C SH SW]."""
        x = functional.interpolate(x, scale_factor=float(self.stride), mode="nearest")
        return x if self.scale == 1.0 else x * self.scale


class Route(nn.Module):
    """Concatenate channels; with groups, only part ``group_id`` of each source."""

    def __init__(self, groups: int = 1, group_id: int = 0):
        super().__init__()
        self.groups = groups
        self.group_id = group_id

    def forward(self, *sources: Tensor) -> Tensor:
        """Map [B C1 H W], [B C2 H W], ... to [B (C1 + C2 + ...) / groups H W]."""
        if self.groups > 1:
            sources = tuple(x.chunk(self.groups, dim=1)[self.group_id] for x in sources)
        return sources[0] if len(sources) == 1 else torch.cat(sources, dim=1)


class Shortcut(nn.Module):
    """Sum of the sources in the shape of the first; of the others, the channels that the first has, too.

    ``weights`` is None, [N] (per_feature) or [N C] (per_channel); ``normalization``, "relu" or "softmax", makes them
    sum to 1 over the sources. They start at 1, as in Darknet.
    """

    def __init__(self, activation: str, weights_shape: tuple[int, ...] = (), normalization: str = "none"):
        super().__init__()
        self.activation = build_activation(activation)
        self.weights = nn.Parameter(torch.ones(weights_shape)) if weights_shape else None
        self.normalization = normalization

    def factors(self) -> Tensor:
        """Return the normalised weights, [N 1 1] or [N C 1 1]."""
        assert self.weights is not None
        weights: Tensor = self.weights
        if self.normalization == "relu":
            weights = weights.relu()
            weights = weights / (weights.sum(dim=0, keepdim=True) + 1e-4)
        elif self.normalization == "softmax":
            weights = (weights - weights.amax(dim=0, keepdim=True)).exp()
            weights = weights / (weights.sum(dim=0, keepdim=True) + 1e-4)
        return weights[..., None, None]

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Add [B C H W] tensors; the others may have more or fewer channels."""
        factors = None if self.weights is None else self.factors().to(first.dtype)
        total = first if factors is None else first * factors[0]
        channels = first.shape[1]
        for number, other in enumerate(others, start=1):
            shared = min(channels, other.shape[1])
            other = other[:, :shared]
            if factors is not None:
                other = other * (factors[number][:shared] if factors.dim() == 4 else factors[number])
            if shared < channels:
                other = functional.pad(other, (0, 0, 0, 0, 0, channels - shared))
            total = total + other
        return self.activation(total)


class Product(nn.Module):
    """Product of two maps, either of which may be one number per channel or one per cell."""

    def __init__(self, activation: str):
        super().__init__()
        self.activation = build_activation(activation)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply with broadcasting to [B C H W]."""
        return self.activation(first * second)


class Sum(nn.Module):
    """Sum of a map and a vector of one number per channel."""

    def __init__(self, activation: str):
        super().__init__()
        self.activation = build_activation(activation)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Add with broadcasting to [B C H W]."""
        return self.activation(first + second)


class Implicit(nn.Module):
    """Trained numbers that do not depend on the image (YOLOR, arXiv 2105.04206): atoms of C channels each."""

    def __init__(self, channels: int, atoms: int, mean: float, std: float, uniform: bool):
        super().__init__()
        start = torch.empty(1, channels, atoms, 1)
        self.weights = nn.Parameter(start.uniform_(-std, std) + mean if uniform else start.normal_(mean, std))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B C atoms 1]; the input only says how many images there are."""
        return self.weights.expand(x.shape[0], -1, -1, -1)


class DropBlock(nn.Module):
    """In training, sets one square of a channel to 0, so often that a share ``probability`` is lost on average.

    DropBlock (arXiv 1810.12890) in Darknet's form: one square at most per channel, and what is left of the image scaled
    up to compensate. Darknet also lets the squares grow during training; here they have their full size from the start.
    """

    def __init__(self, probability: float, size: int, share: float):
        super().__init__()
        self.probability = probability
        self.size = size  # cells, 0 where ``share`` counts
        self.share = share  # of the side

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to the same shape."""
        if not self.training or self.probability == 0:
            return x
        batch, channels, rows, cols = x.shape
        height, width = (min(n, self.size or max(1, int(n * self.share))) for n in (rows, cols))
        shape = (batch, channels, 1, 1)
        # Drawn per channel: whether a square is dropped, and where it lies.
        dropped = torch.rand(shape, device=x.device) < self.probability * rows * cols / (height * width)
        top = torch.randint(rows - height + 1, shape, device=x.device)
        left = torch.randint(cols - width + 1, shape, device=x.device)
        row = torch.arange(rows, device=x.device)[:, None]
        col = torch.arange(cols, device=x.device)
        inside = (row >= top) & (row < top + height) & (col >= left) & (col < left + width)
        keep = ~(inside & dropped)
        share = keep.mean(dim=(1, 2, 3), keepdim=True, dtype=x.dtype)  # B 1 1 1
        return x * keep / share.clamp(min=1e-3)


class Softmax(nn.Module):
    """Softmax over each group of an image's numbers; with ``spatial``, over the channels of every cell instead."""

    def __init__(self, groups: int, temperature: float, spatial: bool):
        super().__init__()
        self.groups = groups
        self.temperature = temperature
        self.spatial = spatial

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to the same shape."""
        if self.spatial:
            return (x / self.temperature).softmax(dim=1)
        return (x.reshape(x.shape[0], self.groups, -1) / self.temperature).softmax(dim=2).reshape(x.shape)


class YoloMap(nn.Module):
    """View a convolution's output as a raw map, without moving any data."""

    def __init__(self, num_anchors: int, num_classes: int):
        super().__init__()
        self.num_anchors = num_anchors
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """View [B A(5+K) H W] as [B A H W 5+K]."""
        batch, _, rows, cols = x.shape
        return x.view(batch, self.num_anchors, 5 + self.num_classes, rows, cols).permute(0, 1, 3, 4, 2)
