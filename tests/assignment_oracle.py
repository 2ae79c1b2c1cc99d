"""The strategies in plain Python, one object and one slot at a time, in float64, to compare with.

A slot is (head, anchor, row, col). Results are dicts {(target, head, anchor, row, col): value that decided}. ``margin``
is the smallest distance of any decision from its threshold: below it, float32 and float64 may rightly disagree.
"""

from __future__ import annotations

import math

import numpy as np

F = np.float32


class Oracle:
    """One batch: targets as rows (image, label, x, y, w, h), raw maps as nested arrays [B A H W 5+C]."""

    def __init__(self, rows, raw_maps, heads):
        self.rows = [(int(b), int(c), *(float(F(v)) for v in box)) for b, c, *box in rows]
        self.raw_maps = [np.asarray(raw, dtype=np.float64) for raw in raw_maps]
        self.heads = heads
        self.shapes = [raw.shape[2:4] for raw in self.raw_maps]
        self.input_w = self.shapes[0][1] * heads[0].stride
        self.input_h = self.shapes[0][0] * heads[0].stride
        self.margin = math.inf

    # --- words

    def above(self, value, threshold):
        self.margin = min(self.margin, abs(value - threshold))
        return value > threshold

    def box(self, t):
        _, _, x, y, w, h = self.rows[t]
        x, y, w, h = x * self.input_w, y * self.input_h, w * self.input_w, h * self.input_h
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    def center(self, t, head):
        rows, cols = self.shapes[head]
        x, y = F(self.rows[t][2]) * F(cols), F(self.rows[t][3]) * F(rows)  # in float32, as training has them
        return (x + F(0.5), y + F(0.5)) if self.heads[head].is_dense else (x, y)

    def point(self, head, j, i):
        """Where the anchors of a cell stand, pixels: in its middle, of a dense head at the corner."""
        shift = 0.0 if self.heads[head].is_dense else 0.5
        return (i + shift) * self.heads[head].stride, (j + shift) * self.heads[head].stride

    def cell(self, t, head):
        (x, y), (rows, cols) = self.center(t, head), self.shapes[head]
        return min(max(math.floor(y), 0), rows - 1), min(max(math.floor(x), 0), cols - 1)

    def slots(self, head):
        rows, cols = self.shapes[head]
        for a in range(self.heads[head].num_anchors):
            for j in range(rows):
                for i in range(cols):
                    yield a, j, i

    def shape_iou(self, t, anchor_wh):
        w, h = self.rows[t][4] * self.input_w, self.rows[t][5] * self.input_h
        inter = min(w, anchor_wh[0]) * min(h, anchor_wh[1])
        return inter / (w * h + anchor_wh[0] * anchor_wh[1] - inter)

    def predicted(self, b, head, a, j, i):
        raw, spec = self.raw_maps[head][b, a, j, i], self.heads[head]
        if spec.is_dense:
            (pw, ph), (x, y) = spec.anchors_wh[a], self.point(head, j, i)
            x, y, w, h = x + raw[0] * pw, y + raw[1] * ph, pw * math.exp(raw[2]), ph * math.exp(raw[3])
            return x - w / 2, y - h / 2, x + w / 2, y + h / 2
        s, (pw, ph) = spec.scale_x_y, spec.anchors_wh[a]
        x = (sigmoid(raw[0]) * s - (s - 1) / 2 + i) * spec.stride
        y = (sigmoid(raw[1]) * s - (s - 1) / 2 + j) * spec.stride
        if spec.new_coords:
            w, h = pw * (2 * sigmoid(raw[2])) ** 2, ph * (2 * sigmoid(raw[3])) ** 2
        else:
            w, h = pw * min(math.exp(raw[2]), 1e3), ph * min(math.exp(raw[3]), 1e3)
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    def quality(self, t, slot, kind="iou"):
        return iou(self.predicted(self.rows[t][0], *slot), self.box(t), kind)

    def candidates(self, t, kind):
        for head in range(len(self.heads)):
            row, col = self.cell(t, head)
            for a, j, i in self.slots(head):
                near = max(abs(j - row), abs(i - col))
                if kind == "map" or near <= {"cell": 0, "neighbours": 1}[kind]:
                    yield head, a, j, i

    # --- strategies that look at priors

    def standard(self, iou_t=0.2, only_best=False):
        found = {}
        for t in range(len(self.rows)):
            for number, head in enumerate(self.heads):
                ious = [self.shape_iou(t, wh) for wh in head.anchors_wh]
                for a, value in enumerate(ious):
                    if only_best and a != self.first_largest(ious):
                        continue
                    if self.above(value, iou_t):
                        found[(t, number, a, *self.cell(t, number))] = value
        return found

    def first_largest(self, values):
        best = max(values)
        others = [best - value for value in values if value < best]
        self.margin = min([self.margin, *others])
        return values.index(best)

    def ratio(self, anchor_t=4.0):
        found = {}
        for t, row in enumerate(self.rows):
            w, h = row[4] * self.input_w, row[5] * self.input_h
            for number, head in enumerate(self.heads):
                rows, cols = self.shapes[number]
                x, y = self.center(t, number)
                cells = {self.cell(t, number)}
                tests = (  # (fraction, distance to that border, offset)
                    (x % 1, x, (1, 0)), (y % 1, y, (0, 1)),
                    ((F(cols) - x) % 1, F(cols) - x, (-1, 0)), ((F(rows) - y) % 1, F(rows) - y, (0, -1)),
                )  # fmt: skip
                for fraction, room, (dx, dy) in tests:
                    if fraction < 0.5 and room > 1:
                        i, j = math.floor(x - F(0.5) * F(dx)), math.floor(y - F(0.5) * F(dy))
                        cells.add((min(max(j, 0), rows - 1), min(max(i, 0), cols - 1)))
                for a, (pw, ph) in enumerate(head.anchors_wh):
                    worst = max(w / pw, pw / w, h / ph, ph / h)
                    if not self.above(worst, anchor_t):
                        for j, i in cells:
                            found[(t, number, a, j, i)] = self.shape_iou(t, (pw, ph))
        return found

    def darknet(self, iou_t=None):
        found = {}
        for t in range(len(self.rows)):
            for number, head in enumerate(self.heads):
                best = self.first_largest([self.shape_iou(t, wh) for wh in head.all_anchors_wh])
                limit = head.iou_thresh if iou_t is None else iou_t
                for a, anchor_number in enumerate(head.mask):
                    value = self.shape_iou(t, head.anchors_wh[a])
                    if anchor_number == best or (limit < 1 and self.above(value, limit)):
                        found[(t, number, a, *self.cell(t, number))] = value
        return found

    def fallback(self, base):
        found = dict(base)
        for t in range(len(self.rows)):
            if not any(key[0] == t for key in base):
                everyone = [(n, a) for n, head in enumerate(self.heads) for a in range(head.num_anchors)]
                values = [self.shape_iou(t, self.heads[n].anchors_wh[a]) for n, a in everyone]
                number, a = everyone[self.first_largest(values)]
                found[(t, number, a, *self.cell(t, number))] = max(values)
        return found

    def atss(self, closest=9):
        found = {}
        for t in range(len(self.rows)):
            ious, inside = {}, {}
            x1, y1, x2, y2 = self.box(t)
            for number, head in enumerate(self.heads):
                (x, y), (rows, cols) = self.center(t, number), self.shapes[number]
                cells = [(j, i) for j in range(rows) for i in range(cols)]
                away = [(F(i) + F(0.5) - x) ** 2 + (F(j) + F(0.5) - y) ** 2 for j, i in cells]
                order = sorted(range(len(cells)), key=lambda n: (away[n], n))
                for j, i in (cells[n] for n in order[:closest]):
                    cx, cy = self.point(number, j, i)
                    for a, (pw, ph) in enumerate(head.anchors_wh):
                        anchor = (cx - pw / 2, cy - ph / 2, cx + pw / 2, cy + ph / 2)
                        ious[(t, number, a, j, i)] = iou(anchor, (x1, y1, x2, y2))
                        self.margin = min(self.margin, *(abs(v) for v in (cx - x1, cx - x2, cy - y1, cy - y2)))
                        inside[(t, number, a, j, i)] = x1 < cx < x2 and y1 < cy < y2
            limit = np.mean(list(ious.values())) + np.std(list(ious.values()), ddof=1)
            found |= {key: value for key, value in ious.items() if self.above(value, limit) and inside[key]}
        return self.one_target_per_slot(found, found)

    def maxiou(self, iou_t=0.5, background_iou=0.4):
        """The matches, and the slots (image, head, anchor, row, col) that are neither positive nor negative."""
        overlap = {}  # slot -> {target: IoU}
        for t in range(len(self.rows)):
            for number, head in enumerate(self.heads):
                for a, j, i in self.slots(number):
                    (pw, ph), (x, y) = head.anchors_wh[a], self.point(number, j, i)
                    value = iou((x - pw / 2, y - ph / 2, x + pw / 2, y + ph / 2), self.box(t))
                    if value > 0:
                        overlap.setdefault((self.rows[t][0], number, a, j, i), {})[t] = value
        highest = [max((v.get(t, 0.0) for v in overlap.values()), default=0.0) for t in range(len(self.rows))]
        # Anchors that lie inside an object have the same IoU with it, in any precision.
        away = [highest[t] - value for values in overlap.values() for t, value in values.items() if value != highest[t]]
        self.margin = min([self.margin, *away])
        found, undecided = {}, set()
        for slot, values in overlap.items():
            t = max(values, key=values.get)
            self.margin = min([self.margin, *(values[t] - value for other, value in values.items() if other != t)])
            if any(value == highest[u] for u, value in values.items()) or self.above(values[t], iou_t):
                found[(t, *slot[1:])] = values[t]
            elif self.above(values[t], background_iou):
                undecided.add(slot)
        return found, undecided

    def inside(self, t, head, j, i):
        (x, y), (x1, y1, x2, y2) = self.point(head, j, i), self.box(t)
        self.margin = min(self.margin, *(abs(value) for value in (x - x1, x - x2, y - y1, y - y2)))
        return x1 < x < x2 and y1 < y < y2

    def fcos(self, radius=1.5):
        found, score = {}, {}
        for t in range(len(self.rows)):
            x1, y1, x2, y2 = self.box(t)
            for number, head in enumerate(self.heads):
                low = 0 if number == 0 else 4 * head.stride
                high = math.inf if number == len(self.heads) - 1 else 8 * head.stride
                for a, j, i in self.slots(number):
                    x, y = self.point(number, j, i)
                    away = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                    far = max(x - x1, y - y1, x2 - x, y2 - y)
                    near = not self.above(away, radius * head.stride)
                    if self.inside(t, number, j, i) and near and self.above(far, low) and not self.above(far, high):
                        found[(t, number, a, j, i)], score[(t, number, a, j, i)] = 0.0, -(x2 - x1) * (y2 - y1)
        return self.one_target_per_slot(found, score)

    def one_target_per_slot(self, found, score):
        kept = {}
        for key in found:
            rivals = [other for other in found if self.slot(other) == self.slot(key) and other != key]
            if all(self.above(score[key], score[other]) for other in rivals):
                kept[key] = found[key]
        return kept

    def slot(self, key):
        return (self.rows[key[0]][0], *key[1:])

    # --- strategies that look at predictions

    def pure(self, candidates="cell", extra_iou=0.5, match_iou="iou"):
        found = {}
        for t in range(len(self.rows)):
            for slot in self.candidates(t, candidates):
                value = self.quality(t, slot, match_iou)
                if self.above(value, extra_iou):
                    found[(t, *slot)] = value
        return found

    def best_of(self, found, group_of, count):
        """The ``count`` best of each group."""
        kept = {}
        groups = {}
        for key in found:
            groups.setdefault(group_of(key), []).append(key)
        for keys in groups.values():
            keys.sort(key=lambda key: -found[key])
            if len(keys) > count > 0:
                self.margin = min(self.margin, found[keys[count - 1]] - found[keys[count]])
            kept |= {key: found[key] for key in keys[:count]}
        return kept

    def split(self, base, candidates="neighbours", extra_iou=0.5, match_iou="iou", **options):
        found = {key: v for key, v in self.pure(candidates, extra_iou, match_iou).items() if key not in base}
        if options.get("refilter"):
            worst = {}
            for key in base:
                worst[key[0]] = min(worst.get(key[0], math.inf), self.quality(key[0], key[1:], match_iou))
            found = {k: v for k, v in found.items() if k[0] not in worst or self.above(v, worst[k[0]])}
        if options.get("reduce_anchor"):
            found = self.best_of(found, lambda k: (k[0], k[1], k[3], k[4]), 1)
        if options.get("extra_topk") is not None:
            found = self.best_of(found, lambda k: k[0], options["extra_topk"])
        if options.get("assign_rate") is not None:
            found = self.best_of(found, lambda k: 0, math.floor(options["assign_rate"] * len(base) + 1e-6))
        return found

    def fast(self, base, candidates="map", extra_iou=0.5, match_iou="iou", **options):
        found = {key: v for key, v in self.pure(candidates, extra_iou, match_iou).items() if key not in base}
        if options.get("remove_duplicate"):
            taken = {self.slot(key) for key in base}
            found = self.best_of(found, self.slot, 1)
            found = {key: v for key, v in found.items() if self.slot(key) not in taken}
        if options.get("reduce_anchor"):
            best = {}
            for key, value in found.items():
                cell = (self.rows[key[0]][0], key[1], key[3], key[4])
                if cell in best and best[cell][1] != key[2]:
                    self.margin = min(self.margin, abs(value - best[cell][0]))
                if cell not in best or value > best[cell][0]:
                    best[cell] = (value, key[2])
            found = {k: v for k, v in found.items() if best[(self.rows[k[0]][0], k[1], k[3], k[4])][1] == k[2]}
        return found

    def simota(self, radius=2.5):
        found, costs = {}, {}
        for t, (b, label, *_) in enumerate(self.rows):
            values, cost = {}, {}
            for number in range(len(self.heads)):
                x, y = self.center(t, number)
                for a, j, i in self.slots(number):
                    away = max(abs(i + 0.5 - float(x)), abs(j + 0.5 - float(y)))
                    self.margin = min(self.margin, abs(away - radius) or math.inf)  # on the radius both round alike
                    if away < radius and (self.heads[number].has_anchors or self.inside(t, number, j, i)):
                        key = (t, number, a, j, i)
                        raw = self.raw_maps[number][b, a, j, i]
                        values[key] = self.quality(t, key[1:])
                        p = [sigmoid(c) * sigmoid(raw[4]) for c in raw[5:]]
                        p = p if self.heads[number].is_dense else [math.sqrt(value) for value in p]
                        entropy = sum(-math.log(q if c == label else 1 - q) for c, q in enumerate(p))
                        cost[key] = entropy - 3 * math.log(values[key] + 1e-8)
            total = sum(sorted(values.values(), reverse=True)[:10])
            if total > 1:
                self.margin = min(self.margin, total % 1, 1 - total % 1)
            order = sorted(cost, key=cost.get)
            k = max(1, math.floor(total))
            if len(order) > k:
                self.margin = min(self.margin, cost[order[k]] - cost[order[k - 1]])
            for key in order[:k]:
                found[key], costs[key] = values[key], -cost[key]
        return self.one_target_per_slot(found, costs)

    def tal(self, count=10):
        found = {}
        for t, (b, label, *_) in enumerate(self.rows):
            x1, y1, x2, y2 = self.box(t)
            score, values = {}, {}
            for number in range(len(self.heads)):
                for a, j, i in self.slots(number):
                    cx, cy = self.point(number, j, i)
                    self.margin = min(self.margin, *(abs(v) for v in (cx - x1, cx - x2, cy - y1, cy - y2)))
                    if x1 < cx < x2 and y1 < cy < y2:
                        raw = self.raw_maps[number][b, a, j, i]
                        key = (t, number, a, j, i)
                        values[key] = self.quality(t, key[1:])
                        score[key] = (sigmoid(raw[4]) * sigmoid(raw[5 + label])) ** 0.5 * values[key] ** 6
            order = sorted((key for key in score if score[key] > 0), key=lambda key: -score[key])
            if len(order) > count:  # relative, because the sixth power makes small numbers
                self.margin = min(self.margin, score[order[count - 1]] / score[order[count]] - 1)
            found |= {key: values[key] for key in order[:count]}
        return self.one_target_per_slot(found, found)

    # --- slots that are ignored

    def ignored(self, thresholds, crowd):
        """{(image, head, anchor, row, col)} of predictions too good, or too deep in a crowd, to be negatives."""
        found = set()
        regions = Oracle(crowd, self.raw_maps, self.heads) if crowd else None
        for number in range(len(self.heads)):
            for b in range(len(self.raw_maps[0])):
                for slot in self.slots(number):
                    mine = [t for t, row in enumerate(self.rows) if row[0] == b]
                    if thresholds and any(
                        self.above(self.quality(t, (number, *slot)), thresholds[number]) for t in mine
                    ):
                        found.add((b, number, *slot))
                    for r in [r for r, row in enumerate(regions.rows) if row[0] == b] if regions else []:
                        box = self.predicted(b, number, *slot)
                        area = (box[2] - box[0]) * (box[3] - box[1])
                        if self.above(intersection(box, regions.box(r)) / area, 0.5):
                            found.add((b, number, *slot))
        return found


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def intersection(a, b):
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def iou(a, b, kind="iou"):
    """IoU of two corner boxes, written out from the papers' formulas."""
    aw, ah, bw, bh = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
    inter = intersection(a, b)
    union = aw * ah + bw * bh - inter
    value = inter / union
    hull_w, hull_h = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    if kind == "giou":
        return value - (hull_w * hull_h - union) / (hull_w * hull_h)
    if kind in ("diou", "ciou"):
        rho2 = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
        value_d = value - rho2 / (hull_w**2 + hull_h**2)
        if kind == "diou":
            return value_d
        v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
        return value_d - (v * v / (1 - value + v) if v else 0.0)
    return value
