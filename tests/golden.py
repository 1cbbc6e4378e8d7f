"""Compares the project with a directory of golden cases: `python -m tests.golden DIR`.

Such a directory holds a small model's weights, a fixed batch, and the losses, outputs and gradients that the
published definitions of the objectives give for them. One JSON object is printed: for each objective its losses and
the largest relative error of its gradients, and under `encoder_outputs` the largest differences of hidden states
and logits. For the bi-encoders, there are the largest differences of their embeddings.
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
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives.cocondenser import CoCondenser
from retromae_jax.objectives.condenser import Condenser
from retromae_jax.objectives.contrastive import Embedded
from retromae_jax.objectives.distillation import BATCHMEAN, Distillation, kl_divergence
from retromae_jax.objectives.dupmae import DupMAE
from retromae_jax.objectives.masked_lm import MaskedLM, MaskedTexts
from retromae_jax.objectives.prediction import IGNORED
from retromae_jax.objectives.retromae import Inputs, RetroMAE
from retromae_jax.rows import Rows
from tests.texts import rows

BIENCODERS = ("biencoder_cls_dot", "biencoder_mean_cos")
CASES = ("encoder_outputs", "retromae", "dupmae", "condenser", "cocondenser", *BIENCODERS)


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
        if any(name.startswith("condenser_head.") for name in shapes):
            tensors |= load_file(self.directory / "condenser_head.safetensors")
        loaded, report = huggingface.from_huggingface(tensors, shapes, str(self.directory))
        if report.fresh:
            raise KeyError(f"no weights for {report.fresh}")
        return graph, loaded

    def rows(self, token_ids: np.ndarray) -> Rows:
        """Token ids of the case's pretraining batch, one text a row; the attention mask gives the lengths."""
        lengths = self.arrays("pretrain_batch.npz")["attention_mask"].sum(axis=1)
        samples = np.arange(len(lengths), dtype=np.uint32)
        batch = {"token_ids": token_ids.astype(np.int32), "lengths": lengths.astype(np.int32), "samples": samples}
        return Rows.of(batch, seed=0)

    def encoder_outputs(self) -> dict[str, float]:
        """Largest absolute differences of the encoder's states and the head's logits."""
        graph, weights = self.load(MaskedLM(self.config, vocabulary=None).model)
        model = parameters.bind(graph, weights)
        batch, expected = self.arrays("pretrain_batch.npz"), self.arrays("encoder_outputs.npz")
        hidden = model.bert(self.rows(batch["encoder_input_ids"]))
        logits = model.head(hidden) @ model.bert.embeddings.word_embeddings.embedding[...].T + model.head.bias[...]
        return {
            "last_hidden_state_error": float(np.max(np.abs(hidden - expected["last_hidden_state"]))),
            "mlm_logits_error": float(np.max(np.abs(logits - expected["mlm_logits"]))),
        }

    def retromae(self) -> dict[str, float]:
        """Losses, and the largest relative error of the gradients."""
        objective = RetroMAE(self.config, vocabulary=None)
        return self.losses(objective, self.reconstruction_inputs(), "retromae_grads.safetensors")

    def dupmae(self) -> dict[str, float]:
        """As `retromae`."""
        weight = self.expected["dupmae"]["bow_loss_weight"]
        objective = DupMAE(self.config, vocabulary=None, bag_of_words_weight=weight)
        return self.losses(objective, self.reconstruction_inputs(), "dupmae_grads.safetensors")

    def condenser(self) -> dict[str, float]:
        """Losses."""
        return self.losses(self.condenser_objective(Condenser), self.masked_inputs())

    def cocondenser(self) -> dict[str, float]:
        """Losses."""
        return self.losses(self.condenser_objective(CoCondenser), self.masked_inputs())

    def biencoder_cls_dot(self) -> dict[str, float]:
        """Losses, and the largest absolute differences of embeddings."""
        return self.biencoder("biencoder_cls_dot")

    def biencoder_mean_cos(self) -> dict[str, float]:
        """As `biencoder_cls_dot`."""
        return self.biencoder("biencoder_mean_cos")

    def biencoder(self, name: str) -> dict[str, float]:
        expected, batch = self.expected[name], self.arrays("biencoder_batch.npz")
        temperature = expected["temperature"]
        settings = EncoderSettings(expected["pooling"], expected["normalized"], self.config.max_length)
        objective = Distillation(self.config, settings, temperature=temperature, contrastive_weight=0.2)
        graph, weights = self.load(objective.model)
        model = parameters.bind(graph, weights)

        def embed(kind: str) -> jax.Array:
            return model(rows(batch[f"{kind}_ids"], batch[f"{kind}_mask"].sum(axis=1)))[:, 0]

        queries, passages = embed("query"), embed("passage")
        own = passages.reshape(len(queries), -1, passages.shape[1])
        positives = jnp.arange(len(queries)) * own.shape[1]
        embedded = Embedded(queries, own, passages, positives)
        _, metrics = objective.losses(embedded, {"teacher_scores": jnp.asarray(batch["teacher_scores"])})
        student = jnp.einsum("QD,QGD->QG", queries, own)
        batchmean = kl_divergence(student, jnp.asarray(batch["teacher_scores"]), temperature, BATCHMEAN)
        stored = self.arrays(f"{name}_reps.npz")
        return {
            "contrastive_loss": float(metrics["contrastive_loss"]),
            "distill_loss_with_contrastive_weight_0_2": float(metrics["loss"]),
            "kl_elementwise_mean": float(metrics["distillation_loss"]),
            "kl_batchmean": float(batchmean),
            "q_reps_error": float(np.max(np.abs(queries - stored["q_reps"]))),
            "p_reps_error": float(np.max(np.abs(passages - stored["p_reps"]))),
        }

    def condenser_objective(self, kind: type[Condenser]) -> Condenser:
        sizes = self.expected["condenser"]
        return kind(self.config, vocabulary=None, head_layers=sizes["n_head_layers"], skip_from=sizes["skip_from"])

    def masked_inputs(self) -> MaskedTexts:
        batch = self.arrays("pretrain_batch.npz")
        return MaskedTexts(self.rows(batch["encoder_input_ids"]), jnp.asarray(batch["encoder_labels"]))

    def reconstruction_inputs(self) -> Inputs:
        batch = self.arrays("pretrain_batch.npz")
        return Inputs(
            *self.masked_inputs(),
            texts=self.rows(batch["decoder_input_ids"]),
            decoder_visible_RxLxL=jnp.asarray(batch["decoder_attention_mask"]) > 0,
            decoder_labels_RxL=jnp.asarray(batch["decoder_labels"]),
        )

    def losses(self, objective: MaskedLM, inputs, gradients_file: str = "") -> dict[str, float]:
        """Losses of an objective on given inputs, and the gradients' error where the case has gradients."""
        graph, weights = self.load(objective.model)
        labels = self.arrays("pretrain_batch.npz")["encoder_labels"]
        limit = max(1, int(np.max(np.sum(labels != IGNORED, axis=1))))

        @jax.jit
        def losses_and_gradients(weights):
            def loss(weights):
                return objective.losses(parameters.bind(graph, weights), inputs, limit, {}, None)

            (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(weights)
            return metrics, gradients

        metrics, gradients = losses_and_gradients(weights)
        found = {name: float(value) for name, value in metrics.items() if name.endswith("loss")}
        if gradients_file:
            found["gradients_error"] = self.gradients_error(gradients, gradients_file)
        return found

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
    print(json.dumps({name: getattr(case, name)() for name in CASES}, indent=1))


if __name__ == "__main__":
    main()
