"""Any picture -> pixels: opening behind limits, image processors, pan and scan."""
