"""safetensors files that carry their own SHA-256 digests.

There is one digest for each tensor and one for the header, since the format itself would not notice a flipped byte.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from onejump.files.atomic import OnejumpError, atomic_path, require_file
from onejump.files.digests import DIGEST_KEY


def _tensor_digest(tensor) -> str:
    """SHA-256 of dtype, shape and values of a tensor on the CPU."""
    import torch

    return _digest(tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b"")


def _digest(dtype: object, shape: Iterable[int], content: bytes | np.ndarray) -> str:
    digest = hashlib.sha256(f"{dtype} {tuple(shape)}".encode())
    digest.update(content)
    return digest.hexdigest()


def _header_digest(metadata: Mapping[str, str]) -> str:
    """SHA-256 of all metadata, including the tensors' digests: the identity of the file's content."""
    content = {key: value for key, value in metadata.items() if key != DIGEST_KEY}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_tensors(path: str | Path, tensors: Mapping, metadata: Mapping[str, object]) -> str:
    """Write tensors, on any device, and metadata atomically to a safetensors file.

    Metadata other than strings is stored as JSON.

    Returns:
        SHA-256 of the content (tensors and metadata), which is also stored under `sha256`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    header |= {f"{DIGEST_KEY}.{name}": _tensor_digest(tensor) for name, tensor in tensors.items()}
    header[DIGEST_KEY] = _header_digest(header)
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, header)
        except SafetensorError as error:
            raise OnejumpError(f"{path}: cannot be written ({error}); make room or fix its permissions") from error
        _sort_header(temporary)
    return header[DIGEST_KEY]


def _sort_header(path: Path) -> None:
    """Sort the header's keys, whose order safetensors leaves to chance, so that equal content gives equal bytes."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) != size:
            raise OnejumpError(f"{path}: its metadata cannot be sorted in place; use plain text in names")
        file.seek(8)
        file.write(text)


class _Metadata(dict[str, str]):
    """What a header says; what it does not say is asked for by mistake only if another version wrote the file."""

    path: Path

    def __missing__(self, key: str) -> str:
        raise OnejumpError(
            f"{self.path}: has no {key!r} in its metadata, so another version wrote it; remove the file and rerun the "
            "stage that makes it"
        )


class TensorFile:
    """A safetensors file of this project, opened lazily: each tensor is verified when it is first read.

    Metadata and shapes are read without PyTorch. `metadata` holds strings as stored; see `value` for what was stored
    as JSON. `names` are the tensors' names, sorted.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file and verify its header.

        Raises:
            OnejumpError: The file is missing, truncated, altered, or not written by this project.
        """
        from safetensors import SafetensorError, safe_open

        self.path = require_file(path)
        try:
            file = safe_open(self.path, framework="np")
            self.metadata = _Metadata(file.metadata() or {})
            self.metadata.path = self.path
            self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
            self.names: list[str] = list(self._shapes)
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise OnejumpError(self._damaged(f"not a whole safetensors file: {error}")) from error
        if DIGEST_KEY not in self.metadata:
            raise OnejumpError(f"{path}: has no {DIGEST_KEY} in its metadata, so it was not written by onejump")
        if _header_digest(self.metadata) != self.metadata[DIGEST_KEY]:
            raise OnejumpError(self._damaged("its metadata does not match its checksum"))
        listed = {key for key in self.metadata if key.startswith(f"{DIGEST_KEY}.")}
        if listed != {f"{DIGEST_KEY}.{name}" for name in self.names}:
            raise OnejumpError(self._damaged("its tensors are not those that its metadata lists"))
        self._verified: set[str] = set()

    def _damaged(self, why: str) -> str:
        return f"{self.path}: damaged ({why}); remove the file and rerun the stage that makes it"

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, as returned by `write_tensors`."""
        return self.metadata[DIGEST_KEY]

    def value(self, key: str):
        """A metadata value that was stored as JSON."""
        return json.loads(self.metadata[key])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it.

        Raises:
            OnejumpError: There is no such tensor.
        """
        if name not in self._shapes:
            raise OnejumpError(f"{self.path}: has no tensor {name!r}, only {', '.join(self.names)}")
        return self._shapes[name]

    def tensor(self, name: str, rows: slice | None = None):
        """Read one tensor, or some consecutive rows of it, on the CPU; the first read verifies the whole tensor.

        Raises:
            OnejumpError: There is no such tensor, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        self.shape(name)
        try:
            # Reopened each time, since what has been read stays in memory as long as the file is open.
            with safe_open(self.path, framework="pt") as file:
                if rows is not None and name in self._verified:
                    return file.get_slice(name)[rows]
                tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise OnejumpError(self._damaged(str(error))) from error
        if name not in self._verified and _tensor_digest(tensor) != self.metadata[f"{DIGEST_KEY}.{name}"]:
            raise OnejumpError(self._damaged(f"tensor {name!r} does not match its checksum"))
        self._verified.add(name)
        return tensor if rows is None else tensor[rows]

    def array(self, name: str) -> np.ndarray:
        """Read one tensor of a dtype that NumPy has, without PyTorch; errors as in `tensor`."""
        from safetensors import SafetensorError, safe_open

        self.shape(name)
        try:
            with safe_open(self.path, framework="np") as file:
                array = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise OnejumpError(self._damaged(str(error))) from error
        if _digest(f"torch.{array.dtype}", array.shape, array.tobytes()) != self.metadata[f"{DIGEST_KEY}.{name}"]:
            raise OnejumpError(self._damaged(f"tensor {name!r} does not match its checksum"))
        return array

    def tensors(self) -> dict:
        """All tensors, each verified."""
        return {name: self.tensor(name) for name in self.names}
