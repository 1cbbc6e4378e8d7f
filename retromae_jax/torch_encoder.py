"""Trained encoders in PyTorch: exported directories as `transformers` opens them.

The same texts are tokenized, cut and batched as for `Encoder`; what makes embeddings of them is another program.
"""

import numpy as np

from retromae_jax import parallel
from retromae_jax.checkpoints import huggingface, train_state
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.models.parameters import Arrays

try:
    import torch
except ImportError as error:
    raise InputError(
        "--encoder torch needs PyTorch, which is not installed; pip install 'retromae_jax[torch]', or take jax instead"
    ) from error


class TorchEncoder(Encoder):
    """Makes embeddings of texts on a GPU, if PyTorch finds one, else on the CPU; arguments as for `Encoder`."""

    name = "torch"

    def _open(self, device: parallel.Device) -> None:
        from transformers import AutoModel

        directory = self.source.directory
        if train_state.is_run(directory):
            raise InputError(f"{directory} is a training run, which PyTorch does not open; export it with train.export")
        if self.settings.lexical_top_k:
            raise InputError(
                f"{directory}: embeddings with a lexical part are not made by --encoder torch; take --encoder jax"
            )
        huggingface.tensor_names(directory)  # refuses pickles with a remedy
        if not (device in (None, "cpu") or (device == "gpu" and torch.cuda.is_available())):
            raise InputError(f"device {device!r} is none that PyTorch has here")
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.compute_dtype]
        model = AutoModel.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, local_files_only=True, add_pooling_layer=False
        )
        self.model = model.eval().to(self.device)
        self.projection = self._projection()

    def _projection(self) -> "torch.nn.Linear | None":
        if not self.settings.projection:
            return None
        tensors: dict[str, np.ndarray] = {}
        for module in self.source.modules:
            tensors |= huggingface.read_tensors(module)
        linear = torch.nn.Linear(self.config.hidden_size, self.settings.projection)
        linear.load_state_dict({name: torch.tensor(tensors[f"linear.{name}"]) for name in ("weight", "bias")})
        return linear.to(self.device)

    @property
    def weights(self) -> Arrays:
        """The model's parameters, as `Encoder` has them."""
        return self._parameters()

    @property
    def platform(self) -> str:
        """The kind of the device: cpu or gpu."""
        return "gpu" if self.device.type == "cuda" else "cpu"

    @property
    def devices(self) -> int:
        """How many devices share a batch: one."""
        return 1

    @torch.inference_mode()
    def embed(self, token_ids_BxL: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Embeddings of padded texts, float32 [B, D]."""
        ids_BxL, tokens_B = (torch.from_numpy(x).to(self.device) for x in (token_ids_BxL, lengths_B))
        is_token_BxL = torch.arange(ids_BxL.shape[1], device=self.device) < tokens_B[:, None]
        hidden_BxLxD = self.model(ids_BxL, attention_mask=is_token_BxL.long()).last_hidden_state.float()
        if self.settings.pooling == "cls":
            sentence_BxD = hidden_BxLxD[:, 0]
        else:
            sentence_BxD = (hidden_BxLxD * is_token_BxL[:, :, None]).sum(dim=1) / tokens_B[:, None]
        if self.projection is not None:
            sentence_BxD = self.projection(sentence_BxD)
        sentence_BxD = sentence_BxD[:, : self.dimension]
        if self.settings.normalize:
            sentence_BxD = torch.nn.functional.normalize(sentence_BxD)
        return sentence_BxD.cpu().numpy()
