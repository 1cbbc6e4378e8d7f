r"""Fine-tuning on MS MARCO passages with a cross-encoder's scores of hard negatives to learn from.

    python -m eval.rerank    --model exported/rerank --collection data/msmarco --split train \
        --pairs data/msmarco/mined_negatives.tsv --output data/msmarco/teacher
    python -m train.finetune --config configs/msmarco_distill.py --config.init runs/msmarco_pretrain
    python -m train.export   --from runs/msmarco_distill --to exported/msmarco_distill
    python -m eval.msmarco   --model exported/msmarco_distill --collection data/msmarco --split dev

configs/msmarco.py's data and schedule; its commands mine the negatives, and those in configs/rerank.py train the
cross-encoder. The scores that the original code's cross-encoder writes are read too, both files:
`--config.teacher_scores=train_qrels_score.txt,train_rerank_score.txt`. Published for RetroMAE pretrained on MS MARCO,
on passages with titles: MRR@10 .416, Recall@1000 .988. The original's documentation adds that larger groups usually do
better in distillation, without saying how large; this recipe leaves them as they are.
"""

from ml_collections import ConfigDict

from configs import defaults, msmarco
from configs.tiny import DEMO_DATA, tiny_finetuning


def get_config(variant: str = "") -> ConfigDict:
    config = msmarco.get_config()
    config.workdir = "runs/msmarco_distill"
    config.negatives = ("data/msmarco/mined_negatives.tsv",)
    config.teacher_scores = ("data/msmarco/teacher/scores.tsv",)
    config.contrastive_weight = 0.2
    if not defaults.is_tiny(variant):
        return config
    config = tiny_finetuning(config)
    config.negatives = (f"{DEMO_DATA}/negatives.tsv",)
    config.teacher_scores = (f"{DEMO_DATA}/teacher_scores.tsv",)
    return config
