"""Makes the artwork of gemlens.scenes anew, out of the packages it comes from; see NOTICE.

npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
pip install scikit-image==0.26.0 scikit-learn==1.9.1
python recipes/gemlens-tiny/bring_artwork.py package
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from gemlens.scenes.artwork import COLUMNS, FOLDER, SIDE
from gemlens.scenes.kinds import KINDS

LONGEST = 320
PHOTOGRAPHS = {
    "train": ["astronaut.png", "brick.png", "camera.png", "china.jpg", "grass.png", "gravel.png",
              "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "rocket.jpg"],
    "test": ["coffee.png", "coins.png", "flower.jpg", "retina.jpg"],
}  # fmt: skip


def main() -> None:
    """Writes the artwork."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked emoji-datasource-google")
    emoji = parser.parse_args().package / "img" / "google" / "64"
    sheet = Image.new("RGBA", (COLUMNS * SIDE, -(-len(KINDS) // COLUMNS) * SIDE))
    for number, kind in enumerate(KINDS):
        picture = Image.open(emoji / f"{kind.emoji}.png").convert("RGBA")
        sheet.paste(picture, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    sheet.save(FOLDER / "things.png", optimize=True)
    (FOLDER / "photographs").mkdir(exist_ok=True)
    for split, names in PHOTOGRAPHS.items():
        for name in names:
            picture = Image.open(_found(name)).convert("RGB")
            picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
            picture.save(FOLDER / "photographs" / f"{split}-{Path(name).stem}.jpg", quality=85, optimize=True)


def _found(name: str) -> Path:
    """Where an installed package has a photograph."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        if spec and spec.origin and (path := Path(spec.origin).parent / folder / name).exists():
            return path
    raise SystemExit(f"{name} is in none of the packages; install them as the docstring says.")


if __name__ == "__main__":
    main()
