"""Training objectives, one file each."""

from retromae_jax.objectives.retromae import RetroMAE

# Pretraining objectives by the name that `config.objective` gives them.
OBJECTIVES = {"retromae": RetroMAE}
