"""Hostile inputs of the studio's functions: each gives one sentence, and then a normal request works."""

import functools
import runpy
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import realcustom_jax as rc
from realcustom_jax.studio.api import form_of_request
from realcustom_jax.studio.cast import (
    box_of_clicks,
    cut_out_file,
    face_of,
    face_picture,
    hints_for,
    load_character,
    make_candidates,
    save_character,
)
from realcustom_jax.studio.create import Form, Reference, create, propose_words
from realcustom_jax.studio.fields import box_of, seed_of
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.script import Script, generate, load_story, scene_of, set_look

uploads = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("hostile_uploads.py"))))
common = uploads.files.common
FEW = {"steps": 2, "mask_steps": 2}
LONG = "cat " * 2500
# Values of fields that a browser sends as text.
SEEDS = (
    "-1",
    "1.5",
    "1e3",
    "0x10",
    "x",
    "9" * 30,
    "9" * 5000,
    "²",
    "nan",
    "--1",
    "1 2",
    "\0",
    "\ud800",
    [],
    {},
    True,
)
BOXES = (
    "1, 2, 3", "1, 2, 3, 4, 5", "a, b, c, d", "nan nan nan nan", "inf inf inf inf", "0 0 inf inf", "5 5 5 5",
    "9 9 1 1", "1e400 1 2 3", "1," * 5000, "-9 -9 -5 -5", "900 900 950 950", "\0", "\ud800", "1 2 3 4;DROP",
)  # fmt: skip
COUNTS = (0, 5, -1, 1.5, "2", None, [], {}, True, float("nan"), 10**400)
STRENGTHS = (-1, float("nan"), float("inf"), 1e39, "1", [], {}, True, 10**400)
PROMPTS = (None, "", " \n\t", 5, [], {}, LONG, "x" * 10_000, "\ud800 cat", "a \udfff cat")


@pytest.fixture
def photo(tmp_path) -> str:
    path = tmp_path / "cat.png"
    path.write_bytes(common.encoded("PNG"))
    return str(path)


@pytest.fixture
def report() -> Report:
    return Report(threading.Event(), lambda update: None)


def works(flat_pipe, photo, report) -> None:
    """A normal request."""
    form = Form("a cat on the beach", [Reference(photo, "cat")], "7", options=FEW)
    made = create(flat_pipe, form, report).png_files()
    subject = rc.Subject(photo, "cat")
    assert made == rc.sample(flat_pipe, form.prompt, [subject], [7], progress=False, **FEW).png_files()


def test_no_pictures_and_too_large_ones(flat_pipe, photo, report, tmp_path):
    cases = []
    for name, path in uploads.broken_pictures(tmp_path).items():
        form = Form("a cat", [Reference(path, "cat")], options=FEW)
        acts = {
            "create": functools.partial(create, flat_pipe, form, report),
            "words": functools.partial(propose_words, flat_pipe, "a cat", [Reference(path)]),
            "character": functools.partial(save_character, rc.Story(), "Mika", path, "cat"),
            "hints": functools.partial(hints_for, path),
            "face": functools.partial(face_picture, path, (1, 2, 3, 4)),
            "search": functools.partial(face_of, path),
            "cut out": functools.partial(cut_out_file, path, tmp_path),
        }
        cases += [(f"{act} {name}", call) for act, call in acts.items()]
    assert common.check(cases, str(tmp_path)) > 150
    works(flat_pipe, photo, report)


def test_pictures_of_unusual_forms_are_used(flat_pipe, photo, report, tmp_path):
    for name, path in uploads.odd_pictures(tmp_path).items():
        form = Form("a cat", [Reference(path, "cat")], options=FEW)
        story = rc.Story()
        made = save_character(story, "Mika", path, "cat", "", "0, 0, 1, 1")
        assert create(flat_pipe, form, report).images.shape == (1, 16, 16, 3), name
        drawn = face_picture(path, made.face)
        assert max(drawn.size) <= 1024, name
        hints_for(path)
        assert len(Script(story).shelf(lambda: tmp_path)) == 1
    works(flat_pipe, photo, report)


def form_cases(pipe, photo, report):
    def call(**fields):
        values = {
            "prompt": "a cat", "pictures": [photo], "words": ["cat"], "seed": "0", "count": 1,
            "negative_prompt": "", "options": FEW, **fields,
        }  # fmt: skip
        form = form_of_request(SimpleNamespace(defaults=pipe.defaults), **values)
        create(pipe, form, report)

    def case(**fields):
        name, value = next(iter(fields.items()))
        return f"{name} {value!a:.40}", lambda: call(**fields)

    yield from (case(prompt=value) for value in (*PROMPTS, "a dog", "catalogue"))
    yield from (case(negative_prompt=value) for value in (5, [1], {"a": 1}, "\ud800"))
    yield from (case(seed=value) for value in SEEDS)
    yield from (case(count=value) for value in COUNTS if value is not None)
    for value in (
        5,
        True,
        "cat",
        ["cat", "cat"],
        [5],
        [None],
        [[]],
        ["dog"],
        ["ca"],
        [LONG],
        ["\ud800"],
        ["cat#" + "9" * 200],
        ["cat\nhat"],
        ["x" * 300],
    ):
        yield case(words=value)
    yield case(words=["cat"] * 5, pictures=[photo] * 5)
    for box in BOXES:
        yield case(words=[{"word": "cat", "face": box, "face_strength": 0.5}])
    for value in STRENGTHS:
        yield case(words=[{"word": "cat", "body_strength": value}])
    for word in ({"photo": "/etc/passwd"}, {"x": 1}, {"word": 5}, {"word": "cat", "face": [1, 2, 3]}):
        yield case(words=[word])
    for size in ({"height": 80}, {"height": 32, "width": 48}, {"width": 2**20}, {"height": 2**30}):
        yield case(options=size)
    yield from (case(options=value) for value in (5, "x", [1], True, {"x": 1}, {"Steps": 3}))
    for name in rc.SamplingOptions.rules():
        for value in (
            True,
            float("nan"),
            1e39,
            10**40,
            -(10**40),
            "\ud800",
            "x" * 5000,
            [[1]],
            [None],
            {"a": 1},
        ):
            yield case(options={name: value})


def test_hostile_requests(flat_pipe, photo, report):
    assert common.check(form_cases(flat_pipe, photo, report), str(Path(photo).parent)) > 250
    works(flat_pipe, photo, report)


def story_cases(pipe, photo, report):
    def story() -> rc.Story:
        one = rc.Story(options=FEW)
        save_character(one, "Mika", photo, "cat")
        return one

    def run(*fields: str):
        own = story()
        Script(own).add(scene_of(*fields))
        generate(pipe, own, report)

    plain = ("Mika", "", "", "", "")
    for place, values in {
        0: PROMPTS, 1: [seed for seed in SEEDS if isinstance(seed, str)], 2: ["\ud800", LONG * 2],
        3: ["hat", ":", "Mika:", ": hat", "Bolt: a hat", "Mika: \ud800", f"Mika: {LONG}{LONG}"],
        4: ["Mika", "Mika: 5", "Mika: face", "Mika: face -1", "Mika: body 1e39", "Bolt: body 1",
            "Mika: body 1.1.1", "Mika: face 0.5", "Mika: nose 1", "Mika: face nan",
            f"Mika: body {'9' * 400}"],
    }.items():  # fmt: skip
        for value in values:
            fields = (*plain[:place], value, *plain[place + 1 :])
            yield f"scene {place} {value!a:.40}", functools.partial(run, *fields)
    for name in ("", " ", "7", "🙂", "x" * 41, "a\x1bb", "\ud800", None, "mika", "../.."):
        yield f"name {name!a}", lambda n=name: save_character(story(), n, photo, "cat")
    for word in ("", " ", "x" * 301, "\0", "\ud800", None):
        yield f"word {word!a:.40}", lambda w=word: save_character(story(), "Bolt", photo, w)
        if word is None or not word.strip() or word == "\ud800":
            yield f"candidates {word!a:.40}", lambda w=word: make_candidates(pipe, w, "", "0", report)
    for text in (LONG, "\ud800"):
        yield f"candidates of {text!a:.40}", lambda t=text: make_candidates(pipe, "cat", t, "0", report)
        yield f"description {text!a:.40}", lambda t=text: save_character(story(), "Bolt", photo, "cat", t)
    for box in BOXES:
        if box not in ("-9 -9 -5 -5", "900 900 950 950"):  # said when the image is made
            yield f"face {box!a:.40}", lambda b=box: save_character(story(), "Bolt", photo, "cat", "", b)
    for value in STRENGTHS:
        yield (
            f"strength {value!a:.40}",
            lambda v=value: save_character(story(), "Bolt", photo, "cat", strengths=(1.0, v)),
        )
    for index in (-1, 1, 10**9, 1.5, "0", True):
        yield f"re-roll {index}", lambda i=index: generate(pipe, _with_scene(story()), report, reroll=i)
    for index in ((0, 0), (float("nan"), 0), (1e308, 1e308)):
        yield f"clicks {index}", lambda i=index: box_of_clicks(photo, i, i)
    for look in (("\ud800", "", "0"), ("", "\ud800", "0"), *(("", "", seed) for seed in SEEDS)):
        yield f"look {look!a:.40}", lambda v=look: set_look(story(), *v, False)
    slow = [*["a" * 9990 + " Mika"] * 60, rc.Scene("Mika's", wishes={"Mika": "hat"})]
    yield "long words", lambda: generate(pipe, rc.Story(story().characters, slow), report)
    for size in ({"height": 80}, {"height": 32, "width": 48}):
        yield f"scene of {size}", lambda s=size: generate(pipe, rc.Story(scenes=[rc.Scene("a", **s)]), report)
        yield f"story of {size}", lambda s=size: generate(pipe, rc.Story(scenes=["a"], options=s), report)
    yield "no scenes", lambda: generate(pipe, story(), report)


def _with_scene(story: rc.Story) -> rc.Story:
    story.add("Mika")
    return story


def test_hostile_stories(flat_pipe, photo, report):
    assert common.check(story_cases(flat_pipe, photo, report), str(Path(photo).parent)) > 100
    works(flat_pipe, photo, report)


@pytest.mark.parametrize("kind", ["character", "story"])
def test_hostile_files(flat_pipe, photo, report, tmp_path, kind):
    inner = tmp_path / "uploads"
    inner.mkdir()
    rule, load = {
        "character": (uploads.character_zips, load_character),
        "story": (uploads.stories, lambda path: generate(flat_pipe, load_story(path), report)),
    }[kind]
    cases = [(name, functools.partial(load, path)) for name, path in rule(inner)]
    before = set(tmp_path.rglob("*"))
    assert common.check(cases, str(tmp_path)) > 60
    assert set(tmp_path.rglob("*")) == before
    works(flat_pipe, photo, report)


def test_zip_of_zeros_is_not_unpacked(tmp_path):
    path = uploads.zip_of_zeros(tmp_path, 2**32)
    for load in (load_character, load_story):
        assert common.check([("zeros", functools.partial(load, path))]) == 1


@pytest.mark.parametrize("read", [seed_of, box_of])
def test_typed_numbers_in_other_scripts_are_read_or_refused(read):
    for text in ("٣", "３", "٣ ٣ ٤ ٤", "1\u00a02\u00a03\u00a04"):
        try:
            read(text)
        except rc.UserError as error:
            assert "\n" not in str(error)
