"""Distillation: the bi-encoder learns how a cross-encoder scores each query's own passages."""

import dataclasses

import jax
import jax.numpy as jnp

from retromae_jax.objectives.contrastive import Contrastive, Embedded

# Averages of the divergence: over all elements of [Q, G], as the original code has it (so that the loss shrinks as
# groups grow), or over queries, as a divergence of distributions is defined.
ELEMENTWISE, BATCHMEAN = LOSSES = ("kl_elementwise_mean", "kl_batchmean")


def kl_divergence(student_QxG: jax.Array, teacher_QxG: jax.Array, temperature: float, average: str) -> jax.Array:
    """KL(softmax(teacher) || softmax(student / temperature)) over each query's passages, in nats.

    Args:
        student_QxG: scores that are learned, float32.
        teacher_QxG: scores to learn from, float32; passages without one have NaN, and are left out of both softmaxes.
        temperature: the student's scores are divided by it.
        average: one of `LOSSES`.
    """
    is_scored_QxG = ~jnp.isnan(teacher_QxG)

    def log_softmax(scores_QxG):
        return jax.nn.log_softmax(jnp.where(is_scored_QxG, scores_QxG, jnp.finfo(jnp.float32).min))

    teacher_QxG, student_QxG = log_softmax(teacher_QxG), log_softmax(student_QxG / temperature)
    terms_QxG = jnp.where(is_scored_QxG, jnp.exp(teacher_QxG) * (teacher_QxG - student_QxG), 0)
    return jnp.mean(terms_QxG) if average == ELEMENTWISE else jnp.mean(jnp.sum(terms_QxG, axis=1))


@dataclasses.dataclass(eq=False, kw_only=True)
class Distillation(Contrastive):
    """The objective: the divergence, plus a share of the contrastive loss.

    The batch has `teacher_scores` float32 [Q, G] too, as for `kl_divergence`.

    Attributes:
        distillation_loss: one of `LOSSES`.
        contrastive_weight: of the contrastive loss.
    """

    distillation_loss: str = ELEMENTWISE
    contrastive_weight: float = 0.2

    def losses(self, embedded: Embedded, batch: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `Contrastive.losses`."""
        contrastive, metrics = super().losses(embedded, batch)
        student_QxG = jnp.einsum("QD,QGD->QG", embedded.queries_QxD, embedded.own_QxGxD, precision="highest")
        distillation = kl_divergence(student_QxG, batch["teacher_scores"], self.temperature, self.distillation_loss)
        loss = distillation + self.contrastive_weight * contrastive
        return loss, metrics | {
            "loss": loss,
            "distillation_loss": distillation,
            "contrastive_loss": contrastive,
        }
