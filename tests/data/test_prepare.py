"""From sources to a data set: kept examples, the report, and resuming after an interruption."""

import importlib.util
import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.data import encode as encode_module
from realcustom_jax.data.cut_outs import cropped_mask, cut_out, mark, marked_mask, marks
from realcustom_jax.data.image_text import is_written, open_split
from realcustom_jax.data.prepare import __main__ as command
from realcustom_jax.data.prepare import run_parts, shards
from realcustom_jax.data.prepare.__main__ import prepare
from realcustom_jax.data.prepare.raw import Raw
from realcustom_jax.data.prepare.recipe import Recipe, make

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sources.py"))))
encode, picture, sample, write_tar = common.encode, common.picture, common.sample, common.write_tar


@pytest.fixture
def source(tmp_path) -> str:
    """Three shards of four whole examples."""
    folder = tmp_path / "source"
    folder.mkdir()
    for i in range(3):
        write_tar(folder / f"{i}.tar", [sample(j) for j in range(4 * i, 4 * i + 4)], first=4 * i)
    return str(folder)


def keys(data_dir, split: str = "train") -> list[str]:
    records = open_split(data_dir, split)
    return [records[i]["key"] for i in range(len(records))]


def test_data_set_keeps_source_order(source, tmp_path):
    report = prepare([source], tmp_path / "data", Recipe())
    records = open_split(tmp_path / "data", "train")
    assert report.read == report.count == len(records) == 12
    for i in range(12):
        assert records[i]["key"] == f"{i // 4}/{i:04d}"
        assert records[i]["caption"] == f"caption of {i}" and records[i]["metadata"] == {"number": i}
        assert records.without_image(i)["image"] == encode(picture(i))  # not encoded a second time
    np.testing.assert_array_equal(records.sizes(), [(32, 24)] * 12)


@pytest.mark.parametrize("resize", [None, 12])
def test_subject_marks_reach_the_references(tmp_path, resize):
    """From a shard's KEY.json to the cut-out, also of resized images."""
    mask = np.zeros((24, 32), bool)
    mask[4:20, 8:24] = True
    source = write_tar(tmp_path / "0.tar", [sample(0, subjects=[mark("dog", mask)])])
    prepare([str(source)], tmp_path / "data", Recipe(resize=resize))
    example = open_split(tmp_path / "data", "train")[0]
    assert example["image"].shape == ((24, 32, 3) if resize is None else (12, 16, 3))
    (entry,) = marks(example)
    shape = example["image"].shape[:2]
    inside = cropped_mask(marked_mask(entry, example["key"]), shape, shape, example["key"])
    alpha = np.asarray(cut_out(example["image"], inside, 20))[..., 3]
    assert entry["words"] == "dog" and alpha[:3].max() == 0 and alpha[5:15, 5:15].min() > 240


def raw(data: bytes | None = None, caption: str | None = "a cat", **metadata) -> Raw:
    return Raw("k", encode(picture(0)) if data is None else data, caption, metadata)


@pytest.mark.parametrize(
    ("given", "changes", "reason"),
    [
        (raw(), {"min_side": 25}, "too_small"),
        (raw(), {"max_aspect": 1.3}, "too_elongated"),
        (raw(), {"min_aesthetic": 5.0}, "no_score"),
        (raw(aesthetic_score="nan"), {"min_aesthetic": 5.0}, "no_score"),
        (raw(aesthetic_score=4.9), {"min_aesthetic": 5.0}, "low_score"),
        (raw(), {"min_caption": 6}, "short_caption"),
        (raw(), {"max_caption": 4}, "long_caption"),
        (raw(caption=None), {}, "no_caption"),
        (raw(caption=" \n"), {}, "no_caption"),
        (raw(caption="\ud83d"), {}, "unreadable_text"),
        (Raw("k", None, "a cat"), {}, "no_image"),
        (raw(b""), {}, "undecodable"),
        (raw(b"no image"), {}, "undecodable"),
        (raw(encode(picture(0))[:-200]), {}, "truncated"),
        (raw(encode(picture(0), "PNG")[:-200]), {}, "truncated"),
        (Raw("k", problem="truncated_file"), {}, "truncated_file"),
    ],
)
def test_bad_examples_are_dropped_with_reason(given, changes, reason):
    assert make(given, Recipe(**changes)) == reason


def test_filter_limits_are_inclusive():
    recipe = Recipe(min_side=24, max_aspect=32 / 24, min_aesthetic=5.0, min_caption=5, max_caption=5)
    made = make(raw(aesthetic_score="5.0"), recipe)
    assert made.example.image == raw().image and (made.width, made.height) == (32, 24)
    assert isinstance(
        make(raw(punsafe=1, score=5), Recipe(min_aesthetic=5, aesthetic_key="score")).width, int
    )


@pytest.mark.parametrize("format_", ["jpeg", "webp", "png"])
def test_resize_sets_the_short_side(format_):
    made = make(raw(), Recipe(resize=12, format=format_, quality=80))
    with Image.open(io.BytesIO(made.example.image)) as image:
        assert image.size == (16, 12) == (made.width, made.height)
        assert image.format == format_.upper()
        # Halved noise is on average within 40 of 255 of the mean of each 2×2 pixels (Lanczos is not a mean).
        # A crop or a mirrored image differs by 70. JPEG and WebP blur the colours of noise.
        mean = np.asarray(picture(0), np.float32).reshape(12, 2, 16, 2, 3).mean(axis=(1, 3))
        assert np.abs(np.asarray(image, np.float32) - mean).mean() < (40 if format_ == "png" else 55)
    assert make(raw(), Recipe(resize=24)).example.image == raw().image  # nothing is enlarged


def test_webp_is_kept_and_other_formats_become_jpeg():
    webp = encode(picture(0), "WEBP", quality=50)
    assert make(raw(webp), Recipe()).example.image == webp
    with Image.open(io.BytesIO(make(raw(encode(picture(0), "BMP")), Recipe()).example.image)) as image:
        assert image.format == "JPEG"


def test_sizes_respect_exif_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    turned = encode(picture(0), exif=exif)
    made = make(raw(turned), Recipe())
    assert (made.width, made.height) == (24, 32) and made.example.image == turned
    made = make(raw(turned), Recipe(resize=12, format="png"))
    assert (made.width, made.height) == (12, 16)
    assert Image.open(io.BytesIO(made.example.image)).size == (12, 16)


def test_validation_split_is_drawn_by_key(source, tmp_path):
    prepare([source], tmp_path / "all", Recipe(validation=0.3))
    train, validation = keys(tmp_path / "all"), keys(tmp_path / "all", "validation")
    assert sorted(train + validation) == [f"{i // 4}/{i:04d}" for i in range(12)] and validation
    prepare([source], tmp_path / "few", Recipe(validation=0.3), limit=9)
    assert set(keys(tmp_path / "few", "validation")) <= set(validation)
    for share, split in ((1e-9, "validation"), (1.0, "train")):
        with pytest.raises(UserError, match=f"none of the 12 examples for the split '{split}'"):
            prepare([source], tmp_path / "none", Recipe(validation=share))


@pytest.mark.parametrize("limit", [1, 4, 6, 12, 20])
def test_limit_keeps_first_examples(source, tmp_path, limit):
    report = prepare([source], tmp_path / "data", Recipe(), limit=limit)
    assert keys(tmp_path / "data") == [f"{i // 4}/{i:04d}" for i in range(12)][:limit]
    assert report.count == min(limit, 12)


@pytest.fixture
def broken(source, tmp_path) -> str:
    """The three shards and a fourth: three broken examples, one with a short caption, two good ones."""
    samples = [sample(i) for i in range(12, 18)]
    samples[0]["jpg"] = b"no image"
    samples[1]["jpg"] = samples[1]["jpg"][:-200]
    del samples[2]["txt"]
    samples[3]["txt"] = b"x"
    write_tar(tmp_path / "source" / "3.tar", samples, first=12)
    return source


def test_report_lists_dropped_examples(broken, tmp_path, capsys):
    options = ["--source", broken, "--data-dir", str(tmp_path / "data"), "--workers", "0"]
    command.main([*options, "--max-bad-share", "0.2", "--min-caption", "2"])
    assert len(keys(tmp_path / "data")) == 14
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert (report["read"], report["kept"], report["bad_count"]) == (18, {"train": 14}, 3)
    assert {reason: group["count"] for reason, group in report["bad"].items()} == {
        "undecodable": 1, "truncated": 1, "no_caption": 1,
    }  # fmt: skip
    assert report["filtered"]["short_caption"]["instances"] == ["3/0015"]
    assert report["recipe"]["min_caption"] == 2 and report["sources"] == [broken]
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 24
    for part in ("read               18", "train 14", "the caption is too short: 3/0015", "16.7%"):
        assert part in text


def test_too_many_broken_examples_raise(broken, tmp_path):
    with pytest.raises(
        UserError, match=r"3 of 18 examples are broken \(16.7%\), more than --max-bad-share 0.1"
    ):
        prepare([broken], tmp_path / "data", Recipe(), max_bad_share=0.1)
    assert not is_written(tmp_path / "data")
    assert json.loads((tmp_path / "data" / "report.json").read_text())["bad_count"] == 3


def test_too_many_broken_examples_stop_early(source, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_ENOUGH", 4)
    write_tar(tmp_path / "source" / "0.tar", [{"jpg": b"", "txt": b"x"}] * 4)
    with pytest.raises(UserError, match="4 of 4 examples are broken"):
        prepare([source], tmp_path / "data", Recipe())


def test_no_remaining_example_raises(source, tmp_path):
    with pytest.raises(UserError, match="none of the 12 examples that were read passed the filters"):
        prepare([source], tmp_path / "data", Recipe(min_side=1000))
    assert not is_written(tmp_path / "data")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("changed", [False, True], ids=["", "another recipe"])
def test_interrupted_preparation_resumes(source, tmp_path, monkeypatch, changed):
    """Killed in the third part: with the same recipe the first two are not read again."""
    read_part, read = shards.read_part, []

    def stop(part, names):
        for i, example in enumerate(read_part(part, names)):
            if part.prefix == "2" and i == 1:
                raise Killed
            yield example

    monkeypatch.setattr(shards, "read_part", stop)
    with pytest.raises(Killed):
        prepare([source], tmp_path / "data", Recipe())
    assert not is_written(tmp_path / "data")

    def record(part, names):
        read.append(part.prefix)
        return read_part(part, names)

    monkeypatch.setattr(shards, "read_part", record)
    prepare([source], tmp_path / "data", Recipe(min_side=2) if changed else Recipe())
    assert read == (["0", "1", "2"] if changed else ["2"])
    assert keys(tmp_path / "data") == [f"{i // 4}/{i:04d}" for i in range(12)]
    files = {path.name for path in (tmp_path / "data" / "image_text" / "1.0.0").iterdir()}
    assert files == {f"image_text-train.array_record-0000{i}-of-00003" for i in range(3)} | {
        "dataset_info.json", "features.json", "sizes-train.npy",
    }  # fmt: skip


def test_changed_source_is_read_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare([source], tmp_path / "data", Recipe())
    monkeypatch.undo()
    write_tar(tmp_path / "source" / "1.tar", [sample(7)], first=7)
    prepare([source], tmp_path / "data", Recipe())
    assert len(keys(tmp_path / "data")) == 9


def test_worker_processes_write_same_data_set(source, tmp_path):
    prepare([source], tmp_path / "one", Recipe(validation=0.3))
    prepare([source], tmp_path / "two", Recipe(validation=0.3), workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def contents(data_dir) -> tuple:
    """File names, and each split's records and sizes (not bytes: protobuf may reorder a record's fields)."""
    names = sorted(path.name for path in (data_dir / "image_text" / "1.0.0").iterdir())
    splits = [open_split(data_dir, split) for split in ("train", "validation")]
    records = [[split.without_image(i) for i in range(len(split))] for split in splits]
    return names, records, [split.sizes().tolist() for split in splits]


needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed"
)


@needs_beam
def test_beam_writes_same_data_set(broken, tmp_path):
    options = {"max_bad_share": 0.2}
    here = prepare([broken], tmp_path / "here", Recipe(validation=0.3), **options)
    beam = prepare([broken], tmp_path / "beam", Recipe(validation=0.3), beam_options=[], **options)
    assert contents(tmp_path / "beam") == contents(tmp_path / "here")
    assert beam == here


@needs_beam
def test_beam_worker_error_is_one_line(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"photo": [b"x"]}), tmp_path / "0.parquet")
    with pytest.raises(
        UserError, match=r"^'.*0.parquet' has the columns photo: say with --image-key which .*s$"
    ):
        prepare([str(tmp_path)], tmp_path / "data", Recipe(), beam_options=["--runner=DirectRunner"])


def test_missing_beam_error_names_package(source, tmp_path, monkeypatch):
    monkeypatch.setitem(run_parts.__builtins__, "__import__", no_beam(__import__))
    with pytest.raises(UserError, match="--beam needs Apache Beam"):
        prepare([source], tmp_path / "data", Recipe(), beam_options=[])


def no_beam(import_):
    def without(name, *args, **kwargs):
        if name.startswith("apache_beam"):
            raise ModuleNotFoundError(name=name)
        return import_(name, *args, **kwargs)

    return without


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-side", "0"], "--min-side: must be at least 1, not 0"),
        (["--min-side", "big"], "--min-side: invalid whole number value: 'big'"),
        (["--validation", "2"], "--validation: must be between 0 and 1, not 2"),
        (["--max-aspect", "0.5"], "--max-aspect: must be a number of at least 1, not 0.5"),
        (["--quality", "101"], "--quality: must be at least 1 and at most 100, not 101"),
        (["--min-caption", "5", "--max-caption", "4"], "--min-caption 5 is above --max-caption 4"),
        (["--", "--runner=x"], "options after -- are Beam's, such as --runner=x, and need --beam"),
        (["--beam", "--limit", "3"], "--limit keeps the first examples, but --beam reads in no order"),
        (["--source", "nowhere"], "the source 'nowhere' cannot be read"),
        (["--data-dir", "/dev/null/x"], "the data folder '/dev/null/x' cannot be written: Not a directory"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_invalid_options_give_one_line_error(source, tmp_path, capsys, options, message):
    given = ["--source", source, "--data-dir", str(tmp_path / "data"), "--workers", "0"]
    with pytest.raises(SystemExit) as stop:
        command.main([*given, *options])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and len(err.splitlines()) == 1


def test_latents_are_stored_after_the_data_set(source, tmp_path, monkeypatch, capsys):
    """The model is loaded first: a mistake in its name must not wait for hours of reading."""
    done = []

    def load(model, args):
        done.append((model, args.encode_batch, args.buckets, args.encode_text, is_written(tmp_path / "data")))
        return "the encoding"

    monkeypatch.setattr(encode_module, "from_arguments", load)
    monkeypatch.setattr(encode_module, "encode_data_set", lambda *given: done.append(given))
    options = ["--source", source, "--data-dir", str(tmp_path / "data"), "--workers", "0"]
    options += ["--encode", "MODEL", "--buckets", "--encode-batch", "3", "--encode-text"]
    command.main(options)
    assert done == [("MODEL", 3, True, True, False), (str(tmp_path / "data"), "the encoding")]
    assert is_written(tmp_path / "data")
    with pytest.raises(SystemExit):  # like a run that was interrupted while encoding; no model is loaded
        command.main(options)
    assert f"data.encode --data-dir {tmp_path / 'data'} --model MODEL, with" in capsys.readouterr().err
    assert len(done) == 2


@pytest.mark.parametrize("option", [["--encode-text"], ["--buckets"], ["--vae-dtype", "bfloat16"]])
def test_encode_options_without_model_raise(source, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        command.main(["--source", source, "--data-dir", str(tmp_path / "data"), *option])
    error = capsys.readouterr().err
    assert "add --encode MODEL" in error and option[0] in error
    assert not (tmp_path / "data").exists()


def test_text_dtype_without_encode_text_raises(source, tmp_path, capsys):
    given = ["--source", source, "--data-dir", str(tmp_path / "data"), "--encode", "toybox"]
    with pytest.raises(SystemExit):
        command.main([*given, "--dtype", "bfloat16"])
    assert "--dtype bfloat16 is for the text encoders, which only --encode-text" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_existing_data_set_is_not_overwritten(source, tmp_path):
    prepare([source], tmp_path / "data", Recipe(), limit=2)
    with pytest.raises(UserError, match="holds a data set already"):
        prepare([source], tmp_path / "data", Recipe())
    assert len(keys(tmp_path / "data")) == 2
