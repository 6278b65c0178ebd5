"""Images that are decoded while a network trains, by worker processes, for data sets that do not fit into memory.

Workers decode parts of the next batches into a ring of batches in shared memory, as uint8. The device normalises them.
The views of a training image are a function of the seed, the epoch and the image. Therefore the batches do not depend
on the number of workers, and a run can resume from any step and with any number of devices.
"""

import math
import signal
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import joblib
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from plainres.data.batches import Batch, DeviceImages, Pixels, SampledBatch, StreamedBatch, TrainingBatch
from plainres.data.decoding import decode
from plainres.data.encoded import DamagedImageError, Encoded, Subset
from plainres.data.sources import AnySplit, Source, Split, channel_histograms, stratified
from plainres.data.views import RANDOM_NUMBERS, View, Views
from plainres.errors import InputError
from plainres.processes.forkserver import attach_to_command, forkserver
from plainres.processes.signals import STOPPING
from plainres.randomness import uniforms

PART = 16  # images that a worker decodes at a time, about 40 ms of work on photographs
BATCHES_AHEAD = 2  # batches that the workers decode in advance
MOST_WORKERS = 16  # by default; more have not been measured
STATISTICS_SAMPLE = 2000  # training images, by class, from which channel statistics are computed
DIGEST_SAMPLE = 1000  # images of each split, by class, whose files are part of the digest of the data
# images of an evaluation batch by device type; activations of large images take much memory
EVALUATION_BATCH = {"cpu": 32, "cuda": 256}
EXIF = b"Exif\0\0"
PRELOADED = ["plainres.data.streaming"]

Wanted = tuple[Tensor, int | None]  # indices (N,) of a batch, and the key of its augmentation; None: crops of a test


@dataclass(frozen=True)
class StreamedSplit(AnySplit):
    """Images of any size before decoding, and how a network views them."""

    encoded: Encoded
    views: Views
    targets: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", self.encoded.targets)

    def __getitem__(self, index: Tensor) -> "StreamedSplit":
        """Select the images at `index` (n,), or those where a mask (N,) is true."""
        return replace(self, encoded=Subset(self.encoded, torch.arange(len(self))[index]))

    def sample(self, count: int | None) -> "Split | StreamedSplit":
        """Decode the middle crops of the images of `stratified`, in their original order.

        None selects all images, which are then decoded with each use, also to their middle crops only.

        Raises:
            InputError: an image cannot be decoded.
        """
        if count is None or count >= len(self):
            return replace(self, views=replace(self.views, test_crops=1))
        index = stratified(self.targets, count)
        return Split(self.middle_crops(index), self.targets[index])

    def channel_histograms(self) -> Tensor:
        """Return the number of pixels with each value (C, 256) in middle crops.

        They are of STATISTICS_SAMPLE images by class, or of all images if there are fewer.
        """
        return channel_histograms(self.middle_crops(stratified(self.targets, STATISTICS_SAMPLE)))

    def arrays(self) -> Iterator[Tensor]:
        """Yield the arrays that identify the images: all targets, and the files of DIGEST_SAMPLE images by class."""
        yield self.targets
        for index in stratified(self.targets, DIGEST_SAMPLE).tolist():
            try:
                encoded = self.encoded.read(index)
            except DamagedImageError as error:
                raise InputError(f"{self.encoded.name(index)} {error}") from error
            yield torch.from_numpy(
                np.array(np.frombuffer(encoded, np.uint8) if isinstance(encoded, bytes) else encoded)
            )

    def middle_crops(self, index: Tensor) -> Tensor:
        """Decode the middle crops of the images at `index` (n,) in this process, as uint8 (n, H, W, C).

        Raises:
            InputError: an image cannot be decoded.
        """
        decoder = Decoder.of(self.encoded, replace(self.views, test_crops=1), slots=1, images=len(index), crops=1)
        decoder.decode(Part(0, 0, index.tolist(), None))
        return decoder.pixels[0, :, 0]


class Part(NamedTuple):
    """Images of a batch that one worker decodes."""

    slot: int  # of the ring
    first: int  # row of the batch
    indices: list[int]
    key: int | None  # of the epoch's augmentation; None: crops of a test


@dataclass(frozen=True)
class Decoder:
    """Decoder of images into a ring of batches, which processes share.

    Args:
        encoded: the images.
        views: how the network views them.
        pixels: ring (slots, images, crops, H, W, C), uint8.
        colours: values (slots, images, C), float32, to add to all pixels of an image.
    """

    encoded: Encoded
    views: Views
    pixels: Tensor
    colours: Tensor

    @classmethod
    def of(cls, encoded: Encoded, views: Views, slots: int, images: int, crops: int) -> "Decoder":
        """Return a decoder with an empty ring."""
        channels, height, width = views.shape
        pixels = torch.empty(slots, images, crops, height, width, channels, dtype=torch.uint8)
        return cls(encoded, views, pixels, torch.zeros(slots, images, channels, dtype=torch.float32))

    def decode(self, part: Part) -> None:
        """Decode a part of a batch into the ring.

        Raises:
            InputError: an image cannot be decoded.
        """
        _, _, _, height, width, channels = self.pixels.shape
        random = None if part.key is None else uniforms(part.key, torch.tensor(part.indices), RANDOM_NUMBERS).tolist()
        for number, index in enumerate(part.indices):
            try:
                image = _image(decoded(self.encoded.read(index), channels))
            except DamagedImageError as error:
                raise InputError(f"{self.encoded.name(index)} {error}") from error
            if random is None:
                views = self.views.test(image.height, image.width)
            else:
                views = [self.views.training(image.height, image.width, random[number])]
                shift = self.views.colour_shift(random[number])
                self.colours[part.slot, part.first + number] = torch.from_numpy(shift)
            for crop, view in enumerate(views):
                shown = _show(image, view, height, width).reshape(height, width, channels)
                self.pixels[part.slot, part.first + number, crop].numpy()[:] = shown


def decoded(encoded: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decode an image to uint8 (H, W, channels), by the rule of `plainres.data.decoding`.

    The common JPEG files are decoded by simplejpeg, to the same pixels in half the time.

    Raises:
        DamagedImageError: the image cannot be decoded, or the rule refuses it.
    """
    if isinstance(encoded, bytes) and encoded.startswith(b"\xff\xd8") and EXIF not in encoded[: 1 << 16]:
        try:
            _, _, colours, _ = simplejpeg.decode_jpeg_header(encoded)
            if colours == "Gray" or (colours == "YCbCr" and channels == 3):
                return simplejpeg.decode_jpeg(encoded, "RGB" if channels == 3 else "GRAY")
        except ValueError:
            pass  # Pillow decodes it, or says what is wrong
    return decode(encoded, channels)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _show(image: Image.Image, view: View, height: int, width: int) -> np.ndarray:
    """Return a view of an image as uint8 (height, width) or (height, width, 3)."""
    box = (view.left, view.top, min(view.right, image.width), min(view.bottom, image.height))
    shown = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirror else shown)


def worker_count(requested: int | None, processes: int) -> int:
    """Return the number of workers of each of `processes` training processes of this machine.

    By default they share the cores that the training processes leave: one for each at least, and 16 at most.
    """
    return min(MOST_WORKERS, max(1, joblib.cpu_count() // processes - 1)) if requested is None else requested


class Workers:
    """Processes that decode parts of batches; without any, this process decodes them.

    Workers take turns, so that their results arrive in order. They ignore stop signals, which concern the training
    process, and exit with it.

    Args:
        decoder: decoder whose ring is in shared memory.
        count: number of processes.
    """

    def __init__(self, decoder: Decoder, count: int) -> None:
        self.decoder = decoder
        self.processes: list[BaseProcess] = []
        self.connections: list[Connection[Any, Any]] = []
        self.close = weakref.finalize(self, _stop, self.processes, self.connections)  # at the latest, at exit
        context = forkserver(PRELOADED) if count else None
        for _ in range(count):
            assert context is not None
            ours, theirs = context.Pipe()
            assert isinstance(ours, Connection)
            process = context.Process(target=_work, args=(theirs, decoder), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def decode(self, parts: Iterator[Part], ahead: int) -> Iterator[Part]:
        """Decode parts, and yield each one when it is in the ring.

        Args:
            parts: the parts.
            ahead: number of parts that are decoded in advance.

        Raises:
            InputError: an image cannot be decoded, or a worker died.
        """
        if not self.connections:
            for part in parts:
                self.decoder.decode(part)
                yield part
            return
        pending: deque[tuple[Part, Connection[Any, Any]]] = deque()
        sent = 0
        try:
            while True:
                for part in islice(parts, ahead - len(pending)):
                    connection = self.connections[sent % len(self.connections)]
                    connection.send(part)
                    pending.append((part, connection))
                    sent += 1
                if not pending:
                    return
                part, connection = pending.popleft()
                if problem := connection.recv():
                    raise InputError(problem)
                yield part
        except (EOFError, ConnectionError) as error:
            raise InputError(
                "a worker that decodes images died; it was killed or ran out of memory; lower trainer.workers, or run "
                "the same command again to resume"
            ) from error


def _work(connection: "Connection[Any, Any]", decoder: Decoder) -> None:
    attach_to_command()
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        try:
            part = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            decoder.decode(part)
        except InputError as error:
            connection.send(str(error))
        else:
            connection.send(None)


def _stop(processes: "list[BaseProcess]", connections: "list[Connection[Any, Any]]") -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


class StreamedImages:
    """Images of a split that are decoded by worker processes and normalised on a device.

    Each channel of a batch is normalised to zero mean and unit variance.

    Args:
        split: the images.
        statistics: mean and standard deviation of each channel (C,), in units of pixel values.
        device: device of the batches.
        workers: number of worker processes; 0: this process decodes.
    """

    fits = True  # batches are on the device
    augmenting = True

    def __init__(
        self, split: StreamedSplit, statistics: tuple[Tensor, Tensor], device: torch.device, workers: int
    ) -> None:
        self.split, self.device, self.workers = split, device, workers
        self.targets = split.targets
        mean, std = statistics
        self.mean, self.scale = mean.to(device), 1 / std.clamp(min=1e-6).to(device)
        self.evaluation_batch = max(1, EVALUATION_BATCH[device.type] // split.views.test_crops)
        self.open: weakref.WeakSet[Workers] = weakref.WeakSet()

    def batch(self, index: Tensor) -> Batch:
        """Return the middle crops of the images at `index` (N,), decoded in this process."""
        pixels = self.split.middle_crops(index).to(self.device)
        return self._normalise(pixels), self.targets[index].to(self.device)

    def materialize(self, batch: TrainingBatch) -> Batch:
        """Normalise a training batch on the device. Decode it in this process first, if that has not been done."""
        if isinstance(batch, SampledBatch):
            (batch,) = self._stream(iter([_wanted(batch)]), workers=0, crops=1)
        pixels, colours, targets = (tensor.to(self.device) for tensor in batch)
        # Lightning converts them to float64 in the first step after a resume if precision is 64-true
        return self._normalise(pixels, colours.float()[:, None, None]), targets

    def training(self, sampled: Iterator[SampledBatch]) -> Iterator[StreamedBatch]:
        """Decode training batches, and yield them on the device."""
        return self._on_device(self._stream(map(_wanted, sampled), self.workers, crops=1))

    def evaluation(self, indices: Iterator[Tensor]) -> Iterator[Batch]:
        """Yield batches of the images at each of `indices` (N,), without augmentation.

        With several crops, the images of a batch are (N, crops, C, H, W).
        """
        crops = self.split.views.test_crops
        for pixels, _, targets in self._on_device(
            self._stream(((index, None) for index in indices), self.workers, crops)
        ):
            if crops == 1:
                yield self._normalise(pixels), targets
            else:
                yield self._normalise(pixels.flatten(0, 1)).unflatten(0, (-1, crops)), targets

    def close(self) -> None:
        """Stop the workers of batches that have not been exhausted."""
        for workers in list(self.open):
            workers.close()

    def _stream(self, batches: Iterator[Wanted], workers: int, crops: int) -> Iterator[StreamedBatch]:
        """Decode batches of equal size, except for a smaller last one.

        The tensors of a batch are valid until the batch after the next one is requested.
        """
        first = next(batches, None)
        if first is None:
            return
        images = len(first[0])
        parts_per_batch = max(1, math.ceil(images / PART))
        ahead = max(BATCHES_AHEAD * parts_per_batch, 2 * workers) if workers else 0
        # the batches that are decoded in advance, the one that is completed, and the one that is used
        slots = math.ceil(ahead / parts_per_batch) + 2
        decoder = Decoder.of(self.split.encoded, self.split.views, slots, images, crops)
        if workers:
            decoder.pixels.share_memory_()
            decoder.colours.share_memory_()
        wanted: deque[tuple[int, Tensor]] = deque()  # slot and images of each batch that is being decoded
        with _pinned(decoder.pixels, self.device), closing(Workers(decoder, workers)) as pool:
            self.open.add(pool)
            for part in pool.decode(_parts(chain([first], batches), slots, wanted), ahead):
                slot, indices = wanted[0]
                if part.first + len(part.indices) == len(indices):
                    wanted.popleft()
                    pixels, colours = (ring[slot, : len(indices)] for ring in (decoder.pixels, decoder.colours))
                    yield StreamedBatch(pixels if crops > 1 else pixels[:, 0], colours, self.targets[indices])

    def _on_device(self, batches: Iterator[StreamedBatch]) -> Iterator[StreamedBatch]:
        """Copy each batch to the device while the device works on the batch before it."""
        if self.device.type == "cpu":
            yield from batches
            return
        copying, using = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        previous: tuple[StreamedBatch, torch.cuda.Event] | None = None
        for batch in chain(batches, [None]):
            copied = torch.cuda.Event()
            if batch is not None:
                with torch.cuda.stream(copying):
                    batch = StreamedBatch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))  # noqa: PLW2901
                    copied.record(copying)
            if previous is not None:
                ready, event = previous
                using.wait_event(event)
                for tensor in ready:
                    tensor.record_stream(using)
                yield ready
                event.synchronize()  # the ring may be overwritten from now on
            previous = None if batch is None else (batch, copied)

    def _normalise(self, pixels: Tensor, colours: Tensor | float = 0.0) -> Tensor:
        """Normalise (N, H, W, C) uint8 to (N, C, H, W) float32, in channels_last order without a copy."""
        return pixels.float().sub_(self.mean - colours).mul_(self.scale).permute(0, 3, 1, 2)


@contextmanager
def _pinned(tensor: Tensor, device: torch.device) -> Iterator[None]:
    """Pin a tensor's memory if the device is a GPU, so that copies to it need not wait."""
    cuda: Any = torch.cuda.cudart() if device.type == "cuda" else None
    if cuda:
        cuda.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)
    yield
    if cuda:
        cuda.cudaHostUnregister(tensor.data_ptr())


def _wanted(sampled: SampledBatch) -> Wanted:
    return sampled.indices, int(sampled.key)


def _parts(batches: Iterator[Wanted], slots: int, wanted: deque[tuple[int, Tensor]]) -> Iterator[Part]:
    """Divide batches into parts, and append the slot and the images of each batch to `wanted`."""
    for number, (indices, key) in enumerate(batches):
        slot = number % slots
        wanted.append((slot, indices))
        for number_of_part, part in enumerate(indices.split(PART)):
            yield Part(slot, number_of_part * PART, part.tolist(), key)


def pixels_on(
    device: torch.device,
    split: AnySplit,
    source: Source,
    statistics: tuple[Tensor, Tensor],
    workers: int = 0,
) -> Pixels:
    """Return the images of a split for batches on a device: kept there, or decoded by workers if they are streamed."""
    if isinstance(split, Split):
        return DeviceImages(split, source, statistics, device)
    assert isinstance(split, StreamedSplit)
    return StreamedImages(split, statistics, device, workers)
