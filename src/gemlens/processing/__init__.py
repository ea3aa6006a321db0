"""People <-> numbers: text to token ids and back. Processing knows no models."""
