"""Shows where the time of a training step goes.

    python -m benchmarks.step_profile --rows 4 --length 512
    python -m benchmarks.step_profile --objective contrastive --rows 16 --length 128 --texts-per-row 3

Trains a model with random weights on random tokens, times some steps, and traces one. Each moment of the traced step is
divided among the operations that run in it; they are added up by the part of the step that they belong to (the named
scopes of the code) and by whether they are matrix products. Beside them stands what the step would take if it were its
model FLOPs only, at the rate of one large product on this machine.
"""

import argparse
import collections
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.profiler import ProfileData

from benchmarks.pretrain import MODELS
from configs import defaults
from eval.measure import positive
from retromae_jax import compiled, parallel
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.flops import device_flops_per_second
from retromae_jax.logging import table
from retromae_jax.masking import WORD_START, Vocabulary
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.objectives.contrastive import Contrastive
from retromae_jax.optimizer import adamw
from retromae_jax.training import compile_for_memory, finetuning_step, initial_state, pretraining_step

# The objective of fine-tuning, beside those of pretraining.
CONTRASTIVE = "contrastive"
PRODUCTS = re.compile(r" (dot|convolution)\(|__onednn|\$dot")


def operations(program: str) -> dict[str, tuple[str, bool]]:
    """Part of the step and whether it is a matrix product, for each operation of a compiled program in text form."""
    bodies, lines, owner, current, entry = collections.defaultdict(list), {}, {}, "", ""
    for line in program.splitlines():
        if match := re.match(r"(?:ENTRY )?%([\w.-]+) \(", line):
            current = match[1]
            entry = current if line.startswith("ENTRY") else entry
        elif match := re.match(r"\s*(?:ROOT )?%([\w.-]+) = ", line):
            bodies[current].append(line)
            lines[match[1]], owner[match[1]] = line, current

    def scope_of_loop(computation: str) -> str:
        """The scope of most operations in a loop's body, for those that the compiler made and gave no name."""
        scopes = collections.Counter(filter(None, map(compiled.scope, bodies[computation])))
        return scopes.most_common(1)[0][0] if scopes and computation != entry else ""

    found = {}
    for name, line in lines.items():
        called = re.search(r"(?:calls|to_apply)=%([\w.-]+)", line)
        text = "\n".join([line, *(bodies[called[1]] if called else [])])
        found[name] = compiled.scope(text) or scope_of_loop(owner[name]) or "rest", PRODUCTS.search(text) is not None
    return found


def shares(events: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Divides time among what runs in it.

    Args:
        events: (name, start, end), overlapping or not.

    Returns:
        For each name the time that is its own: of a moment in which k events run, each has 1/k.
    """
    changes = sorted(change for name, start, end in events for change in ((start, 1, name), (end, -1, name)))
    running, total, before = collections.Counter(), collections.Counter(), 0.0
    for moment, change, name in changes:
        active = sum(running.values())
        for other, count in running.items():
            total[other] += (moment - before) * count / active if active else 0.0
        running[name] += change
        running += collections.Counter()  # drops the names that do not run
        before = moment
    return dict(total)


def traced(directory: Path, known: Mapping[str, object]) -> list[tuple[str, float, float]]:
    """The known operations in a trace, with start and end in seconds."""
    file = max(directory.rglob("*.xplane.pb"), default=None)
    if file is None:
        raise InputError(f"{directory}: the profiler wrote no trace")
    return [
        (event.name, event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9)
        for plane in ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
        if event.name in known
    ]


def profile(arguments: argparse.Namespace) -> None:
    """Runs the steps and prints the table."""
    bert, dtype = BertConfig(**MODELS[arguments.model]), jnp.dtype(arguments.dtype)
    computation = Computation.on(jax.default_backend(), bert, arguments.dtype)
    texts = arguments.texts_per_row
    lengths = np.full((arguments.rows, texts), arguments.length // texts, np.int32)
    token_ids = np.random.default_rng(0).integers(1000, bert.vocab_size, (arguments.rows, arguments.length))
    samples = np.arange(lengths.size).reshape(lengths.shape)
    arrays = {"token_ids": token_ids.astype(np.int32), "lengths": lengths, "samples": samples.astype(np.uint32)}
    optimizer = adamw(optax.constant_schedule(1e-4), 0.01, 1.0)
    mesh = parallel.data_mesh()
    if arguments.objective == CONTRASTIVE:
        config = defaults.finetuning()
        config.mask_false_negatives = False
        objective = Contrastive.from_config(config, bert, computation)
        # Every second text is a query, and the next one its passage.
        arrays["places"] = samples.reshape(-1)[: lengths.size // 2 * 2].reshape(-1, 2).astype(np.int32)
        batch = {name: x[None] for name, x in arrays.items()}
        make_step = finetuning_step
    else:
        config = defaults.pretraining()
        config.skip_from = 1
        vocabulary = Vocabulary(np.full(bert.vocab_size, WORD_START, np.int8), mask_id=103)
        objective = OBJECTIVES[arguments.objective].from_config(config, bert, vocabulary, computation)
        batch = jax.device_put(arrays, parallel.over_batch(mesh))
        make_step = pretraining_step
    graph, shapes = parameters.structure(objective.model)
    state = initial_state(objective.model, shapes, None, optimizer, 0, mesh)
    step = make_step(objective, graph, optimizer, seed=0)

    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as directory:
        program = step.lower(state, batch).compile()
        seconds = []
        for number in range(arguments.steps + 2):
            if number == arguments.steps + 1:
                jax.profiler.start_trace(directory)
            started = time.perf_counter()
            state, metrics = program(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - started)
        jax.profiler.stop_trace()
        known = operations(program.as_text())
        own = shares(traced(Path(directory), known))
    best = min(seconds[1:-1])

    parts = collections.Counter()
    for name, duration in own.items():
        scope, is_product = known[name]
        parts[scope, "matrix products" if is_product else "other"] += duration
    traced_seconds = sum(own.values())
    rows = [
        {"part": scope, "kind": kind, "ms": round(1000 * duration), "share": f"{duration / traced_seconds:.0%}"}
        for (scope, kind), duration in parts.most_common()
        if duration > 0.001 * traced_seconds
    ]
    print(table(rows, f"one step, traced: {traced_seconds:.2f} s"))
    rate = device_flops_per_second(jax.local_devices()[0], dtype) * mesh.size
    flops = objective.flops(lengths.reshape(-1))
    memory = compiled.memory(program)
    summary = {
        "best step, s": round(best, 3),
        "tokens/s": round(int(lengths.sum()) / best),
        "model GFLOP": round(flops / 1e9),
        "large product, GFLOP/s": round(rate / 1e9),
        "FLOPs alone, s": round(flops / rate, 3),
        "utilization": f"{flops / rate / best:.0%}",
        "temporaries, MB": round(memory.temporaries / 1e6),
    }
    print(table([summary]))


@exits_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--objective", choices=[*OBJECTIVES, CONTRASTIVE], default="retromae", help="(default: %(default)s)"
    )
    parser.add_argument("--model", choices=list(MODELS), default="small", help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(default: %(default)s)")
    parser.add_argument("--rows", type=positive, default=4, help="of a batch (default: %(default)s)")
    parser.add_argument("--length", type=positive, default=512, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--texts-per-row", type=positive, default=1, help="of equal length (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=5, help="to time (default: %(default)s)")
    arguments = parser.parse_args()
    compile_for_memory()
    profile(arguments)


if __name__ == "__main__":
    main()
