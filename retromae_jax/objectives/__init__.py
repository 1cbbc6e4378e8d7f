"""Training objectives, one file each."""

from retromae_jax.objectives.cocondenser import CoCondenser
from retromae_jax.objectives.condenser import Condenser
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
