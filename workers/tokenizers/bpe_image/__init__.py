"""Images by a VQ-GAN: pictures to grids of codes, and back.

layout, taming, llamagen, foreign: which checkpoint this is, by its keys and shapes alone.
graph, quantizer, vq: the networks (torch). pictures, presets, preparer: files to pixels (no torch,
they run in a killable child). settings, tokenizer: the plug-in; merge_config, merged: merged ids.
fit, corpus: training.
May import schemas, workers.fetch and workers.registry. Nothing is imported here, so that a decode
child never loads torch.
"""
