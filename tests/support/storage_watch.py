"""Which tensors operators make while they are watched: the largest, and the most bytes alive at once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class StorageWatch(TorchDispatchMode):
    """`with StorageWatch(known) as watch`: storages of `known` tensors, and views of them, aren't counted."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.largest_elements = 0
        """Of a tensor that an operator made, by its storage."""
        self.live_bytes = self.peak_bytes = 0
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, made)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = True
        nbytes = storage.nbytes()
        self.largest_elements = max(self.largest_elements, nbytes // tensor.element_size())
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._gone, nbytes)

    def _gone(self, nbytes: int) -> None:
        self.live_bytes -= nbytes
