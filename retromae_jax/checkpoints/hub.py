"""Models by name: a directory on disk, or a repository on the Hugging Face Hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from retromae_jax.errors import InputError, one_line

# Everything that a model needs and nothing that could run code or be unpickled.
MODEL_FILES = ["*.json", "*.txt", "*.safetensors", "*.model"]


def resolve(name_or_directory: str) -> Path:
    """The local directory of a model: itself, or downloaded from the Hugging Face Hub.

    Raises:
        InputError: if it is neither a directory nor a model that the Hub gives.
    """
    directory = Path(name_or_directory).expanduser()
    if name_or_directory and directory.is_dir():
        return directory
    looks_like_path = name_or_directory.startswith((".", "/", "~")) or name_or_directory.count("/") > 1
    if not name_or_directory or looks_like_path or directory.exists():
        raise InputError(f"model directory {name_or_directory!r} does not exist")
    try:
        return Path(huggingface_hub.snapshot_download(name_or_directory, allow_patterns=MODEL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name_or_directory!r} is no directory here, and the Hugging Face Hub did not give it: {one_line(error)}"
        ) from error
