"""Networks: the BERT encoder with its masked-language-model head, the enhanced decoder, pooling."""
