"""The picture is well-formed, holds every trial, and its marks stand where the numbers are."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from laconic.report import front_svg
from laconic.report.svg import Scale, element, escape, overlap, place, shorten
from laconic.report.trials import front, rows

SVG = "{http://www.w3.org/2000/svg}"


def groups(dossier):
    """The marks by trial number: their words and their shapes."""
    root = ET.fromstring(front_svg(dossier))
    found = {}
    for group in root.iter(f"{SVG}g"):
        words = group.find(f"{SVG}title").text
        number = int(words.partition(".")[0])
        assert number not in found
        found[number] = (words, [child for child in group if child.tag != f"{SVG}title"])
    return found


def test_every_kind_is_well_formed_and_loads_nothing(dossier):
    text = front_svg(dossier)
    root = ET.fromstring(text)
    assert (root.get("width"), root.get("height")) == ("860", "420")
    assert text.count("http") == text.count("http://www.w3.org/2000/svg") == 1
    assert not [e for e in root.iter() if any(a.endswith(("href", "src")) for a in e.attrib)]
    assert "var(--" not in text
    assert text == front_svg(dossier)


def test_every_trial_has_one_mark_inside_the_picture(dossier):
    found = groups(dossier)
    assert sorted(found) == list(range(len(dossier["trials"])))
    for _, shapes in found.values():
        for shape in shapes:
            x, y = shape.get("cx"), shape.get("cy")
            if shape.tag == f"{SVG}path":
                x, y = shape.get("d")[1:].replace("l", " ").replace("h", " ").split()[:2]
            assert 0 < float(x) < 860
            assert 0 < float(y) < 420


def test_the_chosen_alone_has_a_ring_and_a_name(dossier):
    ringed = [n for n, (_, shapes) in groups(dossier).items() if any("ring" in s.get("class") for s in shapes)]
    assert ringed == [i for i, trial in enumerate(dossier["trials"]) if trial["chosen"]]
    labels = [t.text for t in ET.fromstring(front_svg(dossier)).iter(f"{SVG}text")]
    assert sum(label.startswith("chosen: ") for label in labels) == 1
    assert "the original" in labels
    assert any(label.startswith("the floor: ") for label in labels)


def test_faster_is_further_left_and_a_larger_drop_is_lower(make_dossier):
    found = groups(make_dossier())
    middle = {n: (float(s[0].get("cx")), float(s[0].get("cy"))) for n, (_, s) in found.items() if s[0].get("cx")}
    assert middle[2][0] < middle[1][0] < middle[3][0] < middle[0][0]  # 1.68x, 1.39x, 1.2x, 1x
    assert middle[0][1] == middle[1][1] < middle[2][1] < middle[3][1]  # 0, 0, 1.34, 3.1 points


def test_the_area_of_a_disc_is_the_size_of_the_file(make_dossier):
    found = groups(make_dossier())
    original, small = (float(found[n][1][0].get("r")) for n in (0, 1))
    assert (small / original) ** 2 == pytest.approx(102_578 / 377_465, rel=0.01)


def test_each_status_has_its_own_form(make_dossier):
    classes = {n: shapes[0].get("class") for n, (_, shapes) in groups(make_dossier()).items()}
    assert classes == {0: "original", 1: "passes", 2: "chosen", 3: "fails", 4: "rejected", 5: "failed", 6: "noisy"}


def test_labels_do_not_overlap(dossier):
    """By a width that the usual fonts do not exceed."""
    boxes = []
    for text in ET.fromstring(front_svg(dossier)).iter(f"{SVG}text"):
        font = {"title": 17, "known": 14}.get((text.get("class") or "").split(" ")[0], 12)
        wide = 0.5 * font * len(text.text)
        left = float(text.get("x")) - {"start": 0, "middle": wide / 2, "end": wide}[text.get("text-anchor")]
        assert left >= 0
        assert left + wide <= 860, text.text
        box = (left, float(text.get("y")) - 0.7 * font, left + wide, float(text.get("y")))
        clashes = [other for other, words in boxes if overlap(box, other)]
        assert not clashes, text.text
        boxes.append((box, text.text))


def test_a_drop_far_under_the_floor_is_drawn_at_the_lower_edge(make_dossier):
    dossier = make_dossier()
    before = groups(dossier)[1]
    dossier["trials"][3]["measurements"]["drop"] = [0.8, 0.7, 0.9]
    after = groups(dossier)
    assert after[3][1][0].tag == f"{SVG}path"
    assert after[3][1][0].get("class") == "fails"
    assert float(after[1][1][0].get("cy")) == pytest.approx(float(before[1][0].get("cy")), abs=40)


def test_no_trials_and_no_holdout_still_give_a_picture(make_dossier):
    assert ET.fromstring(front_svg(make_dossier(trials=[], certificate=None))).tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("zoo:lenet-5@/home/me/weights/l.safetensors", "zoo:lenet-5@l.safetensors, "),
        ("/home/me/model.onnx", "model.onnx, "),
        ("C:\\me\\net.py:make", "C:net.py:make, "),
        ("torchvision:resnet18", "torchvision:resnet18, "),
    ],
)
def test_a_published_picture_does_not_tell_folders(make_dossier, source, shown):
    dossier = make_dossier()
    dossier["model"]["source"] = source
    text = front_svg(dossier)
    assert f">{shown}onnxruntime:cpu" in text
    assert "/me/" not in text
    assert "home" not in text


def test_hostile_names_stay_text(make_dossier):
    dossier = make_dossier()
    dossier["model"]["source"] = "</title><script>\x00\x1b[31m\ud800"
    root = ET.fromstring(front_svg(dossier))
    assert not list(root.iter(f"{SVG}script"))


def test_the_front_holds_what_no_other_beats(kind):
    dossier = kind("large")
    found = rows(dossier)
    able = [r for r in found if r.cost and r.drop and r.status in ("chosen", "passes", "fails", "original")]
    best = front(found)
    assert best
    for row in able:
        beaten = any(o.cost[0] <= row.cost[0] and o.drop[0] <= row.drop[0] and o is not row for o in able)
        assert beaten or row in best
        assert row not in best or not any(o.cost[0] < row.cost[0] and o.drop[0] < row.drop[0] for o in able)


def test_scales_map_their_ends_and_ticks_lie_between():
    for scale in (Scale(0.2, 3.0, 50, 450), Scale(0.2, 30.0, 50, 450, log=True), Scale(-1.0, 2.0, 10, 0)):
        assert scale(scale.low) == pytest.approx(scale.start)
        assert scale(scale.high) == pytest.approx(scale.end)
        ticks = scale.ticks(5)
        assert 3 <= len(ticks) <= 10
        assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert Scale(0, 10, 0, 1).ticks(5) == [0, 2, 4, 6, 8, 10]
    assert Scale(0.9, 110, 0, 1, log=True).ticks(3) == [1, 10, 100]
    assert Scale(0.1, 10, 0, 100, log=True)(1) == pytest.approx(50)


def test_a_label_goes_where_it_covers_nothing():
    inside = (0, 0, 200, 100)
    near, right = (50, 45, 60, 55), (60, 30, 160, 70)
    spot = place(near, 80, 14, [near, right], inside)
    assert overlap(spot, near) == overlap(spot, right) == 0
    assert overlap(spot, inside) == pytest.approx(80 * 14)


def test_markup_is_escaped_and_numbers_are_short():
    assert (
        element("a", escape("<&"), x=1.0, y_z="\"'", class_="k")
        == '<a x="1" y-z="&quot;&#x27;" class="k">&lt;&amp;</a>'
    )
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert shorten("abc", 3) == "abc"
