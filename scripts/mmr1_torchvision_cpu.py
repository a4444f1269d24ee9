"""Lets a torchvision wheel that was linked to CUDA be imported beside a CPU build of torch.

PyPI's Linux wheel of torchvision cannot load its operators there, and `import torchvision` then fails on the two
operators whose fake versions it registers. Declaring their schemas is enough: the transforms that the processors use
are plain torch, and whoever calls the operators themselves still gets an error. With a torchvision whose operators
load, nothing is declared.

`make setup` installs this module with a .pth file that imports it, because it is needed in every process of the
environment, vLLM's own children included. It imports nothing until torchvision does.
"""

import sys

TARGET = "torchvision._meta_registrations"
OPERATORS = ("nms", "qnms")
SCHEMA = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_libraries = []  # torch forgets the operators with the library object


class _DeclareOperatorsFirst:
    """A finder that finds nothing: it acts just before `TARGET` is looked for, once."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == TARGET:
            sys.meta_path.remove(cls)
            _declare_missing_operators()
        return None


def _declare_missing_operators():
    import torch
    from torchvision import extension

    if not extension._has_ops():
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in OPERATORS:
            library.define(SCHEMA.format(operator))
        _libraries.append(library)


sys.meta_path.insert(0, _DeclareOperatorsFirst)
