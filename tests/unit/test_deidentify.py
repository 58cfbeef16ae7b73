"""``llava-med deidentify``: folders in, bare PNGs and a report out, nothing of the patient."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit, UltrasoundImageStorage
from typer.testing import CliRunner

from serve.deidentify.command import deidentify
from serve.deidentify.files import COLUMNS, Ledger
from serve.deidentify.one import Entry, Job, Row, convert
from serve.deidentify.run import PARTIAL, Finished
from serve.imaging.intake import decode
from serve.imaging.sources import Wanted
from tests.dicoms import PATIENT, PATIENT_ID, ROOT, STUDY_DATE, dicom
from tests.unit.taking_images import RULES

REPOSITORY = Path(__file__).parents[2]
APP = typer.Typer()
APP.command()(deidentify)
COMMAND = [sys.executable, "-m", "serve", "deidentify"]
FOLDER = f"{PATIENT}, {PATIENT_ID}"
PLANTED = (PATIENT, "Planted", "Person", PATIENT_ID, "7731904", STUDY_DATE, ROOT, "77319")


@dataclass(frozen=True)
class Ran:
    code: int
    said: str
    rows: list[dict[str, str]]

    def codes(self) -> list[str]:
        return [row["code"] or row["outcome"] for row in self.rows]


def ran(source: Path, out: Path, *options: str | Path, prefix: Sequence[str] = ()) -> Ran:
    done = subprocess.run(
        [*prefix, *COMMAND, source, out, *options],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    report = out / "report.csv"
    rows = rows_of(report) if report.exists() else []
    return Ran(done.returncode, done.stdout + done.stderr, rows)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run, the report without the seconds that it took."""
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    lines = list(csv.reader(io.StringIO(files["report.csv"].decode())))
    column = lines[0].index("seconds")
    files["report.csv"] = repr([[*line[:column], *line[column + 1 :]] for line in lines]).encode()
    return files


def chunks(png: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append(png[at + 4 : at + 8])
        at += 12 + length
    return found


def ct(seed: int = 0, shape: tuple[int, ...] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape, dtype=np.int16)


def ultrasound() -> bytes:
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 20
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 63, 47
    pixels = np.full((48, 64, 3), 200, np.uint8)
    return dicom(
        pixels,
        Modality="US",
        SOPClassUID=UltrasoundImageStorage,
        SequenceOfUltrasoundRegions=[region],
    )


def png_with_texts() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", PATIENT)
    info.add_itxt("Comment", PATIENT_ID)
    file = io.BytesIO()
    Image.fromarray(ct()[:, :40].astype(np.uint8)).save(file, "PNG", pnginfo=info, dpi=(72, 72))
    return file.getvalue() + PATIENT.encode()


def jpeg_with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = PATIENT
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (1, 2, 3)).save(file, "JPEG", exif=exif, comment=PATIENT_ID)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every kind, in nested folders with the patient's name, in the order of their numbers."""
    source = tmp_path_factory.mktemp("deidentify") / FOLDER
    study = source / FOLDER / STUDY_DATE
    study.mkdir(parents=True)
    damaged = dicom(ct().astype(np.uint8), JPEGBaseline8Bit)
    files = {
        f"1 {PATIENT}.dcm": dicom(ct(), RescaleIntercept=-24, RescaleSlope=1),
        "2": dicom(ct(shape=(3, 16, 16, 1))),
        "3.dcm": ultrasound(),
        "4.png": png_with_texts(),
        "5.jpg": jpeg_with_exif(),
        "6 damaged.dcm": damaged[: len(damaged) - 1500],
        "7 report.dcm": Path(get_testdata_file("reportsi.dcm")).read_bytes(),
        "8.txt": PATIENT.encode(),
        "9.gif": b"GIF89a" + PATIENT.encode(),
    }
    for name, data in files.items():
        (study / name).write_bytes(data)
    outside = source.parent / "outside.dcm"
    outside.write_bytes(dicom(ct(1)))
    (source / "z1").symlink_to(outside)
    (source / "z2").symlink_to(source.parent, target_is_directory=True)
    os.mkfifo(source / "z3")
    return source


FOUND = [
    "written", "written", "written", "written", "written", "unusable_image", "not_an_image",
    "unusable_image", "unsupported_media_type", "symbolic_link", "symbolic_link", "special_file",
]  # fmt: skip


@pytest.fixture(scope="module")
def first_run(folder: Path) -> tuple[Ran, Path]:
    out = folder.parent / "first"
    crosswalk = folder.parent / "crosswalk.csv"
    return ran(folder, out, "--workers", "1", "--crosswalk", crosswalk), out


def test_every_file_is_accounted_for_and_a_failed_image_fails_the_run(
    first_run: tuple[Ran, Path],
) -> None:
    result, out = first_run
    assert result.codes() == FOUND
    assert [row["outcome"] for row in result.rows] == ["written"] * 5 + ["failed"] + ["skipped"] * 6
    assert result.code == 1
    assert "12 files" in result.said
    assert "5 images written, 1 failed" in result.said
    names = [f"{number:06d}.png" for number in range(1, 6)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "report.csv"]


def test_nothing_planted_is_in_any_byte_name_or_output(first_run: tuple[Ran, Path]) -> None:
    result, out = first_run
    seen = [path.name.encode() for path in out.rglob("*")]
    seen += [path.read_bytes() for path in out.rglob("*")]
    seen.append(result.said.encode())
    for planted in PLANTED:
        assert not any(planted.encode() in data for data in seen), planted
        assert not any(planted.encode("utf-16-le") in data for data in seen), planted


def test_outputs_are_pixels_alone_as_the_service_decodes_them(
    first_run: tuple[Ran, Path], folder: Path
) -> None:
    _, out = first_run
    files = sorted((folder / FOLDER / STUDY_DATE).iterdir())
    for number, file in enumerate(files[:5], start=1):
        path = out / f"{number:06d}.png"
        kinds = chunks(path.read_bytes())
        assert [kinds[0], *set(kinds[1:-1]), kinds[-1]] == [b"IHDR", b"IDAT", b"IEND"]
        expected = decode(file.read_bytes(), None, Wanted(), RULES).image
        with Image.open(path) as image:
            assert image.mode == expected.mode
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_the_report_says_how_each_image_came_about(first_run: tuple[Ran, Path]) -> None:
    result, out = first_run
    assert tuple(result.rows[0]) == COLUMNS
    scan, cine, scanned, png, jpeg = result.rows[:5]
    assert [scan[name] for name in ("kind", "frame", "frames", "width", "height")] == [
        "application/dicom", "1", "1", "64", "48",
    ]  # fmt: skip
    assert [scan[name] for name in ("window_center", "window_width", "window_origin")] == [
        "40", "400", "default",
    ]  # fmt: skip
    assert cine["frames"] == "3"
    assert [scanned[name] for name in ("burned_in", "evidence", "boxes")] == [
        "masked", "writing_modality", "1",
    ]  # fmt: skip
    with Image.open(out / "000003.png") as image:
        pixels = np.asarray(image)
    assert not pixels[:20].any()
    assert (pixels[20:] == 200).all()
    assert [png["kind"], jpeg["kind"], png["frame"]] == ["image/png", "image/jpeg", ""]
    for row in result.rows:
        assert (row["output"] != "") == (row["outcome"] == "written")
        if row["output"]:
            digest = hashlib.sha256((out / row["output"]).read_bytes()).hexdigest()
            assert row["sha256"] == digest


def test_the_crosswalk_is_the_only_way_back_and_for_its_owner_alone(
    first_run: tuple[Ran, Path], folder: Path
) -> None:
    crosswalk = folder.parent / "crosswalk.csv"
    assert stat.S_IMODE(crosswalk.stat().st_mode) == 0o600
    rows = rows_of(crosswalk)
    assert [row["number"] for row in rows] == [str(number) for number in range(1, 13)]
    outputs = {row["input"]: row["output"] for row in rows}
    assert set(outputs) == {str(path) for path in folder.rglob("*") if not path.is_dir()} | {
        str(folder / "z2")
    }
    assert outputs[str(folder / FOLDER / STUDY_DATE / "4.png")] == "000004.png"
    assert outputs[str(folder / FOLDER / STUDY_DATE / "6 damaged.dcm")] == ""


def test_four_processes_write_the_same_bytes_as_one(
    first_run: tuple[Ran, Path], folder: Path, tmp_path: Path
) -> None:
    assert ran(folder, tmp_path / "out", "--workers", "4").code == 1
    assert contents(tmp_path / "out") == contents(first_run[1])


def test_all_frames_come_as_one_png_each_with_the_window_that_is_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "cine.dcm"
    source.write_bytes(dicom(ct(shape=(12, 16, 20, 1)), RescaleIntercept=0, RescaleSlope=1))
    result = ran(source, tmp_path / "out", "--frames", "all", "--window", "lung")
    assert result.code == 0
    assert [row["output"] for row in result.rows] == [f"000001-{n:04d}.png" for n in range(1, 13)]
    for number in range(1, 13):
        wanted = Wanted(frame=number, window="lung")
        expected = decode(source.read_bytes(), None, wanted, RULES).image
        with Image.open(tmp_path / "out" / f"000001-{number:04d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert {(row["window_origin"], row["window_center"]) for row in result.rows} == {
        ("request", "-600")
    }


def test_a_window_leaves_alone_the_images_that_it_is_not_for(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "1").write_bytes(dicom(ct(), RescaleIntercept=0, RescaleSlope=1))
    (source / "2").write_bytes(dicom(ct(), Modality="MR"))
    (source / "3").write_bytes(ultrasound())
    (source / "4").write_bytes(png_with_texts())
    named = ran(source, tmp_path / "named", "--window", "bone", "--square")
    assert [row["window_origin"] for row in named.rows] == ["request", "default", "", ""]
    assert {(row["width"], row["height"]) for row in named.rows} == {("336", "336")}
    numbered = ran(source, tmp_path / "numbered", "--window", "7")
    absent = "invalid_image_parameter"
    assert numbered.codes() == [absent, absent, "written", "written"]
    given = ran(source, tmp_path / "given", "--center", "10", "--width", "50.5")
    assert [row["window_width"] for row in given.rows] == ["50.5", "50.5", "", ""]


def test_settings_and_options_decide_about_burned_in_text_and_limits(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "1").write_bytes(dicom(ct(), Modality="OT"))
    (source / "2").write_bytes(dicom(ct(shape=(200, 200))))
    config = tmp_path / "serve.yaml"
    config.write_text("limits: {max_image_pixels: 10000}\nimaging: {burned_in: refuse}\n")
    by_settings = ran(source, tmp_path / "a", "--config", config)
    assert by_settings.codes() == ["burned_in_annotation", "request_too_large"]
    by_option = ran(source, tmp_path / "b", "--config", config, "--burned-in", "flag")
    assert by_option.codes() == ["written", "request_too_large"]
    assert by_option.rows[0]["burned_in"] == "flagged"
    assert "--crosswalk" in by_option.said  # the way to learn which one failed


def test_overwriting_replaces_an_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    source, out, crosswalk = tmp_path / "in", tmp_path / "out", tmp_path / "crosswalk.csv"
    source.mkdir()
    (source / "a").write_bytes(dicom(ct()))
    (source / "b").write_bytes(dicom(ct(2)))
    assert ran(source, out, "--crosswalk", crosswalk).code == 0
    before = contents(out)
    (source / "b").unlink()

    refused = ran(source, out)
    assert (refused.code, contents(out)) == (2, before)
    other = tmp_path / "mine.csv"
    other.write_text("mine")
    refused = ran(source, out, "--overwrite", "--crosswalk", other)
    assert (refused.code, contents(out), other.read_text()) == (2, before, "mine")

    crosswalk.chmod(0o644)
    assert ran(source, out, "--overwrite", "--crosswalk", crosswalk).code == 0
    assert sorted(contents(out)) == ["000001.png", "report.csv"]
    assert stat.S_IMODE(crosswalk.stat().st_mode) == 0o600

    (out / "thesis.docx").write_text("mine")
    refused = ran(source, out, "--overwrite")
    assert refused.code == 2
    assert (out / "thesis.docx").exists()
    assert (out / "000001.png").exists()


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        (".", (), "in each other"),
        ("in/out", (), "in each other"),
        ("out", ("--crosswalk", "out/way-back.csv"), "may not lie in OUT"),
        ("out", ("--crosswalk", "link/way-back.csv"), "may not lie in OUT"),
        ("out", ("--crosswalk", "in/way-back.csv"), "may not lie in IN"),
        ("out", ("--window", "nose"), "--window is"),
        ("out", ("--center", "5"), "--window is"),
        ("out", ("--config", "none.yaml"), "--config"),
        ("out", ("--workers", "0"), "--workers"),
        ("out", ("--frames", "last"), "--frames"),
    ],
)
def test_what_cannot_run_as_given_writes_nothing(
    tmp_path: Path, out: str, options: tuple[str, ...], says: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / PATIENT).write_bytes(dicom(ct()))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    is_path = options[:1] in (("--crosswalk",), ("--config",))
    given = [str(tmp_path / word) if is_path and n else word for n, word in enumerate(options)]
    result = CliRunner().invoke(APP, [str(source), str(tmp_path / out), *given])
    assert result.exit_code == 2
    assert says in result.output
    assert str(source) not in result.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [PATIENT, "empty"])
def test_in_that_is_absent_or_empty_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(APP, [str(tmp_path / name), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert PATIENT not in result.output
    assert not (tmp_path / "out").exists()


def test_a_transfer_that_broke_off_is_a_failed_image_and_no_report_to_skip(tmp_path: Path) -> None:
    whole = dicom(ct(shape=(16, 16)))
    for end in (len(whole) - 600, len(whole) - 100, 700):
        job = Job(RULES, Wanted(), "representative", square=False, max_bytes=1 << 20)
        (tmp_path / "cut").write_bytes(whole[:end])
        row = convert(Entry(1, str(tmp_path / "cut")), None, job, str(tmp_path / "png"))
        assert (row.outcome, row.code) == ("failed", "unusable_image")
    assert not (tmp_path / "png").exists()


def test_a_file_that_is_too_large_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(dicom(ct()))
    job = Job(RULES, Wanted(), "representative", square=False, max_bytes=1000)
    row = convert(Entry(1, str(tmp_path / "large")), None, job, str(tmp_path / "png"))
    assert (row.outcome, row.code) == ("failed", "request_too_large")


def test_an_image_that_takes_too_long_costs_no_other_image(tmp_path: Path) -> None:
    source, config = tmp_path / "in", tmp_path / "serve.yaml"
    source.mkdir()
    config.write_text("imaging: {timeout_s: 0.5}\n")
    for name in "ac":
        (source / name).write_bytes(dicom(ct()))
    Image.new("RGB", (7000, 7000)).save(source / "b", "PNG", compress_level=1)
    result = ran(source, tmp_path / "out", "--config", config, "--workers", "1")
    assert result.codes() == ["written", "decoding_timeout", "written"]
    assert sorted(contents(tmp_path / "out")) == ["000001.png", "000003.png", "report.csv"]


def test_a_terminal_shows_progress(tmp_path: Path) -> None:
    source = tmp_path / PATIENT
    source.mkdir()
    (source / PATIENT_ID).write_bytes(dicom(ct()))
    ours, theirs = os.openpty()
    done = subprocess.run(
        [*COMMAND, source, tmp_path / "out"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=theirs, timeout=60,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert "1/1" in shown
    assert "0 failed" in shown
    assert "Planted" not in shown


def test_a_name_that_is_no_text_is_in_the_crosswalk_byte_by_byte(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    name = b'"a,\xff\n".dcm'
    (source / os.fsdecode(name)).write_bytes(dicom(ct()))
    assert ran(source, tmp_path / "out", "--crosswalk", tmp_path / "way.csv").code == 0
    lines = (tmp_path / "way.csv").read_text("utf-8", "surrogateescape")
    (row,) = csv.DictReader(io.StringIO(lines, newline=""))
    assert os.fsencode(row["input"]) == os.fsencode(source) + b"/" + name


def test_what_became_a_link_or_a_pipe_since_it_was_found_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(dicom(ct()))
    (tmp_path / "link").symlink_to(tmp_path / "image")
    os.mkfifo(tmp_path / "pipe")
    job = Job(RULES, Wanted(), "representative", square=False, max_bytes=1 << 20)
    for name in ("link", "pipe", "gone"):
        row = convert(Entry(1, str(tmp_path / name)), None, job, str(tmp_path / "png"))
        assert (row.outcome, row.code) == ("failed", "unreadable_file")


def _finished(number: int, rows: int = 1, frame: int | None = None) -> Finished:
    return Finished(Row(number, outcome="written", frame=frame), rows)


@given(st.permutations([(1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (4, 1), (4, 2)]), st.integers(0, 7))
def test_the_report_is_in_order_whichever_is_finished_first_and_whenever_it_ends(
    order: list[tuple[int, int]], ends_after: int
) -> None:
    frames = {1: 1, 2: 3, 3: 1, 4: 2}
    with tempfile.TemporaryDirectory() as out:
        with Ledger([Entry(n, "x") for n in frames], Path(out), None) as ledger:
            last = [
                ledger.add(_finished(number, frames[number], frame))
                for number, frame in order[:ends_after]
            ]
        rows = rows_of(Path(out) / "report.csv")
    assert [(int(row["number"]), int(row["frame"])) for row in rows] == sorted(order[:ends_after])
    whole = [n for n in frames if sum(n == number for number, _ in order[:ends_after]) == frames[n]]
    assert sum(last) == len(whole)


# Root may read everything, unless it gives that up.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_what_may_not_be_read_fails_and_is_not_passed_over(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "closed").mkdir(parents=True)
    (source / "closed" / "1").write_bytes(dicom(ct()))
    (source / "open.dcm").write_bytes(dicom(ct()))
    (source / "secret.dcm").write_bytes(dicom(ct()))
    (source / "secret.dcm").chmod(0)
    (source / "closed").chmod(0)
    prefix = UNPRIVILEGED if os.geteuid() == 0 else []
    if prefix and subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("root that cannot give up its rights")
    result = ran(source, tmp_path / "out", prefix=prefix)
    (source / "closed").chmod(0o700)
    assert result.codes() == ["unreadable_folder", "written", "unreadable_file"]
    assert result.code == 1


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    out: Path
    children: list[psutil.Process]


def started(tmp_path: Path) -> Running:
    """A run that would take minutes, with some images behind it."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    large = source / "0"
    large.write_bytes(dicom(ct(shape=(2000, 2000))))
    for number in range(1, 2000):
        (source / str(number)).hardlink_to(large)
    process = subprocess.Popen(
        [*COMMAND, source, out, "--workers", "2"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.png"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return Running(process, out, psutil.Process(process.pid).children(recursive=True))


def gone(children: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(children, timeout=10)
    return not alive


@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C", "kill -INT"])
def test_an_interrupt_leaves_whole_files_their_report_and_no_process(
    tmp_path: Path, to_all: bool
) -> None:
    run = started(tmp_path)
    assert len(run.children) >= 3
    if to_all:  # as a terminal does
        os.killpg(run.process.pid, signal.SIGINT)
    else:
        run.process.send_signal(signal.SIGINT)
    said, complaints = run.process.communicate(timeout=20)
    assert run.process.returncode == 130
    assert complaints == ""
    assert gone(run.children)
    rows = rows_of(run.out / "report.csv")
    assert f"{len(rows)} of 2000 files" in said
    names = {path.name for path in run.out.iterdir()}
    assert names == {row["output"] for row in rows} | {"report.csv"}
    for row in rows:
        data = (run.out / row["output"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]


def test_a_kill_leaves_no_process_and_no_half_file_under_a_final_name(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.process.kill()
    run.process.communicate(timeout=20)
    assert gone(run.children)
    for path in run.out.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    assert (run.out / PARTIAL).is_dir()  # which --overwrite removes
