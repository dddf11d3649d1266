"""Whole model folders, as the Hugging Face hub has them: weights become .dcb files, everything else is copied."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import loadable, showing
from .atomic import AtomicFolder, reason
from .checkpoint import CheckpointReader, kind_of_path, open_checkpoint
from .checkpoint.base import Array, PathLike
from .checkpoint.elsewhere import way_from_folder
from .dcb.bases import BaseLike
from .dcb.container import MAGIC
from .dcb.reader import OnProgress, OpenFile
from .dcb.writer import Report
from .errors import CheckpointError, OptionError, UnsupportedError, unknown
from .files import compress_checkpoint, decompress_checkpoint, default_restored, open_file, path_of
from .options import OptionFields, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing itself only from Python 3.11 on

SUFFIX = ".dcb"
#: How weights can be stored in a folder.
FORMATS = ("dcb", "transformers")
#: What a folder's name gets, and loses again.
_MARK = "-dcb"
#: History and locks, of which a copy is of no use.
_LEFT_OUT = (".git", "__pycache__")
#: Files of a training that goes on: small errors in them do harm, and nobody ships them.
_STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states|training_args)", re.IGNORECASE)
#: Weights in files of other kinds.
_OTHER_WEIGHTS = (".h5", ".keras", ".msgpack", ".ot", ".npy", ".tflite", ".nemo", ".pdparams", ".distcp")

_log = logging.getLogger(__name__)


@dataclass
class FolderReport:
    """What became of a folder."""

    path: Path  #: the folder that was written
    files: dict[str, Report] = field(default_factory=dict)  #: compressed files, by their paths in the original
    copied: list[str] = field(default_factory=list)  #: the other files
    notes: list[str] = field(default_factory=list)  #: what the user should know, a line each

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [
            [name, f"{one.raw_bytes:,}", f"{one.file_bytes:,}", f"{one.bits_per_weight:.2f}"]
            for name, one in self.files.items()
        ]
        words = f"{self.path}: {self.raw_bytes:,} bytes of tensors in {self.file_bytes:,} bytes"
        header = ["file", ">bytes of tensors", ">bytes", ">bits per weight"]
        return showing.lines(words, *self.notes) + showing.table(header, rows, showing.ROWS)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(report.raw_bytes for report in self.files.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all .dcb files."""
        return sum(report.file_bytes for report in self.files.values())

    @property
    def bits_per_weight(self) -> float:
        """Bytes of all .dcb files in bits per element, tied ones counted once."""
        reports = self.files.values()
        elements = sum(tensor.size for report in reports for tensor in report.tensors if tensor.method != "tied")
        return 8 * self.file_bytes / elements if elements else 0.0


def compress_folder(
    folder: PathLike,
    path: PathLike | None = None,
    *,
    format: str = "dcb",
    options: Options | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: OnProgress | None = None,
    **settings: Unpack[OptionFields],
) -> FolderReport:
    """Compress a model folder: one of the same shape, with a .dcb file in place of each file of weights.

    ``model.safetensors`` becomes ``model.safetensors.dcb``, and so does each shard; in sub-folders likewise. All other
    files are copied, and so are weights in files of other kinds, optimiser states, and files that cannot be read as
    tensors alone: :attr:`FolderReport.notes` names these. Links are followed. The folder appears whole or not at all.

    With ``format="transformers"`` the folder is one that ``from_pretrained`` of transformers loads after ``import
    deepcabac.transformers``, and that of diffusers after ``import deepcabac.diffusers``: ``model.safetensors`` and its
    shards keep their names, and hold coded tensors. Other weights beside them are left out.

    ``path`` is by default the folder's name with ``-dcb``. ``settings`` are the fields of :class:`Options`, applied to
    each file; ``size``, ``curvature`` and ``importance`` need a folder with one file of weights. ``progress`` is called
    with bytes of the files done and of all.

    With an ``executor`` (of ``concurrent.futures``, Dask's ``client.get_executor()``, ...) each file is one piece of
    work for it. Its processes must see the folders under the same paths; ``threads`` is for each of them. The bytes are
    the same.

    Raises :class:`OptionError` (also if there is something at ``path``, unless ``overwrite`` is true: then files of the
    same names are replaced), :class:`CheckpointError` or :class:`UnsupportedError`.
    """
    folder = checked_folder(folder)
    target = default_compressed(folder) if path is None else path_of(path, "name the folder to write")
    keep_out(target, folder)
    chosen = Options.of(options, settings)
    found = list(walk(folder))
    external = {data for _, file in found for data in _external_data(file)}
    if format not in FORMATS:
        raise OptionError(unknown("format", str(format), FORMATS))
    loaded = _loadable(folder, found) if format == "transformers" else {}
    if format == "transformers":
        weights = [(name, file) for name, file in found if file.parent in loaded and loadable.is_model_file(file)]
    else:
        weights = [(name, file) for name, file in found if _is_weights(file)]
    coded = {file for _, file in weights}
    for name, file in found:
        if name.endswith(SUFFIX) and begins_compressed(file):
            advice = "'deepcabac decompress' (in Python, decompress_folder) restores it"
            raise OptionError(f"{folder}: holds {name}: is compressed already; {advice}")
    if not weights and format == "dcb":
        for place in dict.fromkeys([folder, *(file.parent for _, file in found)]):
            if (way := way_from_folder(place)) is not None:
                inside = "" if place == folder else f"holds {place.relative_to(folder).as_posix()}, which "
                raise UnsupportedError(f"{folder}: {inside}{way}")
        kinds = ".safetensors, .bin, .pt, .pth, .npz, .onnx or .gguf"
        raise OptionError(f"{folder}: holds no weights that can be compressed, in files of {kinds}")
    single = [name for name in ("size", "curvature", "importance") if getattr(chosen, name) is not None]
    if single and len(weights) > 1:
        raise OptionError(f"{folder}: {single[0]} is for one file of weights, and there are {len(weights)}: use bits")
    report = FolderReport(target)
    notes: dict[str, str] = {}
    copied: set[str] = set()
    with AtomicFolder(target, overwrite=overwrite) as new:
        for name, file in found:
            place = new.path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if file in coded or (file in external and format == "dcb"):
                continue  # what is external is part of the model that names it
            if file.parent in loaded and _is_other_weights(file):
                notes[name] = "left out: the model's weights are in safetensors beside it"
                continue
            if format != "dcb" and _is_weights(file):
                notes[name] = "copied as it is: no library that loads it knows of deepcabac"
            elif _is_state(file):
                notes[name] = "copied as it is: the state of a training"
            elif file.name.lower().endswith(_OTHER_WEIGHTS):
                notes[name] = f"copied as it is: {file.suffix} files cannot be compressed"
            _copy(file, place)
            copied.add(name)
        calls = [_Compress(file, new.path / name, format, chosen) for name, file in weights]
        for (name, file), made in zip(weights, _results(calls, executor, progress), strict=True):
            if isinstance(made, Report):
                report.files[name] = made
            else:
                notes[name] = f"copied as it is: {made}"
                _copy(file, new.path / name)
                copied.add(name)
        for part, config in loaded.items():
            of_part = [one for name, one in report.files.items() if (folder / name).parent == part]
            dtype = loadable.common_dtype(of_part) if loadable.needs_dtype(config) else None
            place = new.path / part.relative_to(folder) / "config.json"
            place.write_text(loadable.marked_config(place.read_text(encoding="utf-8"), dtype), encoding="utf-8")
        if not report.files:
            raise UnsupportedError(f"{folder}: no file could be compressed; {weights[0][0]}: {notes[weights[0][0]]}")
    report.copied = [name for name, _ in found if name in copied]
    report.notes = [f"{name}: {notes[name]}" for name, _ in found if name in notes]
    report.notes += [f"{name}: {note}" for name, one in report.files.items() for note in _own_notes(one)]
    report.notes += [
        f"no tensor's name matches the pattern {pattern!r}"
        for pattern in chosen.overrides
        if all(pattern in one.unmatched for one in report.files.values())
    ]
    return report


def _loadable(folder: Path, found: list[tuple[str, Path]]) -> dict[Path, dict[str, Any]]:
    """Folders in ``folder`` that transformers or diffusers loads, and their configurations."""
    parts = {}
    for part in dict.fromkeys(file.parent for _, file in found if loadable.is_model_file(file)):
        config = loadable.read_config(part)
        if config is not None:
            loadable.check_config(config, part)
            parts[part] = config
    if not parts:
        raise OptionError(
            f"{folder}: holds no model that transformers loads, with config.json and model.safetensors: save it with "
            "save_pretrained, or leave the format out"
        )
    return parts


def _is_other_weights(file: Path) -> bool:
    """Whether a file beside a model's safetensors holds its weights once more."""
    if file.name.startswith("adapter"):
        return False
    index = file.name.endswith(".index.json") and ".safetensors." not in file.name
    return _is_weights(file) or index or file.name.lower().endswith(_OTHER_WEIGHTS)


class FolderReader(CheckpointReader):
    """The weights of a folder as one checkpoint, whichever files they are in. Raises :class:`OptionError` where two
    files have tensors of one name, as parts of a pipeline do.
    """

    kind = ""

    def __init__(self, folder: Path) -> None:
        self.specs = []
        self.files: list[Path] = []
        self._of: dict[str, CheckpointReader] = {}
        self._stack = ExitStack()
        with self._stack:  # closed if one cannot be opened
            for name, file in walk(checked_folder(folder)):
                if not _is_weights(file):
                    continue
                self.files.append(file)
                reader = self._stack.enter_context(open_checkpoint(file))
                for spec in reader.specs:
                    if spec.name in self._of:
                        raise OptionError(
                            f"{folder}: {name} has a tensor {spec.name!r}, and so has another file: search each alone"
                        )
                    self._of[spec.name] = reader
                self.specs += reader.specs
            if not self._of:
                raise OptionError(f"{folder}: holds no weights that can be compressed")
            self._stack = self._stack.pop_all()

    def read(self, name: str) -> Array:
        return self._of[name].read(name)

    def close(self) -> None:
        self._stack.close()


def decompress_folder(
    folder: PathLike,
    path: PathLike | None = None,
    *,
    overwrite: bool = False,
    max_bytes: int | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    progress: OnProgress | None = None,
) -> Path:
    """Restore the folder that :func:`compress_folder` compressed. Returns its path.

    Every .dcb file becomes what it was made from, under its own name without ``.dcb``; all other files are copied.
    ``path`` is by default the folder's name without ``-dcb``, or else with ``-restored``. ``max_bytes`` limits the
    tensors of each file, ``executor`` is as for :func:`compress_folder`. The folder appears whole or not at all.

    Raises :class:`OptionError` (also if there is something at ``path``, unless ``overwrite`` is true),
    :class:`DamagedFileError`, :class:`LimitError` or :class:`CheckpointError`.
    """
    folder = checked_folder(folder)
    target = default_decompressed(folder) if path is None else path_of(path, "name the folder to write")
    keep_out(target, folder)
    found = list(walk(folder))
    coded = _coded(found)
    compressed = {name: file for name, file in found if file in coded or begins_compressed(file)}
    if not compressed:
        raise OptionError(f"{folder}: holds no compressed file: there is nothing to restore")
    names = {name for name, _ in found if name not in compressed}
    calls = []
    with AtomicFolder(target, overwrite=overwrite) as new:
        for name, file in found:
            place = new.path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if name not in compressed:
                _copy(file, place)
                if name.endswith("config.json") and any(file == one.with_name("config.json") for one in coded):
                    place.write_text(loadable.unmarked_config(file.read_text(encoding="utf-8")), encoding="utf-8")
                continue
            restored = name if file in coded else _restored_name(name, file)
            if restored in names:
                raise OptionError(f"{folder}: {name} and another file both become {restored}: rename one")
            names.add(restored)
            calls.append(_Restore(file, new.path / restored, file in coded, max_bytes, threads))
        _results(calls, executor, progress)
    return target


@dataclass(frozen=True)
class _Compress:
    """Compress one file; a call that other processes can make, too."""

    file: Path
    place: Path
    format: str
    options: Options

    def __call__(self, progress: OnProgress | None = None) -> Report | str:
        """What became of it, or why it cannot be compressed. A second attempt, by another process, begins anew."""
        if self.format != "dcb":
            return loadable.code_file(self.file, self.place, self.options, progress)
        made = self.place.with_name(self.place.name + SUFFIX)
        try:
            return compress_checkpoint(self.file, made, options=self.options, overwrite=True, progress=progress)[1]
        except UnsupportedError as error:
            return str(error).removeprefix(f"{self.file}: ")


@dataclass(frozen=True)
class _Restore:
    """Restore one file, likewise."""

    file: Path
    place: Path
    coded: bool
    max_bytes: int | None
    threads: int | None

    def __call__(self, progress: OnProgress | None = None) -> None:
        limits: dict[str, Any] = {"max_bytes": self.max_bytes, "threads": self.threads, "progress": progress}
        if self.coded:
            loadable.restore_file(self.file, self.place, **limits)
        else:
            decompress_checkpoint(self.file, self.place, overwrite=True, **limits)


def _results(
    calls: Sequence[_Compress | _Restore], executor: Executor | None, progress: OnProgress | None
) -> list[Any]:
    """The results of ``calls`` in order, made here or by ``executor``; progress in bytes of files, since tensors are
    known only once a file is opened.
    """
    sizes = [os.path.getsize(call.file) for call in calls]
    total, before, results = sum(sizes), 0, []

    def show(done: int, of: int) -> None:
        if progress is not None:
            progress(before + (size * done // of if of else size), total)

    futures = None
    if executor is not None:  # whose processes may be in another current folder
        absolute = [replace(call, file=call.file.absolute(), place=call.place.absolute()) for call in calls]
        futures = [executor.submit(call) for call in absolute]
    try:
        for number, (call, size) in enumerate(zip(calls, sizes, strict=True)):
            results.append(call(None if progress is None else show) if futures is None else futures[number].result())
            _log.info("%s: done", call.place.name)
            show(1, 1)
            before += size
    finally:
        for future in futures or ():
            future.cancel()
        wait([future for future in futures or () if not future.cancelled()])  # none writes once the folder is gone
    return results


def _coded(found: list[tuple[str, Path]]) -> set[Path]:
    """Safetensors files whose tensors are coded."""
    coded = set()
    for part in dict.fromkeys(file.parent for _, file in found if loadable.is_model_file(file)):
        config = loadable.read_config(part)
        if config is not None and loadable.is_coded(config):
            loadable.check_version(config["quantization_config"])
            coded |= {file for _, file in found if file.parent == part and loadable.is_model_file(file)}
    return coded


def compressed_files(folder: PathLike) -> list[tuple[str, Path]]:
    """The compressed files of a folder, of either format, and their paths in it.

    Raises :class:`OptionError` if there are none.
    """
    folder = checked_folder(folder)
    found = list(walk(folder))
    coded = _coded(found)
    compressed = [(name, file) for name, file in found if file in coded or begins_compressed(file)]
    if not compressed:
        raise OptionError(f"{folder}: holds no compressed file; compress_folder compresses a folder")
    return compressed


def open_compressed(
    path: PathLike, *, base: BaseLike | None = None, threads: int | None = None
) -> OpenFile | loadable.CodedFile:
    """A .dcb file, or one of :func:`compressed_files`, to be looked at or checked."""
    path = Path(path)
    if loadable.is_model_file(path) and not begins_compressed(path):
        return loadable.CodedFile(path, threads=threads)
    return open_file(path, base=base, threads=threads)


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files of a folder in order, by their paths in it with ``/``. Links are followed.

    Raises :class:`CheckpointError` for links that lead nowhere or in a circle, and for what is neither file nor folder.
    """
    yield from _walk(folder, "", (folder.resolve(),))


def _walk(folder: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {reason(error)}") from error
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir():
            if entry.name in _LEFT_OUT:
                continue
            place = entry.resolve()
            if place in above:
                raise CheckpointError(f"{entry}: is a link to a folder around it")
            yield from _walk(entry, name + "/", (*above, place))
        elif entry.is_file():
            yield name, entry
        elif entry.is_symlink():
            raise CheckpointError(f"{entry}: is a link to a file that is not there; download the model again")
        else:
            raise CheckpointError(f"{entry}: is neither a file nor a folder; move it away")


def checked_folder(folder: PathLike) -> Path:
    """``folder`` as a Path. Raises :class:`CheckpointError` if there is none, or it is not a model's."""
    path = path_of(folder, "give the path of a folder")
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "no such folder; check the name"
        raise CheckpointError(f"{path}: {what}")
    snapshots = path / "snapshots"
    if snapshots.is_dir() and (path / "blobs").is_dir():
        inside = next((one.name for one in sorted(snapshots.iterdir())), "...")
        raise CheckpointError(f"{path}: is a cache of the Hugging Face hub; give a snapshot, {snapshots / inside}")
    return path


def default_compressed(folder: Path) -> Path:
    """``model-dcb`` beside ``model``."""
    return _absolute(folder).with_name(_absolute(folder).name + _MARK)


def default_decompressed(folder: Path) -> Path:
    """``model`` beside ``model-dcb``, ``other-restored`` beside ``other``."""
    name = _absolute(folder).name
    marked = name.endswith(_MARK) and name != _MARK
    return _absolute(folder).with_name(name.removesuffix(_MARK) if marked else name + "-restored")


def _absolute(folder: Path) -> Path:
    """``folder`` as it is if it has a name of its own, as ``.`` and ``..`` have not."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def keep_out(target: Path, folder: Path) -> None:
    """Raise :class:`OptionError` if one of these folders is, or lies in, the other."""
    here, there = target.resolve(), folder.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise OptionError(f"{target}: is the folder to read, or one around or in it; name another one to write")


def begins_compressed(path: Path) -> bool:
    """Whether a file begins like a .dcb file."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error


def _is_weights(file: Path) -> bool:
    """Whether a file is to be compressed: weights, not what says in which file they are, and not other binary files."""
    kind = kind_of_path(file)
    if kind is None or kind.endswith("-sharded") or _is_state(file):
        return False
    if kind != "torch":
        return True
    with file.open("rb") as opened:  # .bin is a suffix of much else
        return opened.read(2).startswith((b"PK", b"\x80"))


def _is_state(file: Path) -> bool:
    return kind_of_path(file) is not None and _STATE.match(file.name) is not None


def _external_data(file: Path) -> set[Path]:
    """The files that an ONNX model keeps weights in."""
    if kind_of_path(file) != "onnx":
        return set()
    from .checkpoint.onnx_file import OnnxReader

    with OnnxReader(file) as model:
        return model.external_files


def _restored_name(name: str, file: Path) -> str:
    """``model.safetensors`` for ``model.safetensors.dcb``; for ``model.dcb`` by the kind that it was made from."""
    stem = name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
    if kind_of_path(stem) is not None:
        return stem
    with open_file(file) as opened:
        made = default_restored(Path(name), opened.kind, opened.extra)
    return made.as_posix()


def _own_notes(report: Report) -> list[str]:
    """Notes of a file but those on patterns, which are about all files."""
    return [note for note in report.notes if not note.startswith("no tensor's name matches")]


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
        shutil.copymode(source, target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {reason(error)}") from error
