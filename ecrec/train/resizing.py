"""A run that goes on with another number of servers: asked for by `ecrec resize`, done at the next checkpoint."""

import threading
from pathlib import Path

import msgspec

from ecrec.checkpoint.saving import SAVE_TIMEOUT_S, save_checkpoint
from ecrec.errors import ConfigurationError, EcrecError
from ecrec.launch.environment import curve_keys
from ecrec.launch.resize import Answer, Request, Requests
from ecrec.launch.rewind import Point
from ecrec.train.options import TrainOptions, check_resized


class ResizeDueError(EcrecError):
    """The checkpoint is written: the cluster can end, and another one go on from there."""

    def __init__(self, request: Request, options: TrainOptions, point: Point) -> None:
        super().__init__(f"resized to {options.shards} servers, code {options.code}")
        self.request = request
        self.options = options
        """Those of the run from now on."""
        self.point = point


class Resizing:
    """Requests of one run, one after the other."""

    def __init__(self, run_dir: Path, url: str | None) -> None:
        self._requests = Requests(run_dir)
        self._url = url or str(run_dir.absolute() / "resize")
        self._thread: threading.Thread | None = None
        self._wanted: tuple[Request, TrainOptions]
        self._point: Point | None = None
        self._error = ""

    def look(self, endpoint: str, options: TrainOptions) -> None:
        """See whether somebody wants another size; have its checkpoint written meanwhile. Raises ResizeDueError when it
        is."""
        if self._thread is None:
            self._begin(endpoint, options)
        elif not self._thread.is_alive():
            self._thread = None
            request, resized = self._wanted
            if self._point is None:
                self._requests.answer(Answer(request.id, self._error))
                return
            raise ResizeDueError(request, resized, self._point)

    def _begin(self, endpoint: str, options: TrainOptions) -> None:
        request = self._requests.take()
        if request is None:
            return
        code = options.code if request.code is None else request.code
        resized = msgspec.structs.replace(options, shards=request.shards, groups=request.groups, code=code)
        try:
            check_resized(resized)
        except ConfigurationError as error:
            self._requests.answer(Answer(request.id, str(error)))
            return
        self._wanted, self._point = (request, resized), None
        self._thread = threading.Thread(target=self._save, args=(endpoint,), name="ecrec-resize", daemon=True)
        self._thread.start()

    def _save(self, endpoint: str) -> None:
        try:
            done = save_checkpoint(endpoint, self._url, SAVE_TIMEOUT_S, curve_keys())
        except Exception as error:
            self._error = str(error)
        else:
            self._point = Point(done.url, done.checkpoint)

    def over(self) -> None:
        """Training has ended: who still waits for another size is told."""
        waiting = self._requests.take()
        if self._thread is not None:
            waiting, self._thread = self._wanted[0], None
        if waiting is not None:
            self._requests.answer(Answer(waiting.id, "training has ended"))

    def done(self, wanted: ResizeDueError, examples_repeated: int, seconds_stood_still: float) -> None:
        """The run goes on."""
        point = wanted.point
        self._requests.answer(
            Answer(wanted.request.id, "", point.number, point.url, examples_repeated, seconds_stood_still)
        )
