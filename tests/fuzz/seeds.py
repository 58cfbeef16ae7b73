"""What mutation starts from: every kind of file, URL and body that intake takes, small."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames

from serve.imaging.decoders import DECODED_BY
from tests.dicoms import PATIENT, dicom, written

LARGEST = 1 << 16  # bytes of an input

_GREY = np.arange(1024, dtype=np.uint16).reshape(32, 32)
_BYTES = (np.arange(256, dtype=np.uint8)).reshape(16, 16)
_COLOURS = np.stack([_BYTES, _BYTES.T, _BYTES[::-1]], axis=-1)
_WINDOW: dict[str, Any] = {"WindowCenter": [40, -600], "WindowWidth": [400, 1500]}
_12_BITS: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}


def images() -> dict[str, bytes]:
    """Files by a name that says what they are."""
    return {**_dicoms(), **_pydicoms(), **_rasters()}


def codestreams() -> dict[uid.UID, list[bytes]]:
    """Compressed frames by transfer syntax: what the native decoders see."""
    found: dict[uid.UID, list[bytes]] = {}
    for data in _dicoms().values():
        dataset = _read(data)
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated:
            frames = generate_frames(dataset.PixelData, number_of_frames=1)
            found.setdefault(syntax, []).append(next(frames))
    return found


def _read(data: bytes) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(data))


def _dicoms() -> dict[str, bytes]:
    found = {}
    for syntax in DECODED_BY:
        name = syntax.keyword
        if syntax != uid.JPEGBaseline8Bit:
            found[f"{name}-12"] = dicom(_GREY, syntax, **_12_BITS, **_WINDOW, RescaleSlope=2)
        if syntax != uid.JPEGExtended12Bit:
            found[f"{name}-8"] = dicom(_BYTES, syntax, Modality="US", PixelSpacing=[2.0, 1.0])
            found[f"{name}-rgb"] = dicom(_COLOURS, syntax, Modality="XC")
    frames = np.stack([_BYTES[..., None]] * 3)
    table = _lut(0, 12, np.arange(1024, dtype=np.uint16))
    found["frames"] = dicom(
        frames, RepresentativeFrameNumber=2,
        SharedFunctionalGroupsSequence=[
            _group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=1),
        ],
        PerFrameFunctionalGroupsSequence=[
            _group("FrameVOILUTSequence", WindowCenter=n, WindowWidth=9) for n in range(3)
        ],
    )  # fmt: skip
    found["frames-rle"] = dicom(frames, uid.RLELossless)
    found["luts"] = dicom(
        _GREY, VOILUTSequence=[table], ModalityLUTSequence=[table], PixelPaddingValue=5
    )
    found["sigmoid"] = dicom(
        _GREY.astype(np.int16), PhotometricInterpretation="MONOCHROME1", VOILUTFunction="SIGMOID",
        PresentationLUTShape="INVERSE", PixelPaddingValue=-5, PixelPaddingRangeLimit=7, **_WINDOW,
    )  # fmt: skip
    found["palette"] = dicom(_BYTES, PhotometricInterpretation="PALETTE COLOR", **_palette())
    found["32-bits"] = dicom(_GREY.astype(np.uint32), Modality="PT")
    region = Dataset()
    for name, value in (("MinX0", 1), ("MinY0", 1), ("MaxX1", 12), ("MaxY1", 12)):
        setattr(region, f"RegionLocation{name}", value)
    found["ultrasound"] = dicom(_BYTES, Modality="US", SequenceOfUltrasoundRegions=[region])
    for name, kind in (("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")):
        dataset = _read(dicom(_GREY, BitsAllocated=8 * int(kind[1])))
        del dataset.PixelData
        setattr(dataset, name, _GREY.astype(kind).tobytes())
        found[name] = written(dataset)
    return found


def _lut(first: int, bits: int, entries: np.ndarray) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries.tolist())
    return item


def _group(name: str, **attributes: Any) -> Dataset:
    groups, item = Dataset(), Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    setattr(groups, name, [item])
    return groups


def _palette() -> dict[str, Any]:
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    data = (np.arange(256, dtype=np.uint16) << 8).tobytes()
    return {f"{name}Descriptor": [256, 0, 16] for name in names} | {
        f"{name}Data": data for name in names
    }


def _pydicoms() -> dict[str, bytes]:
    """The files that pydicom ships, broken ones among them."""
    folder = Path(str(get_testdata_file("CT_small.dcm"))).parent
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.dcm"))}
    return {name: data for name, data in files.items() if len(data) <= LARGEST}


def _rasters() -> dict[str, bytes]:
    found = {}
    colours = Image.fromarray(_COLOURS)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = PATIENT
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", PATIENT)
    info.add_text("Packed", PATIENT * 9, zip=True)
    info.add_itxt("XML:com.adobe.xmp", f"<x tiff:Orientation='3'>{PATIENT}</x>", zip=True)
    info.add_text("Raw profile type exif", "\nexif\n8\n4578696600004d4d\n")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.fromarray(_GREY) if mode == "I;16" else colours.convert(mode)
        found[f"png-{mode}"] = _saved(image, "PNG", pnginfo=info, exif=exif.tobytes())
    found["png-animated"] = _saved(
        colours, "PNG", save_all=True, append_images=[colours.rotate(90)], default_image=True
    )
    transparent = colours.convert("P")
    found["png-transparent"] = _saved(transparent, "PNG", transparency=bytes(range(256)),
                                      icc_profile=b"icc" * 50, bits=8)  # fmt: skip
    found["png-interlaced"] = _interlaced()
    for mode in ("L", "RGB", "CMYK"):
        found[f"jpeg-{mode}"] = _saved(colours.convert(mode), "JPEG", exif=exif.tobytes())
        found[f"jpeg-{mode}-progressive"] = _saved(
            colours.convert(mode), "JPEG", progressive=True, comment=PATIENT.encode(), xmp=b"<x/>"
        )
    found["jpeg-subsampled"] = _saved(colours, "JPEG", subsampling=2, restart_marker_blocks=1)
    found["jpeg-mpo"] = _saved(colours, "MPO", save_all=True, append_images=[colours])
    return found


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _interlaced() -> bytes:
    """8 x 8 of grey in Adam7's seven passes; Pillow writes none."""
    rows = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    data = b"".join((b"\0" + bytes(range(width))) * height for width, height in rows)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, value)
        for kind, value in ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    )


def chunk(kind: bytes, value: bytes) -> bytes:
    """A PNG chunk with a checksum that is right."""
    return (
        struct.pack(">I", len(value)) + kind + value + struct.pack(">I", zlib.crc32(kind + value))
    )


def urls() -> dict[str, bytes]:
    """Image URLs of every kind."""
    picture = base64.b64encode(_rasters()["png-L"][:90]).decode()
    texts = (
        f"data:image/png;base64,{picture}",
        f"data:image/jpeg;role=prior;base64,{picture}",
        "data:application/dicom;center=-600;width=1500;frame=3;base64,AAAA",
        "data:application/dicom;window=lung;base64,AA==",
        "dicomweb:1.2.3/1.2.4/1.2.5",
        "dicomweb:1.2.3/1.2.4/1.2.5/frames/7?window=2&role=current",
        "dicomweb:1.2/3.4/5.6?center=4e1&width=400",
        "https://images.example/one.png?token=abc#x",
        "http://images.example/one.png",
        "file:///etc/passwd",
    )
    return {f"url-{number}": text.encode() for number, text in enumerate(texts)}


def bodies() -> dict[str, bytes]:
    """Request bodies with images in every place, some of them long enough to be taken out."""
    long = base64.b64encode(random.Random(4).randbytes(3900)).decode()
    data_url = f"data:image/png;base64,{long}"
    image = {"type": "image_url", "image_url": {"url": data_url}}
    remote = {"type": "image_url", "image_url": {"url": "https://images.example/1.png"}}
    text = {"type": "text", "text": "What is it?"}
    look_alike = {"type": "text", "text": data_url}
    contents = ([image, text], [image, image], [remote, look_alike], [image, look_alike], [text])
    messages = [{"role": "user", "content": content} for content in contents]
    found: list[dict[str, Any]] = [{"model": "m", "messages": [one]} for one in messages]
    found.append({"model": "m", "messages": messages, "metadata": {"a": data_url}, "n": 2})
    found.append({"model": data_url, "messages": [{"role": "user", "content": data_url}]})
    return {f"body-{number}": json.dumps(body).encode() for number, body in enumerate(found)}
