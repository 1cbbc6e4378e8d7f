"""Checkpoints of a run on disk, each a directory under the number of its step.

Disks fill up, files rot, processes are killed at any moment. So a checkpoint appears under its name only when all of
it is written; older ones are removed only after that; one that cannot be saved costs nothing but itself; and each is
checked against its digests when it is read, so that a damaged one gives way to the one before.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from retromae_jax import hosts
from retromae_jax.checkpoints.digests import digests
from retromae_jax.errors import InputError, one_line
from retromae_jax.logging import say

DIGESTS = "digests"
# Names that directories have which are no checkpoints: while they are written, while they are removed, and when they
# were found to be damaged.
UNFINISHED, REMOVED, DAMAGED = ".orbax-checkpoint-tmp", ".removed", ".damaged"
# What saving raises when storage fails: the system's errors, and TensorStore's.
STORAGE_ERRORS = (OSError, ValueError, RuntimeError)


class CheckpointDirectory:
    """The checkpoints of a run.

    Args:
        path: their directory.
        names: of the trees of arrays that a checkpoint consists of.
        to_keep: older checkpoints are removed; None never removes or renames anything.

    Attributes:
        saved: step of the newest checkpoint that is whole as far as this process knows; None if there is none.
        failure: why the latest attempt to save failed; empty if it did not.
    """

    def __init__(self, path: Path, names: tuple[str, ...], to_keep: int | None = None):
        self.path, self.to_keep = path, to_keep
        self.saved: int | None = None
        self.failure = ""
        self._pending: int | None = None
        handlers = {name: ocp.StandardCheckpointHandler() for name in names}
        self._handler = ocp.CompositeCheckpointHandler(**handlers, **{DIGESTS: ocp.JsonCheckpointHandler()})
        self._checkpointer = ocp.AsyncCheckpointer(self._handler)

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        if not self.path.is_dir():
            return []
        return sorted(int(path.name) for path in self.path.iterdir() if path.name.isdecimal() and path.is_dir())

    def clear(self) -> None:
        """Removes what was left unfinished, by a failure or a killed process: it takes room.

        Raises:
            OSError: if the directory cannot be read.
        """
        if self.to_keep is not None:
            for path in list(self.path.iterdir()):
                if UNFINISHED in path.name or path.name.endswith(REMOVED):
                    shutil.rmtree(path, ignore_errors=True)

    # Saving.

    def save(self, step: int, items: Mapping[str, Any]) -> None:
        """Starts saving a checkpoint; `items`, by name, may be used on at once. A failure is said, not raised."""
        self.check(wait=True)
        if step == self.saved:
            return
        self._pending, self.failure = step, ""
        problem = self._why_not_writable() if hosts.is_first() else None
        # Orbax's processes would wait for one that cannot begin.
        if not hosts.all_hold(problem is None):
            self._fail(problem or "process 0 cannot write there")
            return
        try:
            trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            found = ocp.args.JsonSave({name: digests(tree) for name, tree in items.items()})
            self._checkpointer.save(self.path / str(step), args=ocp.args.Composite(**trees, **{DIGESTS: found}))
        except STORAGE_ERRORS as error:
            self._fail(_reason(error))

    def check(self, wait: bool = False) -> None:
        """Finds out what has become of the checkpoint that is being saved, if there is one; then removes older ones.

        Args:
            wait: until it is known.
        """
        if self._pending is None:
            return
        try:
            self._checkpointer.wait_until_finished() if wait else self._checkpointer.check_for_errors()
            is_saved = wait or (self.path / str(self._pending)).is_dir()
        except STORAGE_ERRORS as error:
            self._fail(_reason(error))
            return
        if is_saved:
            self.saved, self._pending = self._pending, None
            with contextlib.suppress(OSError):  # the next time, then
                self._remove_old()

    def _why_not_writable(self) -> str | None:
        # The directory is not made again: where a disk was mounted, that would fill the disk underneath.
        probe = self.path / f"writable{UNFINISHED}"
        try:
            self.clear()
            probe.mkdir(exist_ok=True)
            probe.rmdir()
        except OSError as error:
            return _reason(error)
        return None

    def _fail(self, reason: str) -> None:
        step, self._pending, self.failure = self._pending, None, reason
        # The same failure may come a second time, from the thread that writes descriptions: not to the next attempt.
        with contextlib.suppress(*STORAGE_ERRORS):
            self._checkpointer.wait_until_finished()
        kept = f"step {self.saved:,} remains the newest checkpoint" if self.saved else "there is no older checkpoint"
        say(
            f"the checkpoint of step {step:,} could not be saved in {self.path}: {reason}; {kept}; training goes on "
            "and tries again at the next"
        )

    def _remove_old(self) -> None:
        if self.to_keep is None or not hosts.is_first():
            return
        for step in self.steps()[: -self.to_keep]:
            removed = self.path / f"{step}{REMOVED}"
            # Under another name first: half a checkpoint must not look like a whole one.
            (self.path / str(step)).rename(removed)
            shutil.rmtree(removed, ignore_errors=True)

    # Reading.

    def restore(self, items: Mapping[str, Any], only: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is not damaged.

        Args:
            items: trees of arrays, or of what stands for them, with the shapes, dtypes and shardings wanted.
            only: step of the one checkpoint that will do; None takes any.

        Returns:
            Its step and trees; None if there is no checkpoint at all.

        Raises:
            InputError: if there are checkpoints, and none can be read.
        """
        problems: dict[int, str] = {}
        for step in self._steps_to_read(only):
            trees, saved, problem = self._read(step, items)
            # Digests of arrays that are split over hosts wait for all of them, so all must have read theirs.
            if hosts.all_hold(not problem):
                problem = _damage(trees, saved)
                if hosts.all_hold(not problem):
                    self._set_aside(problems, step)
                    self.saved = step
                    return step, trees
            problems[step] = problem or "another process found it damaged"
        if problems:
            listed = "".join(f"\n  step {step}: {problem}" for step, problem in problems.items())
            raise InputError(
                f"{self.path}: none of the checkpoints can be read; if the storage is as it should be, start again "
                f"with another --config.workdir:{listed}"
            )
        return None

    def structure(self, name: str, only: int | None = None) -> dict[str, Any]:
        """Shapes and dtypes of a tree of the newest checkpoint of which they can be read, by name.

        Args:
            name: of the tree.
            only: as for `restore`.

        Raises:
            InputError: if there is none.
        """
        for step in self._steps_to_read(only):
            # Damaged files make Orbax raise anything.
            with contextlib.suppress(Exception):
                return dict(ocp.StandardCheckpointHandler().metadata(self.path / str(step) / name).items())
        raise InputError(f"{self.path.parent}: the run has no checkpoint yet")

    def _steps_to_read(self, only: int | None) -> list[int]:
        return self.steps()[::-1] if only is None else [only]

    def _read(self, step: int, items: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, int]], str]:
        """Trees of a checkpoint, their digests when they were saved, and why they cannot be read, empty if they can."""
        directory = self.path / str(step)
        args = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in items.items()}
        has_digests = (directory / DIGESTS).is_dir()
        if has_digests:
            args[DIGESTS] = ocp.args.JsonRestore()
        else:
            say(f"{directory} is from before checkpoints had digests, and taken unchecked")
        try:
            # Not through the checkpointer, whose processes would wait for one that cannot read.
            found = self._handler.restore(directory, args=ocp.args.Composite(**args))
            saved = {name: dict(found[DIGESTS][name]) for name in items} if has_digests else {}
            return {name: found[name] for name in items}, saved, ""
        except Exception as error:  # damaged files make Orbax raise anything
            return {}, {}, _reason(error)

    def _set_aside(self, problems: Mapping[int, str], good: int) -> None:
        for step, problem in problems.items():
            say(f"{self.path / str(step)} is damaged: {problem}; step {good:,} is taken instead")
            if self.to_keep is not None and hosts.is_first():
                # Not removed: maybe it is the way to the storage that is damaged.
                damaged = self.path / f"{step}{DAMAGED}"
                shutil.rmtree(damaged, ignore_errors=True)
                (self.path / str(step)).rename(damaged)

    def close(self) -> None:
        """Waits until the checkpoint that is being saved is on disk."""
        self.check(wait=True)
        with contextlib.suppress(*STORAGE_ERRORS):  # of a failure that was said
            self._checkpointer.close()


def _damage(trees: Mapping[str, Any], saved: Mapping[str, dict[str, int]]) -> str:
    """Which array of a checkpoint is not that of which the digest was saved, empty if each is."""
    found = {name: digests(tree) for name, tree in trees.items()}
    for name, expected in saved.items():
        for path, digest in found[name].items():
            if expected.get(path) != digest:
                return f"{name} {path} is not what was saved"
    return ""


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _reason(error: Exception) -> str:
    """An error in one line of bearable length: TensorStore's messages describe all of an array's storage."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return one_line(error)
