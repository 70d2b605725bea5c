"""Other people's weights become ours: read, name and convert the released checkpoints."""

#: Of files with PyTorch weights; here, since names are told apart without torch.
SUFFIXES = (".pth", ".pth.tar", ".pt", ".ckpt", ".bin", ".torch", ".safetensors")
