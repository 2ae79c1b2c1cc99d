"""``--score-mismatch``: do the scores of any detector's boxes rank them as their IoU does, and what does NMS lose?"""
