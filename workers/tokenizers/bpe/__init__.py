"""Text tokenizers from files: tokenizer.json, tiktoken ranks, SentencePiece models.

The library of each format is the reference; a fast engine stands behind it where it gives the
same ids. May import schemas and workers.fetch.
"""

from tokenmill.workers.tokenizers.bpe.tokenizer import BpeTokenizer

__all__ = ["BpeTokenizer"]
