"""The documentation's code runs, its links lead somewhere, and the commands it names exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
FROM_HUB, PIPELINE, FROM_GGUF, FROM_NOTHING = CODE
REAL = ROOT / "real" / "gemma-3-270m-q4_k_m.gguf"


def run(code: str, folder: Path) -> None:
    """Runs code in a Python of its own, in a folder of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_model_without_files_trains_and_saves(tmp_path: Path) -> None:
    run(FROM_NOTHING.replace("/tmp/gemlens-example", str(tmp_path / "saved")), tmp_path)
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_the_readmes_model_of_a_repository_loads(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.model("gemma3-pictures").save_pretrained(tmp_path / "tiny")
    run(FROM_HUB.replace("google/gemma-3-4b-it", str(tmp_path / "tiny")), tmp_path)


def test_the_readmes_pipeline_answers(tmp_path: Path) -> None:
    for folder in ("processing", "pipelines"):
        sys.path.insert(0, str(ROOT / "tests" / folder))
    import small_checkpoints
    from PIL import Image

    folder = small_checkpoints.gemma3_pictures(tmp_path / "tiny")
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "cow.jpg")
    run(PIPELINE.replace("google/gemma-3-4b-it", str(folder)), tmp_path)


def test_the_page_about_boxes_runs(tmp_path: Path) -> None:
    codec = ROOT / "src" / "gemlens" / "assets" / "gemlens-tiny" / "mask_codec.npz"
    shutil.copy(codec, tmp_path / "mask_codec.npz")
    for code in code_of("boxes_and_masks.md"):
        run(code, tmp_path)
    assert (tmp_path / "found.png").exists()


def test_the_page_about_training_runs(tmp_path: Path) -> None:
    from training.small_run import data_file, model_folder

    folder, data = model_folder(tmp_path / "model"), data_file(tmp_path / "data")
    [code] = code_of("training.md")
    run(code.replace("google/paligemma2-3b-pt-224", str(folder)).replace("boxes.jsonl", str(data)), tmp_path)
    assert (tmp_path / "boxes" / "last" / "adapter_config.json").exists()


def code_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason="real/ has no Gemma 3 270M; run `make real`")
def test_the_readmes_gguf_file_answers(tmp_path: Path) -> None:
    run(FROM_GGUF.replace('"real"', repr(str(REAL.parent))), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_make_command_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        named = {word for words in re.findall(r"\bmake((?: [a-z]+)+)`", page.read_text()) for word in words.split()}
        assert named <= targets, page


def test_ci_calls_what_the_readme_tells() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "\nmake real\nmake lint types test\n" in script
    assert "`make real` and then `make lint types test`" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_the_source_that_pages_name_exist(page: Path) -> None:
    for path in re.findall(r"`((?:src|tests|benchmarks|docs|examples)/[\w./-]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_difference_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "differences.md").read_text()
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    rows = [line for line in page.splitlines() if line.startswith("|") and not line.startswith(("| what", "|---"))]
    assert rows
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        for name in named:
            assert f"def {name}(" in sources, name
