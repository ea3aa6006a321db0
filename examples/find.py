"""Finds things in a picture, draws what was found and writes it as COCO JSON; with the embedded model unless told.

python examples/find.py [PICTURE ["cat ; dog" [MODEL]]]
"""

import json
import sys
from pathlib import Path

from gemlens import pipeline
from gemlens.assets import DEMO_PICTURE, MODEL_NAME
from gemlens.processing.pictures.pictures import open_picture
from gemlens.tasks.coco import FoundIn, to_coco
from gemlens.tasks.drawing import draw


def main(source: str = str(DEMO_PICTURE), labels: str = "butterfly ; cat ; heart", model: str = MODEL_NAME) -> None:
    picture = open_picture(source)
    find = pipeline("detect", model)
    findings = find(picture, labels)
    for finding in findings:
        box = finding.box
        edges = ", ".join(f"{edge:.0f}" for edge in (box.left, box.top, box.right, box.bottom))
        print(f"{finding.label} ({finding.score:.2f}): {edges}")
    draw(picture, findings).save("found.png")
    Path("found.json").write_text(json.dumps(to_coco([FoundIn(source, picture.size, findings)])))
    print("See found.png and found.json.")


if __name__ == "__main__":
    main(*sys.argv[1:])
