"""The paper's ablations on the toybox benchmark: settings with the paper's values, and stored results."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from realcustom_jax.common.files import write_json, write_whole
from realcustom_jax.common.progress import Counter
from realcustom_jax.evaluation.toybox import SETTINGS, Benchmark, Results, Setting, real_scene, reference
from realcustom_jax.generate import Generator
from realcustom_jax.weights.digest import params_sha256

# ---------------------------------------------------------------- settings


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
      setting: how its images are made.
      paper: CLIP-T and CLIP-I in tables 2 and 3 of the paper (on DreamBench), if it has this row.
    """

    setting: Setting
    paper: tuple[float, float] | None = None


_FULL = (0.3204, 0.8552)
# {γ_scope or γ_num: the paper's CLIP-T and CLIP-I}
SCOPES = {
    0.1: (0.3200, 0.8085),
    0.2: (0.3195, 0.8431),
    0.25: _FULL,
    0.3: (0.3129, 0.8578),
    0.4: (0.3023, 0.8623),
    0.5: (0.2850, 0.8654),
}
NUMBERS = {0.7: (0.3202, 0.8307), 0.8: _FULL, 0.9: (0.3150, 0.8541)}


def _changed(paper: tuple[float, float] | None = None, **options: object) -> Row:
    """A row whose setting changes some sampling options."""
    return Row(Setting(options), paper)


# {title of a table: {name: row}}. Rows with equal settings, such as γ_scope 0.25 and the full method, share
# their images.
GROUPS: Mapping[str, Mapping[str, Row]] = {
    "The method": {
        "text only": Row(Setting(subject=False)),
        "visual tokens, no mask": Row(Setting(masked=False)),
        "full": Row(Setting(), _FULL),
    },
    "The influence scope": {
        **{f"γ_scope {scope}": _changed(paper, gamma_scope=scope) for scope, paper in SCOPES.items()},
        "γ_scope 0.25, binary mask": _changed((0.2940, 0.8567), gamma_scope=0.25, mask_kind="binary"),
    },
    "The influence quantity": {
        "no scoring": _changed((0.3002, 0.8221), scoring="none"),
        "textual score only": _changed((0.3130, 0.8335), scoring="text"),
        "visual score only": _changed((0.2898, 0.8020), scoring="visual"),
        "mean of both scores": _changed((0.3156, 0.8302), scoring="mean"),
        **{f"γ_num {number}": _changed(paper, gamma_num=number) for number, paper in NUMBERS.items()},
    },
    "Reuse of the mask": {
        "masks of all 25 steps": _changed(steps=25, mask_steps=None),
        "masks of 12 of 25 steps": _changed(steps=25, mask_steps=12),
    },
}

# ---------------------------------------------------------------- results


@dataclasses.dataclass(frozen=True)
class Runs:
    """Stored results of settings. An interrupted report resumes from them.

    Attributes:
      folder: folder of NAME_KEY.json, the raw values of every request. The key is a hash of everything that
        the values depend on: model, judge, requests and options.
      benchmark: the requests and the judge.
      generator: the model.
      digest: hash of the parameters of model and judge, and of the drawn references and scenes.
    """

    folder: Path
    benchmark: Benchmark
    generator: Generator
    digest: str

    @classmethod
    def open(cls, folder: Path, benchmark: Benchmark, generator: Generator) -> "Runs":
        """Open the results in a folder, which need not exist."""
        # The drawn pixels count too: a change of the toybox's drawing code changes the results.
        params = {"judge": benchmark.judge.params, **generator.pipe.params}
        drawn = {
            "references": np.stack([reference(request).image for request in benchmark.cases]),
            "scenes": np.stack([real_scene(request).image for request in benchmark.cases]),
        }
        return cls(folder, benchmark, generator, params_sha256({**jax.device_get(params), "drawn": drawn}))

    def results(self, name: str, setting: Setting) -> Results:
        """{measure: a value for each request}, read from the folder or computed and stored."""
        path = self._path(name, setting)
        # By the key alone: another row with the same setting has another name.
        if stored := list(self.folder.glob(f"*_{self._key(setting)}.json")):
            return _from_json(json.loads(stored[0].read_text())["results"])
        plain = self._plain() if setting.subject else None
        images, masks = self._make(name, setting)
        results = self.benchmark.measure(images, masks, plain)
        self._keep(path, name, setting, results)
        return results

    def ceiling(self) -> Results:
        """Results of real scenes; see `Benchmark.ceiling`."""
        # Not stored, because it takes only seconds.
        return self.benchmark.ceiling()

    def _plain(self) -> np.ndarray:
        """Text-only images, which leakage compares with. They are stored, because every row needs them."""
        setting = SETTINGS["text_only"]
        path = self.folder / f"text_only_{self._key(setting)}.npy"
        if path.is_file():
            return np.load(path)
        images, _ = self._make("text only", setting)
        write_whole(path, lambda temporary: _save(temporary, images))
        self._keep(self._path("text only", setting), "text only", setting, self.benchmark.measure(images))
        return images

    def _make(self, name: str, setting: Setting) -> tuple[np.ndarray, np.ndarray | None]:
        """Make images and masks of a setting, with a progress bar."""
        count = len(self.benchmark.cases)
        with Counter(count, name, "image") as counter:
            return self.benchmark.make(self.generator, setting, counter.update)

    def _keep(self, path: Path, name: str, setting: Setting, results: Results) -> None:
        """Store results together with everything that they depend on."""
        lists = {key: None if x is None else x.tolist() for key, x in results.items()}
        write_json(path, {"name": name, **self._described(setting), "results": lists})

    def _path(self, name: str, setting: Setting) -> Path:
        # The name is for people; the key identifies the file.
        slug = "".join(c if c.isalnum() or c == "." else "_" for c in name)
        return self.folder / f"{slug}_{self._key(setting)}.json"

    def _key(self, setting: Setting) -> str:
        text = json.dumps(self._described(setting), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _described(self, setting: Setting) -> dict[str, Any]:
        """Everything that the results depend on."""
        # All options, not only the changed ones: the model's defaults may change.
        options = self.generator.pipe.defaults.changed(setting.options)
        return {
            "options": json.loads(json.dumps(dataclasses.asdict(options))),
            "subject": setting.subject,
            "masked": setting.masked,
            "params": self.digest,
            "requests": [list(dataclasses.asdict(request).values()) for request in self.benchmark.cases],
        }


def _from_json(results: Mapping[str, list[float] | None]) -> Results:
    return {name: None if values is None else np.asarray(values) for name, values in results.items()}


def _save(path: Path, images: np.ndarray) -> None:
    with open(path, "wb") as file:  # given a name, np.save would append ".npy" to it
        np.save(file, images)
