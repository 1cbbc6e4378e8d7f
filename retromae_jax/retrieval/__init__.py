"""Retrieval: embeddings of texts, search, runs and their scores."""
