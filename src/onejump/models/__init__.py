"""Causal language models of Transformers, their parts, and their unembedding."""
