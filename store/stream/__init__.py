"""The trainer's side: pure arithmetic from a pinned snapshot to batches, readers at the edge.

permutation, blocks, mixture, ranks, packing, flattening and state know no file; census, mapped and
opened read shards; loader joins them. Imports what store may import.
"""
