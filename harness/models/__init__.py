"""Models: weights and forward passes.

Files and their identity, loading, LoRA, FSDP, logits at scored positions, hidden states, the KV cache, generation,
speculative decoding, FLOPs. Import the module you need: planning reads `files` and `flops`, and loads no torch for it.
"""
