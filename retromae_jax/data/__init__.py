"""Data: from raw text and retrieval collections to batches."""
