"""Other people's weights become ours: read, name and convert the released checkpoints."""
