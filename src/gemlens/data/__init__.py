"""Examples to learn from and to be scored on, from files in the formats that people have.

example.py           Example, and Source: a numbered row of them
sources.py           a path or a name -> Source, with these formats:
jsonl.py             rows as JSON, one per line or in a list
folder.py            pictures with texts: CSV, or a file beside each
parquet.py coco.py   (coco.py with polygons.py)
rows.py chats.py     a row -> Example
picture_folder.py    names of pictures -> files, none outside their folder
where.py             the place of a value, for every sentence
mixture.py           several sources as one
check.py preview.py  what is wrong with a source, and how it looks
"""
