"""Draws the figures of docs/objective.md, with the masks that training makes.

    python docs/figures.py --tokenizer build/demo/checkpoint

Writes docs/figures/*.svg.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np

from retromae_jax import masking
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.masking import Vocabulary
from retromae_jax.rows import Rows

FIGURES = Path(__file__).parent / "figures"
TEXT = "A weak decoder needs a strong sentence embedding, so pretraining makes one."
SEED = 4
HIDDEN, SHOWN, NEUTRAL = "#d55e00", "#0072b2", "#e8e8e8"


def masks(tokenizer, text: str):
    """Encoder's masks and decoder's visibility of one text.

    Returns:
        Tokens [n]; which are masked, bool [n]; what the encoder reads in their place, [n]; and what each token's row of
        the decoder sees, bool [n, n].
    """
    ids = np.array(tokenizer(text)["input_ids"], np.int32)
    batch = {
        "token_ids": ids[None],
        "lengths": np.array([[len(ids)]], np.int32),
        "samples": np.zeros((1, 1), np.uint32),
    }
    rows, vocabulary = Rows.of(jax.tree.map(jax.numpy.asarray, batch), SEED), Vocabulary.of(tokenizer)
    masked_RxL, corrupted_RxL = masking.encoder_masks(rows, vocabulary, 0.3)
    visible_RxLxL = masking.decoder_visibility(rows, vocabulary, 0.5)
    tokens, corrupted = (tokenizer.convert_ids_to_tokens(np.asarray(x).tolist()) for x in (ids, corrupted_RxL[0]))
    return tokens, np.asarray(masked_RxL[0]), corrupted, np.asarray(visible_RxLxL[0])


def draw_masks(pyplot, tokens, masked, corrupted, visible) -> None:
    count = len(tokens)
    figure, axes = pyplot.subplots(2, 1, figsize=(8, 8.6), height_ratios=(1.6, count))
    colors = np.array([matplotlib.colors.to_rgb(HIDDEN if hidden else NEUTRAL) for hidden in masked])
    axes[0].imshow(colors[None], aspect="auto")
    axes[0].set_xticks(range(count), corrupted, rotation=90, fontsize=8)
    axes[0].set_yticks([])
    axes[0].set_title("what the encoder reads: 30 % of the tokens, as whole words, are masked", fontsize=10)
    cells = np.where(visible[..., None], matplotlib.colors.to_rgb(SHOWN), matplotlib.colors.to_rgb(NEUTRAL))
    axes[1].imshow(cells, aspect="auto")
    axes[1].set_xticks(range(count), ["sentence", *tokens[1:]], rotation=90, fontsize=8)
    axes[1].set_yticks(range(count), tokens, fontsize=8)
    axes[1].set_title(
        "what the decoder sees (blue) to predict each row's token: half of the words, never itself", fontsize=10
    )
    for axis, rows in zip(axes, (1, count), strict=True):
        axis.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
        axis.tick_params(which="both", length=0)
    figure.tight_layout()
    save(pyplot, figure, "masks.svg")


def draw_flow(pyplot) -> None:
    """Boxes at (x, y) with arrows between them."""
    boxes = {
        "text": (0.0, 1.0, "token ids\n(from the host)"),
        "masks": (1.3, 1.0, "masks, corruption,\nvisibility\n(on the device)"),
        "encoder": (2.6, 1.6, "encoder\n30 % masked"),
        "sentence": (3.9, 1.6, "sentence\nembedding\n= [CLS]"),
        "decoder": (3.9, 0.4, "one-layer decoder\nhalf of the words"),
        "masked": (5.2, 1.6, "masked tokens"),
        "every": (5.2, 0.4, "every token"),
        "loss": (6.5, 1.0, "one fused\ncross-entropy"),
    }
    arrows = [
        ("text", "masks"), ("masks", "encoder"), ("masks", "decoder"), ("encoder", "sentence"), ("sentence", "decoder"),
        ("sentence", "masked"), ("decoder", "every"), ("masked", "loss"), ("every", "loss"),
    ]  # fmt: skip
    figure, axis = pyplot.subplots(figsize=(11, 3))
    for x, y, words in boxes.values():
        axis.text(
            x, y, words, ha="center", va="center", fontsize=8, bbox={"boxstyle": "round", "fc": "white", "ec": SHOWN}
        )
    for start, end in arrows:
        axis.annotate(
            "",
            boxes[end][:2],
            boxes[start][:2],
            arrowprops={"arrowstyle": "->", "color": "gray", "shrinkA": 40, "shrinkB": 42},
        )
    axis.set_xlim(-0.6, 7.1)
    axis.set_ylim(0, 2.1)
    axis.axis("off")
    figure.tight_layout()
    save(pyplot, figure, "data_flow.svg")


def save(pyplot, figure, name: str) -> None:
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / name, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="directory of a tokenizer")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    # The same file for the same figure, with text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "retromae_jax", "svg.fonttype": "none"})
    from matplotlib import pyplot

    draw_masks(pyplot, *masks(load_tokenizer(arguments.tokenizer), TEXT))
    draw_flow(pyplot)


if __name__ == "__main__":
    main()
