"""Runs the report's settings and keeps each one's results, so that a report that was cut off goes on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from realcustom_jax.common.files import write_json, write_whole
from realcustom_jax.common.progress import Counter
from realcustom_jax.evaluation.toybox import SETTINGS, Benchmark, Results, Setting, real_scene, reference
from realcustom_jax.generate import Generator
from realcustom_jax.weights.digest import params_sha256


@dataclass(frozen=True)
class Runs:
    """Results of settings in a folder, by what they depend on: model, judge, requests and options.

    Attributes:
      folder: for NAME_KEY.json, the raw values of every request.
      benchmark: the requests and the judge.
      generator: the model.
      digest: of the parameters of model and judge, and of the drawn references and scenes.
    """

    folder: Path
    benchmark: Benchmark
    generator: Generator
    digest: str

    @classmethod
    def open(cls, folder: Path, benchmark: Benchmark, generator: Generator) -> "Runs":
        params = {"judge": benchmark.judge.params, **generator.pipe.params}
        drawn = {
            "references": np.stack([reference(request).image for request in benchmark.cases]),
            "scenes": np.stack([real_scene(request).image for request in benchmark.cases]),
        }
        return cls(folder, benchmark, generator, params_sha256({**jax.device_get(params), "drawn": drawn}))

    def results(self, name: str, setting: Setting) -> Results:
        """{measure: a value for each request}, from the folder where they are there, else made now."""
        path = self._path(name, setting)
        if found := list(self.folder.glob(f"*_{self._key(setting)}.json")):
            return _from_json(json.loads(found[0].read_text())["results"])
        plain = self._plain() if setting.subject else None
        images, masks = self._make(name, setting)
        results = self.benchmark.measure(images, masks, plain)
        self._keep(path, name, setting, results)
        return results

    def ceiling(self) -> Results:
        """The judge's verdict on real scenes, which takes seconds."""
        return self.benchmark.ceiling()

    def _plain(self) -> np.ndarray:
        """The text-only images, which leakage compares with; kept too."""
        setting = SETTINGS["text_only"]
        path = self.folder / f"text_only_{self._key(setting)}.npy"
        if path.is_file():
            return np.load(path)
        images, _ = self._make("text only", setting)
        write_whole(path, lambda half: _save(half, images))
        self._keep(self._path("text only", setting), "text only", setting, self.benchmark.measure(images))
        return images

    def _make(self, name: str, setting: Setting) -> tuple[np.ndarray, np.ndarray | None]:
        count = len(self.benchmark.cases)
        with Counter(count, name, "image") as counter:
            return self.benchmark.make(self.generator, setting, counter.update)

    def _keep(self, path: Path, name: str, setting: Setting, results: Results) -> None:
        lists = {key: None if x is None else x.tolist() for key, x in results.items()}
        write_json(path, {"name": name, **self._described(setting), "results": lists})

    def _path(self, name: str, setting: Setting) -> Path:
        slug = "".join(c if c.isalnum() or c == "." else "_" for c in name)
        return self.folder / f"{slug}_{self._key(setting)}.json"

    def _key(self, setting: Setting) -> str:
        text = json.dumps(self._described(setting), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _described(self, setting: Setting) -> dict[str, Any]:
        """What the results depend on."""
        options = self.generator.pipe.defaults.changed(setting.options)
        return {
            "options": json.loads(json.dumps(asdict(options))),
            "subject": setting.subject,
            "masked": setting.masked,
            "params": self.digest,
            "requests": [list(asdict(request).values()) for request in self.benchmark.cases],
        }


def _from_json(results: Mapping[str, list[float] | None]) -> Results:
    return {name: None if values is None else np.asarray(values) for name, values in results.items()}


def _save(path: Path, images: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would add its ending to the name
        np.save(file, images)
