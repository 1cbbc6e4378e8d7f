"""PyTorch systems to compare with: plain training loops without a trainer's overhead."""

import abc
from collections.abc import Sequence

import torch
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

from benchmarks.texts import neighbours_score
from benchmarks.worker import EncodingTask, FinetuningTask, PretrainingTask
from configs import defaults
from retromae_jax.data.tokenization import encode_batch, load_tokenizer

CONFIG = defaults.pretraining()
FINETUNING = defaults.finetuning()


class _TorchSystem(abc.ABC):
    """A `System` of PyTorch; texts are tokenized by its collator, in the loop."""

    tokenized_seconds = 0.0

    def __init__(self, task: PretrainingTask):
        torch.set_num_threads(task.threads)
        self.task = task
        self.tokenizer = load_tokenizer(task.tokenizer)
        self.restart()

    def restart(self) -> None:
        self.model = self.optimizer = None
        torch.manual_seed(self.task.seed)
        self.model = self.build(BertForMaskedLM(BertConfig(**self.task.sizes))).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay
        )

    @abc.abstractmethod
    def build(self, bert: BertForMaskedLM) -> torch.nn.Module:
        """The model to train, and `self.collator`."""

    def train(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.task.dtype == "bfloat16"):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CONFIG.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def warm_up_steps(self) -> list[int]:
        return list(range(min(2, self.task.steps)))


class Pretense(_TorchSystem):
    """RetroMAE as the package pretense has it, with its own collator."""

    def build(self, bert: BertForMaskedLM) -> torch.nn.Module:
        from pretense import MethodConfig, RetroMAEForPretraining, build_collator

        method = MethodConfig(
            "retromae",
            encoder_mlm_probability=CONFIG.encoder_mask_probability,
            decoder_mlm_probability=CONFIG.decoder_mask_probability,
        )
        self.collator = build_collator(self.tokenizer, method, max_seq_length=self.task.max_length)
        return RetroMAEForPretraining(bert, method)

    def collate(self, step: int) -> tuple[dict[str, torch.Tensor], int]:
        batch = self.collator([{"text": text} for text in self.task.texts[self.task.batch(step)]])
        return batch, int(batch["encoder_attention_mask"].sum())


class MaskedLM(_TorchSystem):
    """BERT's masked language modelling alone, as transformers has it: the encoder's half of RetroMAE, a floor."""

    def build(self, bert: BertForMaskedLM) -> torch.nn.Module:
        probability = CONFIG.encoder_mask_probability
        self.collator = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=probability)
        return bert

    def collate(self, step: int) -> tuple[dict[str, torch.Tensor], int]:
        texts = list(self.task.texts[self.task.batch(step)])
        encoded = self.tokenizer(
            texts, max_length=self.task.max_length, truncation=True, return_special_tokens_mask=True
        )
        features = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        batch = dict(self.collator(features))
        return batch, int(batch["attention_mask"].sum())


class SentenceTransformers:
    """A `System`: a bi-encoder as sentence-transformers trains it, with its loss, with gradient caching or without."""

    tokenized_seconds = 0.0

    def __init__(self, task: FinetuningTask):
        torch.set_num_threads(task.threads)
        self.task = task
        self.restart()

    def restart(self) -> None:
        from sentence_transformers import SentenceTransformer, losses

        task, self.model, self.loss, self.optimizer = self.task, None, None, None
        torch.manual_seed(task.seed)
        rates = {"hidden_dropout_prob": task.dropout, "attention_probs_dropout_prob": task.dropout}
        self.model = SentenceTransformer(task.model, device="cpu", config_kwargs=rates).train()
        self.model.max_seq_length = task.max_length
        scale = 1 / task.temperature
        if task.chunk:
            self.loss = losses.CachedMultipleNegativesRankingLoss(self.model, scale, mini_batch_size=task.chunk)
        else:
            self.loss = losses.MultipleNegativesRankingLoss(self.model, scale)
        # Biases and LayerNorm are not decayed, as by the trainer.
        decayed, others = [], []
        for name, parameter in self.model.named_parameters():
            (others if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": FINETUNING.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=FINETUNING.learning_rate)

    def collate(self, step: int) -> tuple[list[dict[str, torch.Tensor]], int]:
        columns = zip(*self.task.texts[self.task.batch(step)], strict=True)
        features = [self.model.preprocess(list(column)) for column in columns]
        return features, sum(int(of["attention_mask"].sum()) for of in features)

    def train(self, batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        loss = self.loss(batch, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), FINETUNING.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def warm_up_steps(self) -> list[int]:
        return list(range(min(2, self.task.steps)))


class SentenceTransformersEncoding:
    """A `System`: `SentenceTransformer.encode`, which sorts texts by their length, in float32, its default."""

    tokenized_seconds = 0.0

    def __init__(self, task: EncodingTask):
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(task.threads)
        self.task = task
        self.model = SentenceTransformer(task.model, device="cpu")
        self.model.max_seq_length = task.max_length
        lengths = encode_batch(load_tokenizer(task.model), list(task.texts), task.max_length)[1]
        self.lengths = [lengths[task.batch(step)] for step in range(task.steps)]

    def collate(self, step: int) -> tuple[Sequence[str], int]:
        return self.task.texts[self.task.batch(step)], int(self.lengths[step].sum())

    def train(self, batch: Sequence[str]) -> float:
        return neighbours_score(self.model.encode(list(batch), batch_size=self.task.at_once))

    def warm_up_steps(self) -> list[int]:
        return [0]

    def restart(self) -> None:
        pass
