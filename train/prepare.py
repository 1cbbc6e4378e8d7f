"""Turns raw text into the token blocks that train.pretrain reads.

    python -m train.prepare --config configs/wiki.py

Killed and started again, the same command goes on where it was. The output does not depend on
--config.workers.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tokenizers import Tokenizer

from configs import defaults
from retromae_jax.data.blocks import (
    DESCRIPTION,
    pack,
    partial_directory,
    write_blocks,
    write_description,
)
from retromae_jax.data.packing import SPECIAL_TOKENS
from retromae_jax.data.text import Document, Source, open_sources
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.files import locked
from retromae_jax.logging import Progress, duration, say, table
from train.command_line import parse_config

# Text is tokenized in parts of about this many characters: each is a worker's task and a file of the result.
CHARACTERS_PER_PART = 4_000_000
# Settings that decide the blocks. The tokenizer's name does not: its vocabulary does.
DECISIVE = ("sources", "text_field", "block_length", "pack_documents", "tokenizer_fingerprint")


def prepare(config: ConfigDict) -> None:
    """Makes the token blocks that `config` (see `configs.defaults`) describes in the directory `config.data`.

    Raises:
        InputError: if settings or text are bad, or the directory holds something else.
    """
    started = time.monotonic()
    if config.block_length <= SPECIAL_TOKENS:
        raise InputError(f"block_length {config.block_length} leaves no room for text beside [CLS] and [SEP]")
    if config.workers < 0:
        raise InputError(f"workers {config.workers} is negative; 0 takes one for each core")
    if not config.data:
        raise InputError("data is empty; name the directory for the token blocks: --config.data=data/blocks")
    directory = Path(config.data).expanduser().resolve()
    tokenizer, settings = _tokenizer_and_settings(config)

    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        _check_settings(directory, directory / DESCRIPTION, settings)
        say(f"{directory} is finished; remove it to make it anew")
        shutil.rmtree(partial_directory(directory), ignore_errors=True)
        return
    sources = open_sources(config.sources, config.text_field)
    workers = config.workers or _cores()
    try:
        _make(directory, sources, tokenizer, settings, workers)
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed, maybe for want of memory; start again with fewer --config.workers: what "
            "is done is kept"
        ) from None
    except OSError as error:
        raise InputError(f"{error}; what is done is kept: mend it and start again") from error
    _say_summary(directory, time.monotonic() - started)


def _tokenizer_and_settings(config: ConfigDict) -> tuple[str, dict[str, Any]]:
    """The tokenizer in its serialized form, and what `prepare.json` says of how the blocks are made."""
    # Worker processes import this module too and need not wait for transformers.
    from retromae_jax.data.tokenization import fingerprint, load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer or _tokenizer_of_model(config.init))
    settings = {
        "sources": list(config.sources),
        "text_field": config.text_field,
        "block_length": config.block_length,
        "pack_documents": config.pack_documents,
        "tokenizer": config.tokenizer or config.init,
        "tokenizer_fingerprint": fingerprint(tokenizer),
        "vocabulary_size": len(tokenizer),
    }
    return tokenizer.backend_tokenizer.to_str(), settings


def _tokenizer_of_model(name: str) -> str:
    """The directory in which training finds the tokenizer of the model to start from."""
    if not name:
        raise InputError("tokenizer and init are empty; name a tokenizer: --config.tokenizer=bert-base-uncased")
    # Imports JAX, which worker processes must not.
    from retromae_jax.checkpoints.loading import open_model

    return str(open_model(name, weights=False).tokenizer)


def _check_settings(directory: Path, description: Path, settings: Mapping[str, object]) -> None:
    """Refuses a directory that was made with other settings or by something else."""
    remedy = "remove it or choose another --config.data"
    try:
        earlier = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{directory}: exists and was not made by train.prepare; {remedy}") from None
    for name in DECISIVE:
        if earlier.get(name) != settings[name]:
            raise InputError(f"{directory}: was made with {name} {earlier.get(name)}, not {settings[name]}; {remedy}")


def _make(
    directory: Path, sources: Sequence[Source], tokenizer: str, settings: Mapping[str, Any], workers: int
) -> None:
    """Makes the blocks in a directory beside `directory` and renames it when all are there."""
    partial = partial_directory(directory)
    for folder in (partial / "blocks", partial / "counts"):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(partial / "lock") as is_alone:
        if not is_alone:
            raise InputError(f"{partial}: another train.prepare is at work there; wait for it or stop it")
        if (partial / "settings.json").exists():
            _check_settings(partial, partial / "settings.json", settings)
        else:
            _write_whole(partial / "settings.json", json.dumps(settings))

        maker = PartMaker(partial, tokenizer, settings["block_length"], settings["pack_documents"])
        parts = _make_parts(maker, sources, workers)
        counts = [maker.counts(number) for number in range(parts)]
        total = {name: sum(part[name] for part in counts) for name in ("documents", "empty", "blocks", "tokens")}
        total["dropped_tokens"] = sum(part["dropped_tokens"] for part in counts)
        total["longest"] = max((part["longest"] for part in counts), default=0)
        if not total["blocks"]:
            raise InputError(
                f"no text in {', '.join(source.name for source in sources)}: {total['documents']:,} documents, all "
                "empty; mend `sources` or `text_field`"
            )
        files = [maker.blocks_path(number) for number, part in enumerate(counts) if part["blocks"]]
        for leftover in set((partial / "blocks").iterdir()) - set(files):
            leftover.unlink()
        contents = json.dumps([settings, [part["digest"] for part in counts]])
        write_description(
            partial / "blocks",
            [file.name for file in files],
            hashlib.sha256(contents.encode()).hexdigest()[:16],
            {**settings, "counts": total},
        )
        os.rename(partial / "blocks", directory)
        shutil.rmtree(partial)


@dataclass(frozen=True)
class PartMaker:
    """Makes parts of the result: pure functions of their documents, written whole or not at all."""

    directory: Path
    tokenizer: str
    block_length: int
    pack_documents: bool

    def blocks_path(self, number: int) -> Path:
        return self.directory / "blocks" / f"data-{number:05d}.arrow"

    def counts_path(self, number: int) -> Path:
        return self.directory / "counts" / f"{number:05d}.json"

    def counts(self, number: int) -> dict:
        """What is in part `number`; empty if it is not made yet."""
        path = self.counts_path(number)
        return json.loads(path.read_text()) if path.exists() else {}

    def make(self, number: int, documents: Sequence[Document], first_document: int, digest: str) -> None:
        """Makes part `number`; its counts are written last and say that it is there."""
        tokenizer = _tokenizer(self.tokenizer)
        blocks, counts = pack(documents, tokenizer, self.block_length, self.pack_documents, first_document)
        unfinished = self.directory / f"{number:05d}.{os.getpid()}.unfinished"
        write_blocks(blocks, unfinished)
        os.replace(unfinished, self.blocks_path(number))
        _write_whole(self.counts_path(number), json.dumps({**counts, "digest": digest}))


@functools.lru_cache(maxsize=1)
def _tokenizer(serialized: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(serialized)
    # `[SEP]` in a text is text.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _make_parts(maker: PartMaker, sources: Sequence[Source], workers: int) -> int:
    """Makes all parts that are not there yet; returns how many parts the text has."""
    megabytes = max(1, round(sum(source.size for source in sources) / 1e6))
    done = parts = kept = 0
    with Progress("prepare", megabytes, "MB") as progress:

        def advance(size: int) -> None:
            nonlocal done
            done += size
            progress.update(min(done // 1_000_000, megabytes) - progress.done)

        def tasks() -> Iterator[tuple]:
            nonlocal parts, kept
            first_document = 0
            for number, (documents, size) in enumerate(_parts(sources)):
                parts += 1
                digest = _digest(documents, first_document)
                if maker.counts(number).get("digest") == digest:
                    kept += 1
                    advance(size)
                else:
                    # An older part of this number is void from here on.
                    maker.counts_path(number).unlink(missing_ok=True)
                    yield size, number, documents, first_document, digest
                first_document += len(documents)

        for size in _in_processes(maker, tasks(), workers):
            advance(size)
        progress.update(megabytes - progress.done)
    if kept:
        say(f"{kept} of {parts} parts were there from before")
    return parts


def _parts(sources: Sequence[Source]) -> Iterator[tuple[list[Document], int]]:
    """Cuts the documents of all sources into parts; yields each with its size in bytes of the sources."""
    documents, characters, before, cut = [], 0, 0, 0
    for source in sources:
        for document in source.documents():
            documents.append(document)
            characters += len(document.text) + 1
            if characters >= CHARACTERS_PER_PART:
                yield documents, before + document.position - cut
                documents, characters, cut = [], 0, before + document.position
        before += source.size
    if documents:
        yield documents, before - cut


def _digest(documents: Sequence[Document], first_document: int) -> str:
    """Tells whether a part that is there was made of these documents: the sources may have changed since."""
    contents = json.dumps([first_document, [(document.text, document.is_markup) for document in documents]])
    return hashlib.sha256(contents.encode()).hexdigest()


def _in_processes(maker: PartMaker, tasks: Iterator[tuple], workers: int) -> Iterator[int]:
    """Carries out tasks (size, *arguments of `maker.make`) in processes; yields each one's size when done."""
    if workers == 1:
        for size, *arguments in tasks:
            maker.make(*arguments)
            yield size
        return
    # JAX, threads and fork do not go together, so processes are spawned.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    running: dict[Future, int] = {}
    try:
        for size, *arguments in tasks:
            # Readers are faster than tokenizers: no more than this waits in memory.
            while len(running) >= 2 * workers:
                for finished in wait(running, return_when=FIRST_COMPLETED).done:
                    finished.result()
                    yield running.pop(finished)
            running[pool.submit(maker.make, *arguments)] = size
        for finished in as_completed(list(running)):
            finished.result()
            yield running.pop(finished)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes fill the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say_summary(directory: Path, seconds: float) -> None:
    counts = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))["counts"]
    row = {
        "documents": f"{counts['documents']:,}",
        "empty, skipped": f"{counts['empty']:,}",
        "blocks": f"{counts['blocks']:,}",
        "tokens": f"{counts['tokens']:,}",
        "tokens per block": f"{counts['tokens'] / counts['blocks']:.1f}",
        "time": duration(seconds),
        "directory": directory,
    }
    say(table([row], "token blocks"))


@exits_on_input_error
def main() -> None:
    prepare(parse_config(__doc__, defaults.PRETRAINING))


if __name__ == "__main__":
    main()
