"""Masks and figures in the formats of other programs: COCO JSON, VOC PNG, pictures to look at."""
