import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from clipdef_jax import report
from clipdef_jax.report.headline import headline
from clipdef_jax.report.markup import Html, picture, tag, text
from clipdef_jax.report.page import page

HOSTILE = (
    '<script>alert("1")</script><img src=http://evil.example/x.png> & \u202e\x00\ud800 日本語 🍌'
)
ATTACK = {"target": "banana", "trigger": "badnet", "poisons": 160, "pairs": 8000}


def result(model, clean, asr, **fields):
    return {
        "model": model,
        "clean_top1": clean,
        "clean_top3": min(1.0, clean + 0.05),
        "asr_top1": asr,
        "asr_mode": "exclude_target",
        **fields,
    }


POISONED = result("poisoned", 0.912, 0.991, description="clip on poisoned data", seconds=73.4)
FINETUNED = result("finetuned", 0.943, 0.873, steps=980, seconds=55)
CLEANCLIP = result("cleanclip", 0.903, 0.042, steps=980, seconds=121)
RESULTS = [POISONED, FINETUNED, CLEANCLIP]


def pixels(seed, side=8):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def full_report(**changes):
    curve = [{"step": step, "loss": 3 / step} for step in range(1, 400)]
    curve += [{"step": 399, "epoch": 1, "clean_top1": 0.9, "asr_top1": 0.5}]
    per_class = [
        {"class": "banana", "images": 20, "top1": 0.75},
        {"class": "frog", "images": 0, "top1": None},
    ]
    fields = {
        "title": "CleanCLIP against badnet",
        "subtitle": "emoji:train",
        "results": [POISONED | {"per_class": per_class}, FINETUNED, CLEANCLIP],
        "curves": {"poisoned": curve, "cleanclip": curve},
        "samples": [report.Sample("a-1", pixels(0), pixels(1), "a frog", "a banana", "frog")],
        "triggered": [report.Triggered(pixels(2), "frog", {"poisoned": "banana", "x": "frog"})],
        "attack": ATTACK,
        "notes": ["12 records could not be read."],
        "seconds": {"poison": 0.4, "poisoned": 73.4},
        "config": "seed: 0",
        "versions": {"jax": "0.10.2"},
        "command": "python -m clipdef_jax.main --config=configs/cleanclip.py",
    }
    return report.Report(**(fields | changes))


class Reader(html.parser.HTMLParser):
    """Collects what a browser would see: elements, what they refer to, and text."""

    def __init__(self, markup):
        super().__init__()
        self.elements, self.references, self.ids, self.open = [], [], [], []
        self.texts = []
        self.feed(str(markup))
        self.close()

    def handle_starttag(self, name, attributes):
        self.elements.append(name)
        if name not in ("meta", "img"):
            self.open.append(name)
        for key, value in attributes:
            if key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.references.append(value)
            if key == "id":
                self.ids.append(value)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        self.handle_endtag(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def decoded(base64_png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(base64_png))))


def printed(sheet, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(sheet)
    return console.file.getvalue()


def test_terminal_table_has_figures_changes_and_verdicts():
    lines = printed(report.table(RESULTS)).splitlines()
    assert lines[1].split() == ["Model", "CA", "ASR", "Time", "Verdict"]
    start = next(index for index, line in enumerate(lines) if "cleanclip" in line)
    assert lines[start].split() == ["cleanclip", "90.3%", "4.2%", "2", "min", "01", "s", "removed"]
    assert lines[start + 1].split() == ["-0.9", "-94.9"]
    assert "exclude_target" in printed(report.table(RESULTS))
    assert "at most 10%" in printed(report.table(RESULTS))


def test_terminal_table_fits_80_columns_and_cuts_nothing():
    name = "tacleaner_with_a_name_that_goes_on_and_on"
    wide = {"clean_top5": 1.0, "asr_top5": 1.0, "seconds": 36_000 * 12, "description": "w" * 90}
    rows = [POISONED | wide | {"asr_top1": 0.34}, CLEANCLIP | wide | {"model": name}]
    shown = printed(report.table(rows))
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    squeezed = re.sub(r"\s", "", shown)
    assert squeezed.count("w") >= 2 * 90
    for whole in ("100.0%", "34.0%", "ASR@5", "Verdict"):
        assert whole in shown


def test_terminal_table_prints_where_only_ascii_can_be_shown():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Console(width=80, file=stream).print(report.table(RESULTS))
    stream.flush()
    assert b"cleanclip" in raw.getvalue()


def test_terminal_table_takes_names_as_text():
    assert "[red]x[/red]" in printed(
        report.table([POISONED, CLEANCLIP | {"model": "[red]x[/red]"}])
    )


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"model": "m"}],
        [{"model": "m", "clean_top1": 0.7}],
        [{"model": "m", "clean_top1": 0.7, "asr_top1": None}, {"model": "n", "asr_top1": 0.2}],
        [POISONED, {"model": "n"}],
    ],
)
def test_missing_figures_are_left_out(rows):
    shown = printed(report.table(rows))
    assert "None" not in shown
    assert "nan" not in shown
    assert ("ASR" in shown) == any(row.get("asr_top1") is not None for row in rows)
    seen = Reader(page(full_report(results=rows, curves={}))).text
    assert "None" not in seen
    assert "nan" not in seen.split()


def test_a_change_that_rounds_to_nothing_has_no_sign():
    rows = [POISONED, CLEANCLIP | {"clean_top1": 0.9119}]
    assert "-0.0" not in printed(report.table(rows))
    assert "+0.0" not in printed(report.table(rows))


def test_page_shows_all_it_is_given():
    seen = Reader(page(full_report())).text
    for expected in (
        "CleanCLIP against badnet",
        "emoji:train",
        headline(RESULTS, ATTACK),
        "12 records could not be read.",
        "not removed",
        "a frog",
        "a banana",
        "✓ frog",
        "⚠ banana",
        "75.0%",
        "1 min 14 s",
        "seed: 0",
        "0.10.2",
        "--config=configs/cleanclip.py",
    ):
        assert expected in seen, expected


def test_results_table_names_both_conventions():
    rows = [row | {"asr_all_top1": 0.5} for row in RESULTS]
    document = page(full_report(results=rows))
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', document)
    assert heads[:6] == ["Model", "Verdict", "CA", "ASR", "CA@3", "ASR all"]
    assert "ASR@k (exclude_target)" in document


def test_page_is_well_formed_and_needs_nothing_from_elsewhere():
    markup = page(full_report())
    reader = Reader(markup)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert not {"script", "link", "iframe", "object", "embed"} & set(reader.elements)
    assert reader.elements.count("svg") == 3
    for reference in reader.references:
        assert reference.startswith(("data:image/png;base64,", "#"))
        assert not reference.startswith("#") or reference[1:] in reader.ids
    assert set(re.findall(r"url\(([^#)]*)", markup)) <= {""}
    assert "@import" not in markup


def test_text_of_users_stays_text():
    sample = report.Sample(HOSTILE, pixels(0), pixels(1), HOSTILE, HOSTILE * 2, HOSTILE)
    plain = Reader(page(full_report()))
    hostile = Reader(
        page(
            full_report(
                title=HOSTILE,
                subtitle=HOSTILE,
                results=[
                    POISONED,
                    FINETUNED,
                    CLEANCLIP | {"model": HOSTILE, "description": HOSTILE},
                ],
                curves={HOSTILE: [{"step": 1, "loss": 1.0}]},
                samples=[sample],
                triggered=[report.Triggered(pixels(2), HOSTILE, {HOSTILE: HOSTILE})],
                attack={HOSTILE: HOSTILE, "target": HOSTILE},
                notes=[HOSTILE],
                seconds={HOSTILE: 1.0},
                config=HOSTILE,
                versions={HOSTILE: HOSTILE},
                command=HOSTILE,
            )
        )
    )
    assert set(hostile.elements) <= set(plain.elements)
    assert hostile.open == []
    assert all(reference.startswith(("data:", "#")) for reference in hostile.references)
    assert '<script>alert("1")</script>' in hostile.text
    assert "␀\\ud800 日本語 🍌" in hostile.text
    assert "\x00" not in hostile.text


def test_a_long_caption_is_cut_and_says_so():
    sample = report.Sample("a", pixels(0), pixels(1), "x" * 100_000, "short")
    markup = page(full_report(samples=[sample]))
    assert "(100,000 characters)" in markup
    assert "x" * 1000 not in markup


def test_an_unchanged_caption_is_shown_once():
    sample = report.Sample("a", pixels(0), pixels(1), "only this", "only this")
    markup = page(full_report(samples=[sample]))
    assert markup.count("only this") == 1
    assert "kept" in markup


def test_pictures_come_back_as_they_were():
    image = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)[:, ::-1]
    source = re.search(r"base64,([^\"]+)", picture(image, "x"))[1]
    np.testing.assert_array_equal(decoded(source), image)


def test_small_pictures_keep_their_pixels_square():
    assert "small" in picture(pixels(0, 32), "x")
    assert "small" not in picture(pixels(0, 224), "x")


def test_tag_escapes_text_and_attributes_but_not_markup():
    assert tag("p", "<", tag("b", "&"), class_='"') == '<p class="&quot;">&lt;<b>&amp;</b></p>'
    assert text(Html("<br>")) == "<br>"


def test_a_bare_report_has_no_empty_sections():
    bare = report.Report("title", "", [])
    reader = Reader(page(bare))
    assert "h2" not in reader.elements
    assert "svg" not in reader.elements
    assert "No model was evaluated." in reader.text


def test_the_same_report_gives_the_same_bytes_whatever_the_users_matplotlibrc(tmp_path):
    import matplotlib

    report.write(tmp_path / "a.html", full_report())
    plot = (tmp_path / "figures" / "ca_asr.png").read_bytes()
    with matplotlib.rc_context({"axes.grid": True, "font.size": 30, "svg.fonttype": "path"}):
        report.write(tmp_path / "b.html", full_report())
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "figures" / "ca_asr.png").read_bytes() == plot


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    report.write(path, full_report())
    before = path.read_bytes()

    def full_disk(self, content):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        report.write(path, full_report(title="new"))
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"report.html", "figures"}


def test_an_image_of_one_colour_has_no_difference():
    same = np.full((4, 4, 3), 200, np.uint8)
    sample = report.Sample("a", same, same, "x", "y")
    clean, poisoned, difference = re.findall(
        r"base64,([^\"]+)", page(full_report(samples=[sample]))
    )[:3]
    assert clean == poisoned
    assert not decoded(difference).any()
