"""Fine-tuning on MS MARCO passages with DupMAE's embeddings, of [CLS] and of the ordinary tokens.

    python -m train.finetune --config configs/msmarco_dupmae.py
    python -m train.export   --from runs/msmarco_dupmae --to exported/msmarco_dupmae
    python -m eval.msmarco   --model exported/msmarco_dupmae --collection data/msmarco --split dev

configs/msmarco.py's data and schedule, from configs/dupmae.py's model. Published, after two more rounds with negatives
mined by the model itself and a cross-encoder's scores, on passages with titles: MRR@10 .426. docs/design.md says which
choices the publication leaves open; this recipe has not been run at its full size.
"""

from ml_collections import ConfigDict

from configs import defaults, msmarco
from configs.tiny import tiny_finetuning


def get_config(variant: str = "") -> ConfigDict:
    config = msmarco.get_config()
    config.workdir = "runs/msmarco_dupmae"
    config.init = "runs/dupmae"
    config.projection = 384
    config.lexical_top_k = 384
    if not defaults.is_tiny(variant):
        return config
    config = tiny_finetuning(config)
    config.projection = config.lexical_top_k = 16
    return config
