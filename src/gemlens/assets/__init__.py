"""What is in the package itself, so that it works without a download: a model, and a picture to show it.

gemlens-tiny/   the embedded model, in the layout of PaliGemma; its model card is README.md there
demo.png        what `gemlens demo` looks at: gemlens.scenes.scene.draw(DEMO_SEED, "test")
"""

from pathlib import Path

MODEL_NAME = "gemlens-tiny"  # opens the embedded model wherever a model is named
MODEL = Path(__file__).parent / MODEL_NAME
DEMO_SEED = 3096  # the first with four things or more of three kinds and a word of which the model says all right
DEMO_PICTURE = Path(__file__).parent / "demo.png"
