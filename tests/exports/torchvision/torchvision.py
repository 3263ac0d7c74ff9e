"""See pyproject.toml: just enough names for two libraries to be imported."""

import sys
from types import ModuleType


class VisionDataset:
    pass


class CIFAR10:
    pass


def to_tensor(image: object) -> object:
    raise NotImplementedError("the stand-in of torchvision holds no code")


def _module(name: str, **names: object) -> ModuleType:
    module = ModuleType(f"torchvision.{name}")
    module.__dict__.update(names)
    sys.modules[module.__name__] = module
    return module


__path__: list[str] = []
datasets = _module("datasets", VisionDataset=VisionDataset, CIFAR10=CIFAR10)
functional = _module("transforms.functional", to_tensor=to_tensor)
transforms = _module("transforms", functional=functional, __path__=[])
io = _module("io")
