"""The arithmetic: token ids, pixels, spans and a cache in, logits out. Models know no files, no text and no speed."""
