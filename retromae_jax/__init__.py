"""RetroMAE in JAX: pretrain, fine-tune, export and measure retrieval-oriented text encoders.

    from retromae_jax import Encoder

    encoder = Encoder.from_pretrained("exported/msmarco")
    embeddings = encoder.encode(["a text", "another"])

`docs/api.md` has more.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retromae_jax.cross_encoder import CrossEncoder
    from retromae_jax.encoder import Encoder
else:
    _MODULES = {"CrossEncoder": "cross_encoder", "Encoder": "encoder"}

    def __getattr__(name: str) -> type:
        # When it is asked for: what it needs, JAX above all, takes seconds to import.
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = ("CrossEncoder", "Encoder")
