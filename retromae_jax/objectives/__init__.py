"""Training objectives, one file each."""

from typing import Any

from retromae_jax.objectives.cocondenser import CoCondenser
from retromae_jax.objectives.condenser import Condenser
from retromae_jax.objectives.contrastive import Contrastive
from retromae_jax.objectives.distillation import Distillation
from retromae_jax.objectives.dupmae import DupMAE
from retromae_jax.objectives.masked_lm import MaskedLM
from retromae_jax.objectives.retromae import RetroMAE

# Pretraining objectives by the name that `config.objective` gives them.
OBJECTIVES = {
    "retromae": RetroMAE,
    "dupmae": DupMAE,
    "masked_lm": MaskedLM,
    "condenser": Condenser,
    "cocondenser": CoCondenser,
}


def finetuning_objective(config: Any) -> type[Contrastive]:
    """The fine-tuning objective of a recipe's config: distillation where there are teacher scores."""
    return Distillation if config.teacher_scores else Contrastive
