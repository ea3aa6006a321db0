"""Builds the kernels with the address and undefined-behaviour sanitizers and runs their tests on that build.

make sanitize
"""

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitized"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
NAME = "gemlens.kernels._cpu"


def build() -> Path:
    """The compiled module."""
    import nanobind

    source = ROOT / "src" / "gemlens" / "kernels" / "cpu"
    settings = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS": FLAGS,
        "nanobind_DIR": nanobind.cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
    }
    cmake = [Path(sys.executable).parent / "cmake"]
    subprocess.run(
        [*cmake, "-S", source, "-B", BUILD, *(f"-D{name}={value}" for name, value in settings.items())], check=True
    )
    subprocess.run([*cmake, "--build", BUILD, "--parallel", str(os.cpu_count())], check=True)
    return next(BUILD.glob("_cpu*.so"))


def run(module: Path) -> int:
    """The tests' exit status, with the module in the place of the installed one."""
    import pytest

    spec = spec_from_file_location(NAME, module)
    sys.modules[NAME] = loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    elsewhere = [Path("quantization", "test_fused_patches.py"), Path("processing", "test_piece_tokenizer.py")]
    tests = [*Path(__file__).parent.glob("test_*.py"), *(ROOT / "tests" / test for test in elsewhere)]
    return pytest.main(["-q", "-p", "no:cacheprovider", *map(str, tests)])


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit(run(Path(sys.argv[1])))
    module = build()
    # The second library lets the first see exceptions, which torch throws where an operator is checked.
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    # Python keeps what it has until it ends, which would be told as leaks.
    sanitizers = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, __file__, module]
    sys.exit(subprocess.run(command, env={**os.environ, **sanitizers}, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
