"""What is in the package itself, so that it works without a download: a model, and a picture to show it.

gemlens-tiny/   the embedded model, in the layout of PaliGemma; its model card is README.md there
demo.png        what `gemlens demo` looks at: gemlens.scenes.scene.draw(DEMO_SEED, "test")
"""

from pathlib import Path

MODEL_NAME = "gemlens-tiny"  # opens the embedded model wherever a model is named
MODEL = Path(__file__).parent / MODEL_NAME
DEMO_SEED = 31713  # things that are there once and twice, and a word; chosen by eye, before there was a model
DEMO_PICTURE = Path(__file__).parent / "demo.png"
