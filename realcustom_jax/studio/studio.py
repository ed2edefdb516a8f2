"""`Studio`: what all users of the page share: the model, the line of jobs, and the folder for files."""

import contextlib
import secrets
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from realcustom_jax.common.errors import UserError, one_line
from realcustom_jax.common.files import make_folder
from realcustom_jax.generate import sample
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.options import SamplingOptions
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.studio.jobs import Jobs, Report, Stopped
from realcustom_jax.toybox import WORDS, example


class Studio:
    """The model, which loads in the background, the jobs, and the folder.

    Attributes:
      defaults: the model's sampling options.
      toy: whether the model is the toybox, which is fast and knows few words.
      folder: all files are written below it.
      jobs: the work of all users.
      error: why the model cannot be used; "" if it can.
    """

    def __init__(
        self, load: Callable[[], Pipeline], defaults: SamplingOptions, folder: Path, toy: bool = False
    ):
        """Make the studio; `start` loads the model.

        Args:
          load: loads the model.
          defaults, folder, toy: see the attributes.

        Raises:
          UserError: if the folder cannot be written.
        """
        make_folder(folder, "--out")
        self.defaults, self.folder, self.toy = defaults, folder, toy
        self.jobs = Jobs()
        self._load = load
        self._pipe: Pipeline | None = None
        self.error = ""
        self._stage = "loading the model"
        self._loaded, self._compiling, self._ready = (threading.Event() for _ in range(3))

    def start(self) -> None:
        """Load the model and run a first request, in the background."""
        threading.Thread(target=self._start, daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether the first request, which compiles, has ended or given way to a user."""
        return self._ready.is_set()

    @property
    def stage(self) -> str:
        """What happens until it is ready."""
        return self.error or self._stage

    def wait_for_compiler(self) -> None:
        """Wait until the first request compiles, or has ended."""
        self._compiling.wait()

    def pipe(self, report: Report | None = None) -> Pipeline:
        """The model; waits until it is loaded.

        Raises:
          UserError: if it cannot be loaded.
          Stopped: if the user does not want to wait.
        """
        while not self._loaded.wait(0.1):
            if report is not None:
                report.progress(self.stage, 0, None)
        if self._pipe is None:
            raise UserError(self.error)
        return self._pipe

    def new_folder(self) -> Path:
        """A new folder for the files of one result; nobody can guess its name."""
        folder = self.folder / "results" / secrets.token_urlsafe(16)
        make_folder(folder, "--out")
        return folder

    def log(self, error: BaseException) -> None:
        """Print the traceback of an unexpected error; users see one line."""
        traceback.print_exception(error)

    def _start(self) -> None:
        try:
            self._pipe = self._load()
            self._loaded.set()
            with contextlib.suppress(Stopped):
                self.jobs.finish("", self._warm_up)
        except Exception as error:
            if not isinstance(error, UserError):
                self.log(error)
            self.error = f"the model cannot be used: {one_line(error)}"
        finally:
            for event in (self._loaded, self._compiling, self._ready):
                event.set()

    def _warm_up(self, report: Report) -> None:
        """Make an image, of a subject if the model takes them: the first request finds compiled programs.

        Raises:
          Stopped: after a denoising step, if a user waits. The sampler is compiled then.
        """

        def show(stage: str, done: int, total: int | None) -> None:
            if done and len(self.jobs) > 1:
                raise Stopped
            if stage.startswith("compiling"):
                self._compiling.set()
            self._stage = f"getting ready: {stage}" + (f", step {done} of {total}" if total else "")
            report.progress(stage, done, total)

        word, pipe = WORDS[0], self.pipe()
        subjects = [Subject(example(word), word)] if pipe.models.realcustom else []
        sample(
            pipe, f"a {word}", subjects,
            progress=show, preview=report.preview, fast_preview=True,
        )  # fmt: skip
