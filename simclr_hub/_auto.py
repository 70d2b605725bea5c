"""SimCLR in transformers' Auto classes, whichever of the two is imported first.

To register is to import the model, and with it torch, which most commands do without. So a finder waits for the
modules that hold transformers' tables, and registers once one of them has been imported; and for the model's own
modules, since transformers imports some of its tables while those are still being made.
"""

import copy
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TABLES, _CONFIG, _MODELS, _PROCESSOR = (
    "transformers.models.auto",
    f"{__package__}.configuration_simclr",
    f"{__package__}.modeling_simclr",
    f"{__package__}.image_processing_simclr",
)
#: A module with tables, an Auto class in it, the module of what is registered there, its class.
_ENTRIES = (
    ("configuration_auto", "AutoConfig", _CONFIG, "SimCLRConfig"),
    ("modeling_auto", "AutoModel", _MODELS, "SimCLRModel"),
    ("modeling_auto", "AutoModelForImageClassification", _MODELS, "SimCLRForImageClassification"),
    ("modeling_auto", "AutoBackbone", _MODELS, "SimCLRBackbone"),
    ("image_processing_auto", "AutoImageProcessor", _PROCESSOR, "SimCLRImageProcessor"),
)
_AWAITED = {f"{_TABLES}.{table}" for table, *_ in _ENTRIES} | {ours for _, _, ours, _ in _ENTRIES}


class _Finder(MetaPathFinder):
    """Finds what is awaited as the other finders do, and has `_register` called when it has been imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _AWAITED:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in finders if (found := finder.find_spec(name, path, target))), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module
            loader: Any = copy.copy(spec.loader)  # some finders give one loader for all

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(name)

            loader.exec_module, spec.loader = exec_module, loader
        return spec


def _register(name: str) -> None:
    """Register what is in, or goes into, a module that has just been imported."""
    for table, auto, ours, ours_name in _ENTRIES:
        if name not in (f"{_TABLES}.{table}", ours):
            continue
        auto_class = getattr(sys.modules.get(f"{_TABLES}.{table}"), auto, None)
        if auto_class is None:
            continue  # not imported yet
        # Waits for another thread that imports it; in this one it may be on the way, and registers at its end.
        registered = getattr(importlib.import_module(ours), ours_name, None)
        config = getattr(importlib.import_module(_CONFIG), "SimCLRConfig", None)
        if registered is None or config is None:
            continue
        if auto == "AutoConfig":
            auto_class.register(config.model_type, config, exist_ok=True)
        elif auto == "AutoImageProcessor":
            auto_class.register(config, image_processor_classes={"torchvision": registered}, exist_ok=True)
        else:
            auto_class.register(config, registered, exist_ok=True)


def install() -> None:
    """Register with what transformers has imported by now, and with the rest as it comes."""
    sys.meta_path.insert(0, _Finder())
    for name in sorted(_AWAITED & sys.modules.keys()):
        _register(name)
