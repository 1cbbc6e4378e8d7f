"""The package as it is imported, built and installed."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("retromae_jax", "train", "eval", "configs")


def run(*command: object, **options) -> str:
    """What a command prints; it must succeed."""
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_importing_the_package_needs_no_jax_and_its_names_no_device():
    code = (
        "import sys, retromae_jax\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
        "from retromae_jax import CrossEncoder, Encoder\n"
        "assert Encoder is retromae_jax.Encoder and not hasattr(retromae_jax, 'Encoders')\n"
    )
    # JAX would fail if it looked for a device of such a platform.
    run(sys.executable, "-c", code, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "none"})


@pytest.mark.long
def test_wheel_and_sdist_install_into_an_empty_environment(tmp_path, minilm_directory):
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    (wheel,), (sdist,) = ((tmp_path / "dist").glob(pattern) for pattern in ("*.whl", "*.tar.gz"))
    ours = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".typed")
    }
    assert {f"{package}/py.typed" for package in PACKAGES} < ours
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == ours
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert ours | {"LICENSE", "CHANGELOG.md", "Makefile", "docs/api.md", "tests/test_package.py"} < sources

    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    # Not from the checkout, and where there is no recipe.
    code = (
        "from retromae_jax import Encoder\n"
        f"print(Encoder.from_pretrained({str(minilm_directory)!r}).encode(['a text', 'another']).shape)\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert run(python, "-c", code, cwd=tmp_path, env=environment) == "(2, 384)\n"
    printed = run(python, "-m", "train.pretrain", "--help", cwd=tmp_path, env=environment)
    assert "batch_size (int, 256)" in printed
    code = "from train.command_line import load_recipe; print(load_recipe('configs/wiki.py:tiny').block_length)"
    assert run(python, "-c", code, cwd=tmp_path) == "32\n"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", sdist)
    assert run(python, "-m", "train.pretrain", "--help", cwd=tmp_path, env=environment) == printed
