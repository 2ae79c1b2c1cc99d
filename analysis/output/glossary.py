"""What the columns of the tables hold, for the explanations in a report; docs/analysis.md has the exact definitions.

A table can say it better than this for a column of its own: ``Table.explanations``.
"""

from __future__ import annotations

import re

GLOSSARY = {
    # names of rows
    "statistic": "what is counted",
    "kind": "which relation of two objects, or which kind of object",
    "definition": "the rule by which it is told",
    "name": "the class",
    "class": "the class of the objects",
    "size": "COCO's sizes: small below 32 x 32 pixels, large from 96 x 96 on",
    "elongation": "max(w/h, h/w) of the box",
    "occlusion": "largest share of the box that any one other box covers",
    "matches": "matches among the candidates, by default the slots of the cell of the object's centre",
    "strategy": "the rule that decides which slot learns from which object",
    "rule": "which part of the strategy makes the match",
    "head": "number of the head; each predicts on a grid of its own",
    "anchor": "number of the anchor within its head",
    "quantity": "what was measured on every object",
    "confidence": "objectness alone, or the score: objectness times class",
    "setting": "runs whose options differ in nothing but the seed",
    "run": "folder of the run",
    "runs": "how many runs there are of this setting",
    "match": "the strategy, --match",
    "α": "--alpha",
    "options": "other options that are not the same in all runs",
    "seed": "of the run's random numbers",
    "image": "id of the image",
    "image id": "id of the image",
    "annotation id": "id of the annotation",
    "file": "the image",
    # counts
    "count": "how many there are",
    "pairs": "pairs of objects in one image",
    "images": "images that have at least one of these",
    "objects": "objects of the annotations; crowd regions are none",
    "crowd": "crowd regions: many objects under one box",
    "small": "objects below 32 x 32 pixels",
    "medium": "objects from 32 x 32 to below 96 x 96 pixels",
    "large": "objects of 96 x 96 pixels and more",
    "elongated": "objects whose longer side is at least --elongation times the shorter one",
    "positives": "slots that learn from an object: matches, counted over all objects",
    "slots": "different slots that are matched at all",
    "without a match": "objects that no slot learns from",
    "slots of several objects": "slots that are matched to more than one object",
    "base": "matches that the prior alone decides",
    "extra": "matches that the prediction adds",
    "feature maps": "images that have objects, times heads",
    "objects with both": "objects that have both matched and unmatched candidates",
    "of": "objects that were looked at",
    "epochs": "finished epochs",
    "unmatched > worst matched": "of these, an unmatched candidate predicts better than the worst matched one",
    "unmatched > best matched": "of these, an unmatched candidate predicts better than every matched one",
    "with unmatched > worst": "maps with an object of which an unmatched candidate beats the worst matched one",
    "with unmatched > best": "maps with an object of which an unmatched candidate beats every matched one",
    "best box is not the most confident": "objects whose best predicted box is not the one with the highest confidence",
    # shares
    "share of pairs": "of all pairs of objects in one image",
    "share of images": "of all images that have objects",
    "share of objects": "of all objects",
    "share without": "objects without a match, of all objects of the row",
    "share without a match": "objects without a match, of all objects of the row",
    "share of slots": "slots of several objects, of all matched slots",
    "share of surplus matches": "matches beyond one per slot, of all matches",
    "share of these": "of the objects that have both matched and unmatched candidates",
    "share of them": "of the objects that have both matched and unmatched candidates",
    "share best from a neighbour": "objects whose best prediction comes from a cell beside that of their centre",
    "share of maps": "of all feature maps",
    "share of all maps": "of all feature maps",
    "share of its unmatched": "as a share of this anchor's unmatched candidates",
    "share of its matched": "as a share of this anchor's matched candidates",
    "share of positives contested": "matches whose slot is matched to another object, too",
    "share suppressed": "objects that were found, but removed by NMS for the box of another object",
    # means
    "mean": "over all objects",
    "std": "standard deviation over all objects",
    "mean_relative_size": "mean of sqrt(w h / (W H)): box and image as squares, side over side",
    "positives per object": "mean number of matched slots",
    "mean shape IoU": "mean IoU of anchor and object as if they had one centre",
    "best shape IoU": "highest IoU of an anchor and the object as if they had one centre",
    "mean q matched": "mean IoU of what the matched slots predict with their objects",
    "mean q of candidates": "mean IoU of what all candidates of this anchor predict with the objects, matched or not",
    "mean IoU ratio": "IoU of the most confident slot's box over that of the best one, mean over the objects",
    "best unmatched": "how often this anchor has an object's best unmatched candidate, where that beats every match",
    "worst matched": "how often this anchor has the worst matched candidate of such an object",
    "ms per batch": "time that the matching of a batch takes",
    # sizes
    "stride": "pixels of the network input per cell",
    "width": "pixels of the network input",
    "height": "pixels of the network input",
    # loss of single images
    "box": "part of the training loss: boxes",
    "obj": "part of the training loss: objectness",
    "cls": "part of the training loss: class",
    "total": "sum of the parts of the training loss",
    "IoU": "which kind of IoU says how well a prediction fits",
}
PATTERNS = {  # of headings that have a name in them
    r"mean \w+ of positives": "mean IoU (of this kind) of what the matched slots predict with their objects",
    r"share best \w+ not highest objectness": "objects whose best predicted box is not the most confident one",
    r"mAP\S* max": "highest of the evaluated epochs",
    r"mAP\S* mean": "mean over the evaluated epochs",
    r"mAP\S* std": "standard deviation over the evaluated epochs",
    r"mAP\S* best epoch": "the epoch of the highest, from 1",
}


def explained(heading: str) -> str:
    """Return what a column of this heading holds, "" where it is not known."""
    texts = (text for pattern, text in PATTERNS.items() if re.fullmatch(pattern, heading))
    return GLOSSARY.get(heading) or next(texts, "")
