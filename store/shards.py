"""Shard files: the door to their writer, their reader and their content hash."""

from __future__ import annotations

from tokenmill.store.shard_batch import ShardRow
from tokenmill.store.shard_reader import ShardCounts, ShardReader, content_hash
from tokenmill.store.shard_writer import ShardWriter

__all__ = ["ShardCounts", "ShardReader", "ShardRow", "ShardWriter", "content_hash"]
