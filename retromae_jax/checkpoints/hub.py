"""Models by name: a directory on disk, or a repository on the Hugging Face Hub; and models that go there."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

from retromae_jax.errors import InputError, one_line

# Everything that a model needs and nothing that could run code or be unpickled.
MODEL_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "README.md"]


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


def check_token() -> None:
    """Checks that there is a token to push with, before any work.

    Raises:
        InputError: if there is none.
    """
    if not huggingface_hub.get_token():
        raise InputError(
            "there is no token for the Hugging Face Hub; set HF_TOKEN to one that may write "
            "(https://huggingface.co/settings/tokens), or log in with `hf auth login`"
        )


def push(directory: Path, name: str, is_public: bool) -> str:
    """Uploads a directory to a repository on the Hub, which is made if it is missing; returns its address.

    What the repository has already and the directory has not stays there.

    Args:
        directory: an export.
        name: of the repository, `OWNER/NAME`, or `NAME` for one of the token's owner.
        is_public: whether everybody sees a repository that is made; the Hub leaves one that exists as it is.

    Raises:
        InputError: if the Hub does not take it, or cannot be reached.
    """
    try:
        repository = huggingface_hub.create_repo(name, private=not is_public, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=repository.repo_id, folder_path=directory, commit_message="Export")
    except (HTTPError, HFValidationError, OSError, RuntimeError) as error:  # the last of them by the Xet client
        raise InputError(
            f"{name!r} could not be pushed to the Hugging Face Hub: {one_line(error)}; the export is in {directory}; "
            "mend that and start the command again"
        ) from error
    return str(repository)
