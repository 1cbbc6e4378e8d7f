"""Fine-tuning on MS MARCO passages with a cross-encoder's scores of hard negatives to learn from.

    python -m train.finetune --config configs/msmarco_distill.py --config.init runs/wiki
    python -m train.export   --from runs/msmarco_distill --to exported/msmarco_distill
    python -m eval.msmarco   --model exported/msmarco_distill --collection data/msmarco --split dev

configs/msmarco.py's data and schedule, its negatives best found by a model fine-tuned with that recipe; beside them
`data/msmarco` holds train_qrels_score.txt and train_rerank_score.txt, a cross-encoder's scores of the relevant passages
and of the negatives, lines `query-id passage-id score`. Published for RetroMAE pretrained on MS MARCO, on passages with
titles: MRR@10 .416, Recall@1000 .988.
"""

from ml_collections import ConfigDict

from configs import defaults, msmarco
from configs.tiny import DEMO_DATA, tiny_finetuning


def get_config(variant: str = "") -> ConfigDict:
    config = msmarco.get_config()
    config.workdir = "runs/msmarco_distill"
    config.teacher_scores = ("data/msmarco/train_qrels_score.txt", "data/msmarco/train_rerank_score.txt")
    config.contrastive_weight = 0.2
    if not defaults.is_tiny(variant):
        return config
    config = tiny_finetuning(config)
    config.negatives = (f"{DEMO_DATA}/negatives.tsv",)
    config.teacher_scores = (f"{DEMO_DATA}/teacher_scores.tsv",)
    return config
