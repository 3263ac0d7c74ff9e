"""VidTok (arXiv 2412.13061): video to grids of ids, or to continuous latents.

Nothing here imports torch but layers, network, quantizers, model, weights and training: decode
children import this package.
"""
