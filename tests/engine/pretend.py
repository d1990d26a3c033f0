"""A pretended GPU: a device `gpu` of torch that computes on the processor and refuses what a real one refuses.

A tensor on it holds an ordinary one, so everything is computed, gradients and all, and the results are the processor's
to the bit. An operation on tensors of both devices fails unless a GPU would do it: single numbers (of no dimension)
may lie on the processor, and so may indices in brackets; copies go both ways.
"""

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME, aten = "gpu", torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
KERNELS, OTHERS = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")  # as long as they live
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Held(torch.Tensor):
    """A tensor on the pretended GPU; its numbers lie in `held`."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=torch.device(NAME, 0), **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})

    def __repr__(self):
        return f"Held({self.held})"

    def tolist(self):
        return self.held.tolist()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.held = value.held


def _compute(function, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    _refuse(function, tensors)
    here, device = {id(t.held): t for t in tensors if isinstance(t, Held)}, kwargs.get("device")
    goes_there = isinstance(tensors[0], Held) if device is None and function in COPIES else NAME in str(device or NAME)
    if device is not None:
        kwargs = kwargs | {"device": "cpu"}
    args, kwargs = tree_map(lambda t: t.held if isinstance(t, Held) else t, (args, kwargs))

    def put(made):  # what an operation in place gives back is what it was given
        return made if not isinstance(made, torch.Tensor) else here.get(id(made)) if id(made) in here else Held(made)

    out = function(*args, **kwargs)
    return tree_map(put, out) if goes_there else out


def _refuse(function, tensors: list[torch.Tensor]) -> None:
    """RuntimeError where a GPU would not take tensors from both devices."""
    places = [isinstance(t, Held) for t in tensors]
    if all(places) or not any(places) or function in COPIES or places[0] and function in INDEXED:
        return
    writes_to_processor = function._schema.is_mutable and not places[0]
    if writes_to_processor or function in INDEXED or any(t.ndim for t in tensors if not isinstance(t, Held)):
        raise RuntimeError(f"{function}: tensors on both devices, {[(t.device.type, *t.shape) for t in tensors]}")


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Held(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return Held(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    target.held.copy_(source)
    return target


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def register() -> None:
    """Make the device known: once a process, before its first gradient, as torch counts devices then."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    KERNELS.impl("empty.memory_format", _empty, "PrivateUse1")
    KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")
    KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
    OTHERS.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # it casts nothing


A, B = torch.arange(4.0), torch.tensor([2, 0])
MIXED = {  # an operation on what lies on the device (a) and on the processor, and whether a real GPU does it
    "sum": (lambda a: a + A, False),
    "number": (lambda a: a + torch.tensor(2.0), True),
    "number into the processor's": (lambda a: A + a.sum(), False),
    "into the processor's": (lambda a: A.clone().add_(a), False),
    "copy there": (lambda a: a.copy_(A), True),
    "copy back": (lambda a: A.clone().copy_(a), True),
    "index in brackets": (lambda a: a[B], True),
    "index there, of the processor's": (lambda a: A[B.to(a.device)], False),
    "index_select": (lambda a: a.index_select(0, B), False),
    "gather": (lambda a: a.gather(0, B), False),
    "stored in brackets": (lambda a: a.index_put_((B,), A[:2].to(a.device)), True),
    "where": (lambda a: torch.where(a > 1, A, a), False),
    "together": (lambda a: torch.cat([a, A]), False),
    "as NumPy": (lambda a: a.numpy(), False),
    "model here": (lambda a: torch.nn.Linear(4, 1)(a), False),
    "gradient": (lambda a: torch.autograd.grad((a.requires_grad_() ** 2).sum(), a, A.sum()), True),
}
