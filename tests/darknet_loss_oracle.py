"""Darknet's delta of [region] and [Gaussian_yolo] in plain loops over plain numbers, by src/region_layer.c,
src/gaussian_yolo_layer.c and src/box.c of AlexeyAB/darknet 59596d7; nothing of ours is used.

A map is a list per image of numbers [channel][row][column]; a truth is (x, y, w, h, class), relative to the image.
"""

import math


def logistic(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def plain_iou(a, b):
    al, at, ar, ab = corners(a)
    bl, bt, br, bb = corners(b)
    width, height = min(ar, br) - max(al, bl), min(ab, bb) - max(at, bt)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def zeros_like(x):
    return [[[[0.0] * len(row) for row in channel] for channel in image] for image in x]


class Region:
    """One section; ``anchors`` in cells, ``tree`` the parent of every class or None."""

    def __init__(self, anchors, classes, tree=None, **keys):
        self.anchors, self.classes, self.tree = anchors, classes, tree
        defaults = {"thresh": 0.5, "bias_match": 0, "rescore": 0, "coord_scale": 1, "object_scale": 1,
                    "noobject_scale": 1, "class_scale": 1, "softmax": 1}  # fmt: skip
        self.key = defaults | keys

    def group(self, number):
        """The classes that share a softmax with this one: its neighbours of the same parent."""
        if self.tree is None:
            return range(self.classes)
        first = last = number
        while first > 0 and self.tree[first - 1] == self.tree[number]:
            first -= 1
        while last + 1 < self.classes and self.tree[last + 1] == self.tree[number]:
            last += 1
        return range(first, last + 1)

    def probabilities(self, numbers):
        """Each class's probability among its group."""
        if not self.key["softmax"] and self.tree is None:
            return [logistic(number) for number in numbers]
        found = []
        for number in range(self.classes):
            total = sum(math.exp(numbers[other] - numbers[number]) for other in self.group(number))
            found.append(1 / total)
        return found

    def delta(self, x, truths, warm_up=False):
        result = zeros_like(x)
        for image, image_truths, out in zip(x, truths, result, strict=True):
            self._image(image, image_truths, out, warm_up)
        return result

    def _slot(self, image, n, row, col):
        each = 5 + self.classes
        return [image[n * each + number][row][col] for number in range(each)]

    def _box(self, slot, n, row, col, rows, cols):
        w, h = self.anchors[n]
        return ((col + logistic(slot[0])) / cols, (row + logistic(slot[1])) / rows,
                math.exp(slot[2]) * w / cols, math.exp(slot[3]) * h / rows)  # fmt: skip

    def _pull(self, out, slot, n, row, col, wanted, scale):
        each = 5 + self.classes
        for number in range(4):
            if number < 2:
                p = logistic(slot[number])
                value = scale * (wanted[number] - p) * p * (1 - p)
            else:
                value = scale * (wanted[number] - slot[number])
            out[n * each + number][row][col] = value

    def _image(self, image, truths, out, warm_up):  # noqa: C901  (in the order of Darknet's loops)
        rows, cols, each = len(image[0]), len(image[0][0]), 5 + self.classes
        key = self.key
        for row in range(rows):
            for col in range(cols):
                for n in range(len(self.anchors)):
                    slot = self._slot(image, n, row, col)
                    box = self._box(slot, n, row, col, rows, cols)
                    best = max((plain_iou(box, truth[:4]) for truth in truths), default=0)
                    p = logistic(slot[4])
                    ignored = best > key["thresh"]
                    out[n * each + 4][row][col] = 0 if ignored else key["noobject_scale"] * (0 - p) * p * (1 - p)
                    if warm_up:
                        self._pull(out, slot, n, row, col, (0.5, 0.5, 0, 0), 0.01)
        for x, y, w, h, label in truths:
            row, col = int(y * rows), int(x * cols)
            best, chosen = 0, 0
            for n, anchor in enumerate(self.anchors):
                shape = (anchor[0] / cols, anchor[1] / rows)
                if not key["bias_match"]:
                    shape = self._box(self._slot(image, n, row, col), n, row, col, rows, cols)[2:]
                iou = plain_iou((0, 0, *shape), (0, 0, w, h))
                if iou > best:
                    best, chosen = iou, n
            slot = self._slot(image, chosen, row, col)
            anchor = self.anchors[chosen]
            wanted = (x * cols - col, y * rows - row, math.log(w * cols / anchor[0]), math.log(h * rows / anchor[1]))
            self._pull(out, slot, chosen, row, col, wanted, key["coord_scale"])
            iou = plain_iou(self._box(slot, chosen, row, col, rows, cols), (x, y, w, h))
            p = logistic(slot[4])
            aim = iou if key["rescore"] else 1
            out[chosen * each + 4][row][col] = key["object_scale"] * (aim - p) * p * (1 - p)
            probability = self.probabilities(slot[5:])
            node = label
            while node >= 0:
                for other in self.group(node):
                    value = key["class_scale"] * ((other == node) - probability[other])
                    out[chosen * each + 5 + other][row][col] = value
                node = -1 if self.tree is None else self.tree[node]


class Gaussian:
    """One section; ``anchors`` in network pixels, all of the list; ``net`` is (width, height)."""

    def __init__(self, anchors, mask, classes, net, **keys):
        self.anchors, self.mask, self.classes, self.net = anchors, mask, classes, net
        defaults = {"ignore_thresh": 0.5, "iou_thresh": 1, "iou_loss": "mse", "iou_normalizer": 0.75, "scale_x_y": 1,
                    "uc_normalizer": 1, "obj_normalizer": 1, "label_smooth_eps": 0, "max_delta": math.inf}  # fmt: skip
        self.key = defaults | keys

    def delta(self, x, truths):
        result = zeros_like(x)
        for image, image_truths, out in zip(x, truths, result, strict=True):
            self._image(image, image_truths, out)
        return result

    def _activated(self, image, n, row, col):
        each = 9 + self.classes
        slot = [image[n * each + number][row][col] for number in range(each)]
        for number in range(each):
            if number not in (4, 6):
                slot[number] = logistic(slot[number])
        scale = self.key["scale_x_y"]
        for number in (0, 2):
            slot[number] = slot[number] * scale - 0.5 * (scale - 1)
        return slot

    def _box(self, slot, n, row, col, rows, cols):
        w, h = self.anchors[self.mask[n]]
        return ((col + slot[0]) / cols, (row + slot[2]) / rows,
                math.exp(slot[4]) * w / self.net[0], math.exp(slot[6]) * h / self.net[1])  # fmt: skip

    def _image(self, image, truths, out):  # noqa: C901
        rows, cols, each, key = len(image[0]), len(image[0][0]), 9 + self.classes, self.key
        for row in range(rows):
            for col in range(cols):
                for n in range(len(self.mask)):
                    slot = self._activated(image, n, row, col)
                    box = self._box(slot, n, row, col, rows, cols)
                    best = max((plain_iou(box, truth[:4]) for truth in truths), default=0)
                    ignored = best > key["ignore_thresh"] and max(slot[9:]) > 0.25
                    out[n * each + 8][row][col] = 0 if ignored else key["obj_normalizer"] * (0 - slot[8])
        for truth in truths:
            shapes = [(0, 0, w / self.net[0], h / self.net[1]) for w, h in self.anchors]
            ious = [plain_iou(shape, (0, 0, *truth[2:4])) for shape in shapes]
            best = ious.index(max(ious))
            row, col = int(truth[1] * rows), int(truth[0] * cols)
            for number, iou in enumerate(ious):
                if number in self.mask and (number == best or iou > key["iou_thresh"]):
                    self._learn(image, out, truth, self.mask.index(number), row, col)
        for row in range(rows):
            for col in range(cols):
                for n in range(len(self.mask)):
                    pulled_up = sum(out[n * each + 9 + c][row][col] > 0 for c in range(self.classes))
                    for number in range(8):
                        out[n * each + number][row][col] /= max(1, pulled_up)

    def _learn(self, image, out, truth, n, row, col):
        rows, cols, each, key = len(image[0]), len(image[0][0]), 9 + self.classes, self.key
        slot = self._activated(image, n, row, col)
        w, h = self.anchors[self.mask[n]]
        wanted = (truth[0] * cols - col, truth[1] * rows - row,
                  math.log(truth[2] * self.net[0] / w), math.log(truth[3] * self.net[1] / h))  # fmt: skip
        delta = [0.0] * 8
        for number in range(4):
            mean, sigma = slot[2 * number], slot[2 * number + 1]
            error = (wanted[number] - mean) / sigma
            density = math.exp(-(error**2) / 2) / (math.sqrt(2 * math.pi) * (sigma + 0.3))
            factor = density / (density + 1e-9) / 2 * (2 - truth[2] * truth[3])
            delta[2 * number] = factor * error / sigma
            delta[2 * number + 1] = factor * (error**2 / sigma - 1 / (sigma + 0.3))
        if key["iou_loss"] != "mse":
            pull = iou_pull(self._box(slot, n, row, col, rows, cols), truth[:4], key["iou_loss"])
            delta[0], delta[2] = pull[0], pull[1]
            delta[4], delta[6] = pull[2] * math.exp(slot[4]), pull[3] * math.exp(slot[6])
        for number in range(8):
            factor = key["uc_normalizer"] if number % 2 else key["iou_normalizer"]
            value = min(max(delta[number] * factor, -key["max_delta"]), key["max_delta"])
            out[n * each + number][row][col] += value
        out[n * each + 8][row][col] = key["obj_normalizer"] * (1 - slot[8])
        label, half = int(truth[4]), key["label_smooth_eps"] / 2
        taught = any(out[n * each + 9 + c][row][col] for c in range(self.classes))
        for c in range(self.classes):
            if c == label or not taught:
                aim = 1 - half if c == label else half
                out[n * each + 9 + c][row][col] = aim - slot[9 + c]


def iou_pull(box, truth, kind):
    """What dx_box_iou gives for x, y, w and h."""
    left, top, right, bottom = corners(box)
    tl, tt, tr, tb = corners(truth)
    area, true_area = box[2] * box[3], truth[2] * truth[3]
    iw, ih = min(right, tr) - max(left, tl), min(bottom, tb) - max(top, tt)
    inner = iw * ih
    union = area + true_area - inner
    cw, ch = max(right, tr) - min(left, tl), max(bottom, tb) - min(top, tt)
    hull = cw * ch
    # Slopes in left, top, right, bottom.
    of_area = (-box[3], -box[2], box[3], box[2])
    of_inner = (-ih * (left > tl), -iw * (top > tt), ih * (right < tr), iw * (bottom < tb))
    of_union = [a - i for a, i in zip(of_area, of_inner, strict=True)]
    of_hull = (-ch * (left < tl), -cw * (top < tt), ch * (right > tr), cw * (bottom > tb))
    apart = iw <= 0 or ih <= 0
    pull = [(union * i - inner * u) / union**2 if union > 0 else 0 for i, u in zip(of_inner, of_union, strict=True)]
    if kind != "iou" and apart:
        pull = [0.0] * 4
    if kind == "giou":
        pull = [p + (hull * u - union * c) / hull**2 for p, u, c in zip(pull, of_union, of_hull, strict=True)]
    result = [pull[0] + pull[2], pull[1] + pull[3], pull[2] - pull[0], pull[3] - pull[1]]
    if kind in ("diou", "ciou"):
        square = (box[0] - truth[0]) ** 2 + (box[1] - truth[1]) ** 2
        diagonal = cw * cw + ch * ch
        for axis, size, low, high in ((0, cw, left < tl, right > tr), (1, ch, top < tt, bottom > tb)):
            of_place, of_size = high - low, 0.5 * (high + low)
            result[axis] += (2 * (truth[axis] - box[axis]) * diagonal - 2 * size * of_place * square) / diagonal**2
            result[axis + 2] += 2 * size * of_size * square / diagonal**2
    if kind == "ciou":
        angle = math.atan(truth[2] / truth[3]) - math.atan(box[2] / box[3])
        penalty = 4 / math.pi**2 * angle**2
        alpha = penalty / (1 - inner / union + penalty + 1e-6)
        result[2] += alpha * 8 / math.pi**2 * angle * box[3]
        result[3] -= alpha * 8 / math.pi**2 * angle * box[2]
    return result
