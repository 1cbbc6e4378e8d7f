"""PyTorch systems to compare with: plain training loops without a trainer's overhead."""

import abc

import torch
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

from benchmarks.worker import Task
from configs import defaults
from retromae_jax.data.tokenization import load_tokenizer

CONFIG = defaults.pretraining()


class _TorchSystem(abc.ABC):
    """A `System` of PyTorch; texts are tokenized by its collator, in the loop."""

    tokenized_seconds = 0.0

    def __init__(self, task: Task):
        torch.set_num_threads(task.threads)
        torch.manual_seed(task.seed)
        self.task = task
        self.tokenizer = load_tokenizer(task.tokenizer)
        self.model = self.build(BertForMaskedLM(BertConfig(**task.sizes))).train()
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
