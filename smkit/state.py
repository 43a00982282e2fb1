"""What a checkpoint holds: a nested state as a JSON tree plus a safetensors file, and back, without any pickle.

The tree keeps what JSON alone would lose (tuples, keys that are not text, NaN, arrays) and what safetensors does (in
which order a tensor fills its memory); the tensors lie in the safetensors format under their dotted paths, so that any
tool can open them. This room knows neither files nor steps.

The format (an 8-byte length, a JSON header, the bytes) is written and read here and not by the library: up to 0.7
`save_file` holds the interpreter lock while it writes, so a hung disk would freeze the whole process, and `load` copies
the data once more. The tests read the files back with the library.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smkit.errors import CheckpointError
from smkit.sharding import Cut, is_distributed, local_part

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names of the safetensors format (safetensors/src/tensor.rs: Dtype)."""
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_ALIGNMENT = 8
_MAX_DEPTH = 100
_SMALL_BYTES = 4096

Tree = None | bool | int | float | str | list[Any] | dict[str, Any]
"""A JSON value. An object has one key, the kind of what its value stands for: dict, tuple, int, float, tensor..."""


@dataclass(frozen=True)
class FlatState:
    """A state taken apart.

    Attributes:
        tree: The structure and the plain values, with a name in place of each tensor.
        tensors: Each memory once, under the dotted path where it was met first.
        names_below: The names of the tensors below each key of the state itself.
        cuts: Of what whole a tensor is this rank's part, for those that are.
        wait: Returns when the tensors hold what they should.
    """

    tree: Tree
    tensors: dict[str, Tensor]
    names_below: dict[Any, list[str]]
    cuts: dict[str, Cut] = field(default_factory=dict)
    wait: Callable[[], object] = lambda: None

    def only_parts(self) -> FlatState:
        """Return this state without the tensors that every rank has as a whole."""
        parts = {name: self.tensors[name] for name in self.cuts}
        names_below = {key: [name for name in names if name in parts] for key, names in self.names_below.items()}
        return FlatState(self.tree, parts, names_below, self.cuts)

    def copied_to(self, buffers: Mapping[str, Tensor]) -> FlatState:
        """Return this state with its tensors copied into CPU memory, into the `buffers` of the same name that fit.

        From a GPU it does not wait: what is computed next comes after the copies, and `wait` says when they are there.
        """
        copies = {}
        gpus: dict[torch.device, torch.cuda.Event] = {}
        # A buffer made in the caller's inference mode could not be written to outside of it.
        with torch.inference_mode(mode=False), torch.no_grad():
            for name, tensor in self.tensors.items():
                buffer = buffers.get(name)
                if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                    buffer = _buffer_like(tensor)
                copies[name] = buffer.copy_(tensor, non_blocking=tensor.is_cuda)
                if tensor.is_cuda and tensor.device not in gpus:
                    # One that sleeps while it waits: torch's default keeps a core busy.
                    gpus[tensor.device] = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        # A model can lie on several GPUs, and each has a stream of its own.
        for gpu, copied in gpus.items():
            copied.record(torch.cuda.current_stream(gpu))

        def wait() -> None:
            for gpu, copied in gpus.items():
                # Another thread has another current GPU, and would make a context there.
                with torch.cuda.device(gpu):
                    copied.synchronize()

        return FlatState(self.tree, copies, self.names_below, self.cuts, wait)

    def buffers(self) -> dict[str, Tensor]:
        """Return memory for copies of the tensors, each page of it touched: that takes longer than to copy."""
        with torch.inference_mode(mode=False):
            buffers = {name: _buffer_like(tensor) for name, tensor in self.tensors.items()}
        for buffer in buffers.values():
            buffer.reshape(-1).view(torch.uint8).zero_()
        return buffers

    def names_with_nan(self, key: str) -> list[str]:
        """Return the names of the tensors below a key of the state that hold NaN."""
        names = self.names_below.get(key, [])
        return [name for name in names if bool(self.tensors[name].isnan().any())]

    def tree_file(self) -> memoryview:
        """Return the structure and the plain values as JSON."""
        return memoryview(json.dumps(self.tree, separators=(",", ":"), allow_nan=False).encode())

    def tensor_file(self) -> Iterator[memoryview]:
        """Yield the content of a safetensors file, piece by piece; for copies only, contiguous and in CPU memory."""
        # Wide items first, so that each tensor of a loaded file starts at a multiple of its item's size.
        ordered = sorted(self.tensors.items(), key=lambda item: -item[1].element_size())
        header: dict[str, Any] = {}
        position = 0
        for name, tensor in ordered:
            end = position + tensor.nbytes
            header[name] = {
                "dtype": _DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _HEADER_ALIGNMENT)
        yield memoryview(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _buffer_like(tensor: Tensor) -> Tensor:
    # A GPU copies into page-locked memory by itself, and at twice the speed.
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)


def flatten(state: Mapping[str, Any]) -> FlatState:
    """Take a nested state apart, without copying a tensor: they are still the caller's own memory.

    Raises:
        CheckpointError: A value or a key is of a type that cannot be kept; names its path.
    """
    flattener = _Flattener()
    tree = flattener.encode(dict(state), ())
    return FlatState(tree, flattener.tensors, flattener.names_below, flattener.cuts)


def parse_tree(file: memoryview) -> tuple[Tree, dict[str, Cut]]:
    """Return the structure that a file holds, and how the tensors are cut that ranks held in parts.

    Files that `flatten` did not make can raise any exception here and below, and run no code.
    """
    tree = json.loads(bytes(file))
    return tree, {name: Cut(tuple(shape), dimension) for name, shape, dimension in _contents(tree, "part")}


def rebuilt(tree: Tree, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state of this structure with these tensors in it, by name."""
    strided = {name: _laid_out(tensors[name], strides) for name, strides in _contents(tree, "strided")}
    state = _rebuild(tree, {**tensors, **strided})
    if not isinstance(state, dict):
        raise TypeError(f"the state is of type {_type_name(state)}")
    return state


def _contents(tree: Tree, wanted: str) -> Iterator[list[Any]]:
    """Yield what stands under a kind that a list belongs to, at any depth."""
    if isinstance(tree, list):
        for item in tree:
            yield from _contents(item, wanted)
    elif isinstance(tree, dict):
        ((kind, content),) = tree.items()
        if kind == wanted:
            yield content
        elif kind in ("dict", "tuple"):
            yield from _contents(content, wanted)


def _strides_of(tensor: Tensor) -> list[int] | None:
    """Return the strides of a tensor that fills its memory otherwise than row by row, as channels_last does.

    An optimizer's state must lie as its parameter does: fused kernels take memory by memory, or refuse what differs.
    """
    by_rows, size = [], 1
    for length in reversed(tensor.shape):
        by_rows.append(size)
        size *= max(length, 1)
    strides = tensor.stride()
    # torch keeps strides exactly where they leave no gap and nothing lies on top of another thing, and only there.
    is_kept = strides != tuple(reversed(by_rows)) and torch.empty_like(tensor, device="meta").stride() == strides
    return list(strides) if is_kept else None


def _laid_out(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    furthest = sum((length - 1) * stride for length, stride in zip(tensor.shape, strides, strict=True))
    if furthest >= tensor.numel() > 0:
        raise ValueError(f"strides of {list(strides)} for the shape {tuple(tensor.shape)}")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _rebuild(tree: Tree, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_rebuild(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "dict":
        return {_rebuild(key, tensors): _rebuild(value, tensors) for key, value in content}
    if kind == "tuple":
        return tuple(_rebuild(item, tensors) for item in content)
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    if kind == "tensor":
        return tensors[content]
    if kind in ("strided", "part"):
        return tensors[content[0]]
    if kind in ("array", "scalar"):
        array = tensors[content].numpy()
        return array if kind == "array" else array[()]
    raise ValueError(f"unknown kind {kind!r}")


def parse_tensors(data: memoryview) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name: views of `data`, which lives as long as they do, or copies."""
    start = 8 + int.from_bytes(data[:8], "little")
    return {name: _view(data, start, **entry) for name, entry in json.loads(bytes(data[8:start])).items()}


def _view(data: memoryview, start: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    begin, end = data_offsets
    count = math.prod(shape)
    # torch takes a count below zero for all that there is, and memory that nothing fills for a tensor.
    if begin < 0 or min(shape, default=0) < 0 or end - begin != count * _DTYPES[dtype].itemsize:
        raise ValueError(f"a tensor of shape {shape} and dtype {dtype} at {data_offsets}")
    if not count:
        return torch.empty(shape, dtype=_DTYPES[dtype], device="cpu")
    view = torch.frombuffer(data, dtype=_DTYPES[dtype], count=count, offset=start + begin).reshape(shape)
    # Adam's count of steps stays where it was loaded, and would keep the whole file in memory.
    return view.clone() if view.nbytes <= _SMALL_BYTES else view


@dataclass
class _Flattener:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names_below: dict[Any, list[str]] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
    _names: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def encode(self, value: Any, path: tuple[Any, ...]) -> Tree:
        if len(path) > _MAX_DEPTH:
            raise _cannot_keep(f"the state is nested deeper than {_MAX_DEPTH} levels", path)
        if isinstance(value, dict):
            return {"dict": [[_encode_key(key, path), self.encode(item, (*path, key))] for key, item in value.items()]}
        if type(value) is list:
            return self._encode_items(value, path)
        if type(value) is tuple:
            return {"tuple": self._encode_items(value, path)}
        if isinstance(value, Tensor):
            return self._encode_part(value, path) if is_distributed(value) else self._encode_tensor(value, path)
        if type(value) is np.ndarray:
            return {"array": self._name(_tensor_of(value, path), path)}
        if isinstance(value, np.generic):
            return {"scalar": self._name(_tensor_of(np.asarray(value), path), path)}
        return _encode_plain(value, path)

    def _encode_items(self, items: Iterable[Any], path: tuple[Any, ...]) -> list[Tree]:
        return [self.encode(item, (*path, index)) for index, item in enumerate(items)]

    def _encode_tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> Tree:
        name = self._name(tensor, path)
        strides = _strides_of(tensor)
        return {"tensor": name} if strides is None else {"strided": [name, strides]}

    def _encode_part(self, tensor: Tensor, path: tuple[Any, ...]) -> Tree:
        try:
            local, cut = local_part(tensor)
        except ValueError as error:
            raise _cannot_keep(f"a tensor in parts cannot be kept in a checkpoint: {error}", path) from error
        name = self._name(local, path)
        if cut is None:
            return {"tensor": name}
        self.cuts[name] = cut
        return {"part": [name, list(cut.shape), cut.dimension]}

    def _name(self, tensor: Tensor, path: tuple[Any, ...]) -> str:
        _check_tensor(tensor, path)
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        # A conjugate or negative view lies in the same place as its base.
        identity = (*place, tensor.is_conj(), tensor.is_neg())
        name = self._names.get(identity)
        if name is None:
            name = _dotted(path).encode("utf-8", "replace").decode()
            while name in self.tensors or name == "__metadata__":
                name += "'"
            self._names[identity] = name
            self.tensors[name] = tensor
        self.names_below.setdefault(path[0], []).append(name)
        return name


def _encode_plain(value: Any, path: tuple[Any, ...]) -> Tree:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value  # type: ignore[no-any-return]
    if kind is int:
        # Python refuses to read or write integers of more than 4,300 decimal digits.
        return value if abs(value) < 2**63 else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    raise _cannot_keep(f"a value of type {_type_name(value)} cannot be kept in a checkpoint", path)


def _encode_key(key: Any, path: tuple[Any, ...]) -> Tree:
    if key is None or type(key) in (bool, int, float, str):
        return _encode_plain(key, path)
    raise _cannot_keep(f"a key of type {_type_name(key)} cannot be kept in a checkpoint: {key!r:.80}", path)


def _tensor_of(array: np.ndarray[Any, Any], path: tuple[Any, ...]) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))
    except (TypeError, ValueError) as error:
        raise _cannot_keep(f"an array of dtype {array.dtype} cannot be kept in a checkpoint", path) from error


def _check_tensor(tensor: Tensor, path: tuple[Any, ...]) -> None:
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        raise _cannot_keep(f"a tensor of type {_type_name(tensor)} cannot be kept in a checkpoint", path)
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        kind = "nested" if tensor.is_nested else f"{tensor.layout} {tensor.device.type}"
        raise _cannot_keep(f"a {kind} tensor cannot be kept in a checkpoint", path)
    if tensor.dtype not in _DTYPE_NAMES:
        raise _cannot_keep(f"a tensor of dtype {tensor.dtype} cannot be kept in a checkpoint", path)


def _cannot_keep(what: str, path: tuple[Any, ...]) -> CheckpointError:
    fix = "build the state from dicts, lists, tuples, numbers, text, arrays and plain tensors, such as a state_dict()"
    return CheckpointError(what, where=f"{_dotted(path)} in the state", fix=fix)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path[:_MAX_DEPTH]))


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
