"""Text <-> meaning: prompts, boxes, masks, drawings. Knows no model.

labels.py             what may stand in a label, and the sign between two of them
prompts.py            what is wanted -> a prompt, and back
boxes.py              four <loc> tokens <-> a box in pixels of the original picture
findings.py           an answer with <loc> and <seg> tokens <-> findings: label, box, mask
mask_codec.py         sixteen <seg> codes <-> a mask of 64 x 64, a small network
masks.py              the same for a mask of the whole picture
drawing.py            findings drawn on their picture
rle.py coco.py        findings -> COCO JSON
mask_pictures.py      masks -> PNG
supervision_export.py findings -> the library supervision
"""
