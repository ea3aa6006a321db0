"""What a model is, as numbers. Nothing here needs torch, so a config can be read without loading it.

pretrained.py    what every config can do: defaults, aliases, unknown keys, files
rope.py          rotary frequencies as a value: base period and one of six scalings
text.py          GemmaConfig, Gemma2Config, Gemma3TextConfig
siglip.py        SiglipVisionConfig
multimodal.py    PaliGemmaConfig, Gemma3Config
"""
