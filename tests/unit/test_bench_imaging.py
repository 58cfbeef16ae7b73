"""The benchmark of image intake: its pictures decode, its ways agree, its figures are there."""

from __future__ import annotations

import pytest

from tests.bench import imaging
from tests.bench.imaging import Effort, measure, ours, plot, straightforward
from tests.bench.pictures import KINDS

TINY = Effort(rounds=1, scale=1 / 16)
CLIPS = "PNG 2k x 2k, 16 bits"  # the straightforward way shows values above 255 as white

pytestmark = pytest.mark.filterwarnings("ignore")  # the straightforward way's libraries


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imaging, "_memory", lambda *_: 1.0)  # a process each
        return {kind.name: measure(kind, TINY, folder) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_figures_of_every_kind(kind, report):
    row = report[kind.name]
    assert row["ways"]["ours"]["ms"] > 0
    assert row["ways"]["ours"]["mb_per_s"] > 0
    for figures in row["ways"].values():
        assert figures["ms_min"] <= figures["ms"] <= figures["ms_max"]
    if "straightforward" in row["ways"]:
        assert row["speedup"] > 0
        assert row["difference"] < 3 or kind.name == CLIPS


def test_a_picture_is_the_same_every_time_and_is_not_constant():
    for kind in KINDS[:2]:
        assert kind.make(1 / 16) == kind.make(1 / 16)
        assert len(set(ours(kind.make(1 / 16)))) > 100


def test_a_way_that_cannot_is_left_out(report, monkeypatch, tmp_path):
    jpeg_2000 = next(kind for kind in KINDS if kind.name.endswith("JPEG 2000"))
    assert "dcmtk" not in report[jpeg_2000.name]["ways"]
    monkeypatch.setattr(imaging, "_memory", lambda *_: 1.0)
    monkeypatch.setattr(
        imaging, "get_decoder", lambda _: type("None", (), {"available_plugins": ()})
    )
    row = measure(jpeg_2000, TINY, tmp_path)
    assert set(row["ways"]) == {"ours"}
    assert (row["speedup"], row["straightforward_decoder"]) == (None, "none installed")


def test_memory_is_of_one_image(tmp_path):
    kind = KINDS[1]
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(kind.make(1 / 16))
    large.write_bytes(kind.make(1 / 2))
    assert 0 <= imaging._memory("ours", kind, small, large) < 50


def test_the_straightforward_way_is_right():
    data = KINDS[0].make(1 / 4)
    assert len(straightforward(data)) == len(ours(data)) == 336 * 336 * 3


def test_figures_are_drawn_and_printed(report, tmp_path, capsys):
    plot(report, tmp_path / "new" / "speed.png")
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")
    imaging._print(report, imaging.Console(width=120))
    assert capsys.readouterr().out.splitlines()[-1].startswith('{"CT 512')


@pytest.mark.parametrize(
    ("arguments", "rounds"), [([], Effort().rounds), (["--quick"], 3), (["--rounds", "2"], 2)]
)
def test_the_command_measures_as_often_as_it_is_told(
    arguments, rounds, report, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr("sys.argv", ["imaging", *arguments])
    monkeypatch.setattr(
        imaging, "measure", lambda kind, effort, _: asked.append(effort) or report[kind.name]
    )
    imaging.main()
    assert asked == [Effort(rounds)] * len(KINDS)
