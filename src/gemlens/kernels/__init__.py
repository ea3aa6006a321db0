"""Arithmetic on weights as files store them: the block formats, their plain specification, and fast twins."""
