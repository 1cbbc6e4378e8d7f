"""Compares the project with a directory of golden cases: `python -m tests.golden DIR`.

Such a directory holds a small model's weights, a fixed batch, and the losses, outputs and gradients that the
published definitions of the objectives give for them. One JSON object is printed: for each objective its losses and
the largest relative error of its gradients, and under `encoder_outputs` the largest differences of hidden states
and logits.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from retromae_jax.checkpoints import huggingface
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig
from retromae_jax.objectives import retromae


class GoldenCase:
    """A directory of golden cases."""

    def __init__(self, directory: Path):
        self.directory = directory
        if not (directory / "expected.json").is_file():
            raise InputError(f"{directory}: no expected.json; this is not a directory of golden cases")
        stored = json.loads((directory / "expected.json").read_text())
        self.config = BertConfig.from_huggingface(stored["config"], str(directory / "expected.json"))
        self.expected = stored["expected"]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        return dict(np.load(self.directory / name))

    def load(self, build) -> tuple:
        """The structure of the model that `build` makes, and its parameters from the case's weights."""
        graph, shapes = parameters.structure(build)
        tensors = load_file(self.directory / "weights.safetensors")
        loaded, report = huggingface.from_huggingface(tensors, shapes, str(self.directory))
        if report.fresh:
            raise KeyError(f"no weights for {report.fresh}")
        return graph, loaded

    def encoder_outputs(self) -> dict[str, float]:
        """Largest absolute differences of the encoder's states and the head's logits."""
        graph, weights = self.load(lambda rngs: retromae.Model(self.config, "position", jnp.float32, rngs))
        model = parameters.bind(graph, weights)
        batch, expected = self.arrays("pretrain_batch.npz"), self.arrays("encoder_outputs.npz")
        hidden = model.bert(jnp.asarray(batch["encoder_input_ids"]), jnp.asarray(batch["attention_mask"]) > 0)
        logits = model.head(hidden) @ model.bert.embeddings.word_embeddings.embedding[...].T + model.head.bias[...]
        return {
            "last_hidden_state_error": float(np.max(np.abs(hidden - expected["last_hidden_state"]))),
            "mlm_logits_error": float(np.max(np.abs(logits - expected["mlm_logits"]))),
        }

    def retromae(self) -> dict[str, float]:
        """Losses, and the largest relative error of the gradients."""
        graph, weights = self.load(lambda rngs: retromae.Model(self.config, "position", jnp.float32, rngs))
        batch = self.arrays("pretrain_batch.npz")
        inputs = retromae.Inputs(
            encoder_token_ids_BxL=jnp.asarray(batch["encoder_input_ids"]),
            visible_BxL=jnp.asarray(batch["attention_mask"]) > 0,
            encoder_labels_BxL=jnp.asarray(batch["encoder_labels"]),
            decoder_token_ids_BxL=jnp.asarray(batch["decoder_input_ids"]),
            decoder_visible_BxLxL=jnp.asarray(batch["decoder_attention_mask"]) > 0,
            decoder_labels_BxL=jnp.asarray(batch["decoder_labels"]),
        )
        masked_limit = max(1, int(np.max(np.sum(batch["encoder_labels"] != retromae.IGNORED, axis=1))))

        @jax.jit
        def losses_and_gradients(weights):
            def loss(weights):
                return retromae.losses(parameters.bind(graph, weights), inputs, masked_limit)

            (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(weights)
            return metrics, gradients

        metrics, gradients = losses_and_gradients(weights)
        return {
            **{name: float(metrics[name]) for name in ("encoder_loss", "decoder_loss", "loss")},
            "gradients_error": self.gradients_error(gradients, "retromae_grads.safetensors"),
        }

    def gradients_error(self, gradients: parameters.Parameters, file: str) -> float:
        """The largest, over all tensors, of the largest difference over the tensor's largest expected value.

        The softmax does not change when every key is shifted, so the true gradient of a key bias is 0 and the
        stored one is rounding noise: its error is taken relative to the gradient of the key's weight.
        """
        expected = load_file(self.directory / file)
        found = {
            ("c_head." + name.removeprefix("decoder.") if name.startswith("decoder.") else "lm." + name): value
            for name, value in huggingface.to_huggingface(gradients).items()
        }
        if missing := expected.keys() - found.keys():
            raise KeyError(f"no gradient for {sorted(missing)}")

        def error(name: str) -> float:
            scale = expected[name.replace("key.bias", "key.weight")]
            return float(np.max(np.abs(found[name] - expected[name])) / np.max(np.abs(scale)))

        return max(map(error, expected))


@exits_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="directory with expected.json, weights.safetensors, ...")
    case = GoldenCase(parser.parse_args().directory)
    print(json.dumps({"encoder_outputs": case.encoder_outputs(), "retromae": case.retromae()}, indent=1))


if __name__ == "__main__":
    main()
