"""Byte-pair merges over grids of image codes: learning them, encoding, decoding, LLM layouts.

Knows no pixels and no torch: it reads the codes that a VQ encoder made. May import schemas and
workers.fetch.
"""
