"""DreamBench: reading its folder, and a run that is interrupted, resumed and scored."""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from realcustom_jax import evaluate
from realcustom_jax.common.errors import UserError
from realcustom_jax.evaluation import dreambench, metrics
from realcustom_jax.evaluation.dreambench_data import read_cases, read_prompts
from realcustom_jax.evaluation.dreambench_report import collect
from realcustom_jax.evaluation.scores import Scorer
from realcustom_jax.inputs.encoder_pair import own_pair
from realcustom_jax.inputs.preprocess import segment

OBJECTS = ("a {0} {1} in the snow", "a cube shaped {0} {1}")
LIVE = ("a {0} {1} wearing a red hat",)
CLASSES = {"cat2": "cat", "red_cup": "cup", "bear": "stuffed animal"}


def prompts_file(classes=CLASSES, objects=OBJECTS, live=LIVE) -> str:
    """A prompts file in the format of google/dreambooth."""

    def listed(templates):
        return "\n".join(f"'{text}'.format(unique_token, class_token)," for text in templates)

    rows = "\n".join(f"{subject},{word}" for subject, word in classes.items())
    return (
        f"Classes\n\nsubject_name,class\n{rows}\n\nPrompts\n\nObject Prompts\n\nprompt_list = [\n"
        f"{listed(objects)}\n]\n\nLive Subject Prompts\n\nprompt_list = [\n{listed(live)}\n]\n"
    )


@pytest.fixture
def bench(tmp_path):
    """Two photos of each of three subjects."""
    folder = tmp_path / "dreambooth" / "dataset"
    rng = np.random.default_rng(0)
    for subject in CLASSES:
        (folder / subject).mkdir(parents=True)
        for i in range(2):
            photo = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(photo).save(folder / subject / f"0{i}.jpg", quality=95)
    (folder / "prompts_and_classes.txt").write_text(prompts_file())
    return folder.parent


def test_prompts_file_gives_classes_and_prompts_without_token(bench):
    prompts = read_prompts(bench / "dataset" / "prompts_and_classes.txt")
    assert prompts.classes == CLASSES
    assert prompts.for_subject("cat2") == ["a cat wearing a red hat"]
    assert prompts.for_subject("bear") == ["a stuffed animal in the snow", "a cube shaped stuffed animal"]


def test_cases_cover_all_subjects_prompts_and_seeds(bench):
    cases = read_cases(bench, None, [0, 5])
    assert len(cases) == (1 + 2 + 2) * 2
    assert [case.name for case in cases[:3]] == ["cat2/00_0", "cat2/00_5", "red_cup/00_0"]
    assert [path.name for path in cases[0].photos] == ["00.jpg", "01.jpg"]
    some = read_cases(bench / "dataset", ["bear"], [1])
    assert [case.prompt for case in some] == ["a stuffed animal in the snow", "a cube shaped stuffed animal"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (prompts_file(classes={}), "has no classes"),
        (prompts_file(live=()), "has no live subject prompts"),
        (prompts_file(objects=("a {1} in the snow",)), "must have '{0} {1}' once"),
    ],
)
def test_broken_prompts_file_raises(tmp_path, text, message):
    path = tmp_path / "prompts_and_classes.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_prompts(path)


def test_unknown_subject_or_missing_photos_raise(bench):
    with pytest.raises(UserError, match="no subject 'dog'; there are: cat2, red_cup, bear"):
        read_cases(bench, ["dog"], [0])
    for photo in (bench / "dataset" / "bear").iterdir():
        photo.unlink()
    with pytest.raises(UserError, match="bear has no photos"):
        read_cases(bench, None, [0])


def test_hosts_share_cases_evenly(bench, monkeypatch):
    cases = read_cases(bench, None, [0, 1, 2])
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    shares = []
    for host in range(4):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        shares.append(dreambench.own_share(cases))
    assert sorted(t.name for share in shares for t in share) == sorted(t.name for t in cases)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Painter:
    """Fake generator: paints images from the seed and records the requests."""

    batch = 2

    def __init__(self, pipe):
        self.pipe, self.jobs = pipe, []

    def __call__(self, jobs, options, progress):
        self.jobs += jobs
        progress(len(jobs))
        rng = np.random.default_rng([job.seed for job in jobs])
        return rng.integers(0, 256, (len(jobs), 18, 18, 3), dtype=np.uint8), None


def test_run_makes_and_scores_only_missing_images(bench, tmp_path, paired_pipe):
    cases, out = read_cases(bench, None, [0, 1]), tmp_path / "out"
    painter = Painter(paired_pipe)
    assert dreambench.make_missing(cases[:3], out, lambda: painter, {}) == 3  # the run is interrupted here
    assert dreambench.make_missing(cases, out, lambda: painter, {}) == len(cases) - 3
    assert [job.prompt for job in painter.jobs] == [case.prompt for case in cases]
    assert [job.subjects[0].words for job in painter.jobs] == [case.word for case in cases]
    (out / f"{cases[4].name}.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert dreambench.make_missing(cases, out, lambda: painter, {}) == 1
    assert painter.jobs[-1].prompt == cases[4].prompt
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())

    def no_model():
        raise AssertionError("the model is loaded though nothing is missing")

    assert dreambench.make_missing(cases, out, no_model, {}) == 0
    pair = own_pair(paired_pipe.models, paired_pipe.params, paired_pipe.tokenizers)
    assert dreambench.score_missing(cases, out, Scorer(clip=pair)) == len(cases)
    kept = json.loads((out / f"{cases[2].name}.json").read_text())
    (out / f"{cases[0].name}.json").unlink()
    assert dreambench.score_missing(cases, out, Scorer(clip=pair)) == 1
    # A further metric is added to the stored scores.
    both = Scorer(clip=pair, dino=pair.image)
    assert dreambench.score_missing(cases, out, both) == len(cases)
    now = json.loads((out / f"{cases[2].name}.json").read_text())
    assert now["scores"].keys() - kept["scores"].keys() == {"dino_i"}
    assert now["prompt"] == "a cup in the snow" and now["photos"] == ["00.jpg", "01.jpg"]
    # Scores of another CLIP are not reused.
    other = dataclasses.replace(both, clip_name="another")
    assert dreambench.score_missing(cases, out, other) == len(cases)
    assert dreambench.score_missing(cases, out, other) == 0
    by = json.loads((out / f"{cases[2].name}.json").read_text())["by"]
    assert by == {"clip_t": "another", "clip_i": "another", "dino_i": ""}
    assert not list(out.rglob(".*")), "a half-written file is left"


def test_scores_average_references_whole_and_segmented(bench, tmp_path, paired_pipe):
    (case,) = read_cases(bench, ["cat2"], [3])
    pair, masks = own_pair(paired_pipe.models, paired_pipe.params, paired_pipe.tokenizers), tmp_path / "masks"
    image = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    mask = np.zeros((20, 24), bool)
    mask[4:15, 6:20] = True
    for name in ("00", "01", "00_3"):
        (masks / "cat2").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(255) * mask).save(masks / "cat2" / f"{name}.png")
    (scores,) = Scorer(clip=pair, masks=masks).score([case], [image])
    assert list(scores) == ["clip_t", "clip_i", "clip_i_segmented"]
    photos = [np.asarray(Image.open(path)) for path in case.photos]
    see = pair.image.directions
    assert scores["clip_i"] == pytest.approx(float((see([image]) @ see(photos).T).mean()), abs=1e-6)
    alone = [segment(x, mask) for x in (image, *photos)]
    expected = metrics.image_similarity(see(alone[:1]), see(alone[1:]))[0]
    assert scores["clip_i_segmented"] == pytest.approx(float(expected), abs=1e-6)
    text = pair.text.directions([case.prompt])
    assert scores["clip_t"] == pytest.approx(float((see([image]) * text).sum()), abs=1e-6)
    with pytest.raises(UserError, match=r"01\.png"):
        (masks / "cat2" / "01.png").unlink()
        Scorer(clip=pair, masks=masks).score([case], [image])


def test_changed_settings_raise(tmp_path):
    path = tmp_path / "settings.json"
    dreambench.check_settings(path, {"model": "a", "steps": 25, "mask_layers": (1, 2)})
    dreambench.check_settings(path, {"model": "a", "steps": 25, "mask_layers": (1, 2)})
    with pytest.raises(UserError, match="steps 25 there, 50 now"):
        dreambench.check_settings(path, {"model": "a", "steps": 50, "mask_layers": (1, 2)})


def test_changed_weights_or_defaults_raise(bench, tmp_path, paired_pipe):
    cases, out = read_cases(bench, ["cat2"], [0, 1]), tmp_path / "out"
    dreambench.make_missing(cases[:1], out, lambda: Painter(paired_pipe), {})
    params = jax.tree.map(np.array, paired_pipe.params)
    jax.tree.leaves(params)[0].flat[0] += 1  # as after more training, saved to the same folder
    retrained = dataclasses.replace(paired_pipe, params=params)
    with pytest.raises(UserError, match=f"{out} has images .*weights '.*' there, '.*' now"):
        dreambench.make_missing(cases, out, lambda: Painter(retrained), {})
    retuned = dataclasses.replace(paired_pipe, defaults=paired_pipe.defaults.changed({"steps": 3}))
    with pytest.raises(UserError, match=r"otherwise \(steps 2 there, 3 now\)"):
        dreambench.make_missing(cases, out, lambda: Painter(retuned), {})
    # The old default, given explicitly, makes the same images.
    assert dreambench.make_missing(cases, out, lambda: Painter(retuned), {"steps": 2}) == 1


def test_command_writes_table_and_plot(bench, tmp_path, paired_pipe, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra 'eval'")
    monkeypatch.setattr(evaluate, "_generator", lambda *_: Painter(paired_pipe))
    monkeypatch.setattr(
        evaluate.encoder_pair,
        "load_pair",
        lambda path: own_pair(paired_pipe.models, paired_pipe.params, paired_pipe.tokenizers),
    )
    out = tmp_path / "out"
    arguments = [
        "--dreambench",
        str(bench),
        "--out",
        str(out),
        "--clip",
        "some",
        "--seeds",
        "0",
        "1",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    evaluate.main()
    cases = read_cases(bench, None, [0, 1])
    rows = collect(cases, out, ["clip_t", "clip_i"])
    assert list(rows) == ["all", "live subjects", "objects", "cat2", "red_cup", "bear"]
    assert len(rows["all"]["clip_t"]) == len(cases) == 10 and len(rows["cat2"]["clip_i"]) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == pytest.approx({name: np.mean(values) for name, values in rows["all"].items()})
    lines = (out / "report.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(rows)
    assert Image.open(out / "report.png").size[0] > 500


def test_run_without_scores_lists_scoring_options(bench, tmp_path, paired_pipe, monkeypatch, capsys):
    """Also: a negative prompt from a file reaches the requests and the saved settings."""
    seen = []

    class Spy(Painter):
        def __call__(self, jobs, *rest):
            seen.extend(job.negative_prompt for job in jobs)
            return super().__call__(jobs, *rest)

    monkeypatch.setattr(evaluate, "_generator", lambda *_: Spy(paired_pipe))
    (tmp_path / "bad").write_text("blurred\n")
    out = tmp_path / "out"
    arguments = ["--dreambench", str(bench), "--out", str(out), "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "--negative-prompt", f"@{tmp_path / 'bad'}"])
    evaluate.main()
    assert "no scores: --clip, --dino and --image-reward score images" in capsys.readouterr().out
    assert seen and set(seen) == {"blurred"}
    assert json.loads((out / "settings.json").read_text())["negative_prompt"] == "blurred"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--unet", "other"])  # images of two models are not mixed
    with pytest.raises(UserError, match=r"otherwise \(unet None there, 'other' now\)"):
        evaluate.main()


def test_image_reward_scores_or_says_what_to_install(monkeypatch):
    from realcustom_jax.evaluation import reward

    monkeypatch.setitem(sys.modules, "ImageReward", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install image-reward"):
        reward.load_image_reward()

    @dataclasses.dataclass
    class Model:
        def score(self, prompt, images):
            return len(prompt) + float(np.asarray(images[0]).mean())

    images = [np.full((2, 2, 3), value, np.uint8) for value in (1, 7)]
    assert reward.image_reward(Model(), ["ab", "abcd"], images).tolist() == [3.0, 11.0]
