"""Networks: the encoder (BERT and its kin) with its masked-language-model head, the enhanced decoder, pooling."""
