"""Scores: what a model says to the examples of a source, and how right that is.

score.py           Item (one answer), Score, and Metric: items -> Score
exact_match.py vqa.py anls.py relaxed.py      answers, each right, wrong or partly right
cider.py ptb.py    captions against captions; how they are cut into words
coco_map.py        found boxes against true ones, as COCO scores them
referring.py       one thing that was asked for: its box, its mask
perplexity.py      how probable the true answers are
counting.py        kinds of things and how many of each, in captions
metrics.py         all of them by name, and which one a prompt gets
found.py           answers -> boxes with scores

asking.py          examples -> what the model reads -> answers
run.py             a model, a source -> Report
results.py         a folder of results: lines that can be continued, a summary
page.py            the worst ones, as a page of pictures
bootstrap.py       an interval around a score
scenes.py          the six figures of the drawn world
"""
