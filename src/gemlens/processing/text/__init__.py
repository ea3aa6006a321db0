"""Text <-> token ids: the tokenizers and streamed decoding."""
