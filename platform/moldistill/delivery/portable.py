"""A student as a file that other programs run: TorchScript or ONNX, held to the student's own predictions."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moldistill.core.artifacts import atomic_path
from moldistill.core.errors import InputError, RunError
from moldistill.delivery.plain import INPUTS, OUTPUT, PlainStudent, inputs_of
from moldistill.delivery.predictor import Member
from moldistill.models.made_up import made_up_batch

FILES = {"torchscript": "model.torchscript.pt", "onnx": "model.onnx"}

TOLERANCE = 1e-5
"""Of the largest distance (relative to the training targets' standard deviation) from the student's predictions."""

OPSET = 17

_TRACED = (7, 1, 4, 9, 2, 6)
_HELD_TO = ((3, 12, 5, 1, 30, 8, 11), (1,), (4, 4), (60,))
"""Sizes of the molecules of the batches that a graph is made and checked with: none of the same shape."""

_AXES = {
    "size": {0: "batch"},
    "atom_features": {0: "batch", 1: "atoms"},
    "shortest_paths": {0: "batch", 1: "atoms", 2: "atoms"},
    "bond_codes": {0: "batch", 1: "atoms", 2: "atoms"},
    OUTPUT: {0: "batch"},
}


def write_graph(member: Member, folder: Path, kind: str) -> str:
    """Write the student as `kind` into the folder, and check it; the file's name.

    Its inputs are `plain.INPUTS`, its output eV. Raises InputError for a student that has no such form, RunError where
    what was written does not predict what the student does.
    """
    if kind not in FILES:
        raise InputError("there is no such format", got=kind, expected=", ".join(FILES))
    missing = [name for name in ("onnx", "onnxruntime") if kind == "onnx" and find_spec(name) is None]
    if missing:
        raise InputError(
            "an ONNX file is checked before it is kept, and what that takes is not installed",
            got=f"no {' and no '.join(missing)}",
            expected="the packages onnx and onnxruntime",
            remedy="pip install 'moldistill[onnx]', or export without --format onnx",
        )
    plain = PlainStudent(member.model, member.scale).eval()
    with atomic_path(folder / FILES[kind]) as path:
        (_write_torchscript if kind == "torchscript" else _write_onnx)(plain, path)
        _check(member, _torchscript(path) if kind == "torchscript" else _onnx(path), kind)
    return FILES[kind]


def _example() -> tuple[Tensor, ...]:
    return inputs_of(made_up_batch(torch.float32, _TRACED).molecules)


def _write_torchscript(plain: PlainStudent, path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls tracing old; what is read back is checked
        # Its own check compares with a second tracing; ours compares with the student, on other shapes.
        traced: Any = torch.jit.trace(plain, _example(), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(traced), str(path))
    _without_sources(path)


def _without_sources(path: Path) -> None:
    """Leave out where on this machine each line of the source lies, which PyTorch writes beside the code."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(content, "w") as kept:
        for item in whole.infolist():
            if not item.filename.endswith(".debug_pkl"):
                name = item.filename.split("/", 1)[1]  # the folder in it has the name of a temporary file
                kept.writestr(f"model/{name}", whole.read(item))
    path.write_bytes(content.getvalue())


def _write_onnx(plain: PlainStudent, path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The exporter by tracing: the other one needs two packages more, and gives the same graph.
        torch.onnx.export(
            plain,
            _example(),
            str(path),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes=_AXES,
            opset_version=OPSET,
            dynamo=False,
        )


def _torchscript(path: Path) -> Callable[[Sequence[Tensor]], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def run(inputs: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(*inputs)
        return found

    return run


def _onnx(path: Path) -> Callable[[Sequence[Tensor]], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Tensor]) -> Tensor:
        (found,) = session.run([OUTPUT], {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)})
        return torch.from_numpy(found)

    return run


def _check(member: Member, run: Callable[[Sequence[Tensor]], Tensor], kind: str) -> None:
    for sizes in _HELD_TO:
        molecules = made_up_batch(torch.float32, sizes, seed=1).molecules
        with torch.no_grad():
            expected = member.model(molecules).prediction * member.scale.std + member.scale.mean
        apart = float((run(inputs_of(molecules)) - expected).abs().max()) / member.scale.std
        if not apart <= TOLERANCE:
            raise RunError(
                f"the student as {kind} does not predict what it does here",
                got=f"{apart:.2g} standard deviations apart",
                expected=f"at most {TOLERANCE:g}",
                remedy="export it without --format",
            )
