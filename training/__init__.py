"""Pretraining: views, NT-Xent, LARS and a thin Trainer; installed as `simclr_hub.training`.

The library never imports it; it needs the extra `simclr-hub[train]`, except for `losses`, `optimization` and
`augmentations`, which do without.
"""

if __name__ == "training":
    raise ImportError(
        "this folder is installed as simclr_hub.training: import simclr_hub.training instead of training"
    )
