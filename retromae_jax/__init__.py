"""RetroMAE in JAX: pretrain, fine-tune, export and measure retrieval-oriented text encoders."""
