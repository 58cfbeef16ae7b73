"""DICOM files made for tests: real Part 10 bytes, in every transfer syntax, of drawn images."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder

PATIENT = "Planted^Person"  # what must never be seen again
PATIENT_ID = "MRN-7731904"
STUDY_DATE = "19410703"
ROOT = "1.2.826.0.1.3680043.8.498.77319"


def dicom(
    pixels: np.ndarray, syntax: uid.UID = uid.ExplicitVRLittleEndian, **attributes: Any
) -> bytes:
    """A file of one frame, (rows, columns) or (rows, columns, 3), or of several, one axis more.

    Attributes are by keyword; None removes one. Several frames of grey have four dimensions, with
    one sample: (frames, rows, columns, 1).
    """
    dataset = _dataset(pixels, syntax)
    for keyword, value in attributes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    frames = list(pixels) if pixels.ndim == 4 else [pixels]
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    if syntax.is_encapsulated:
        dataset.PixelData = encapsulate([_compressed(frame, syntax, dataset) for frame in frames])
    else:
        dtype = pixels.dtype.newbyteorder(order)
        data = b"".join(np.ascontiguousarray(frame, dtype=dtype).tobytes() for frame in frames)
        dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if syntax.is_encapsulated or pixels.itemsize == 1 else "OW"
    return written(dataset)


def radiograph(
    grey: np.ndarray, syntax: uid.UID = uid.ExplicitVRLittleEndian, **attributes: Any
) -> bytes:
    """An 8-bit picture as a radiograph of 12 bits, whose window takes it back to the same 8."""
    window = {"WindowCenter": 2040, "WindowWidth": 4080, "VOILUTFunction": "LINEAR_EXACT"}
    bits = {"Modality": "DX", "BitsStored": 12, "HighBit": 11}
    return dicom(grey.astype(np.uint16) << 4, syntax, **bits | window | attributes)


def written(dataset: Dataset) -> bytes:
    """A dataset as the bytes of a file."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def identified(dataset: Dataset) -> None:
    """Gives a dataset what identifies a patient, at the top, nested, and in private elements."""
    dataset.PatientName = PATIENT
    dataset.PatientID = PATIENT_ID
    dataset.PatientBirthDate = STUDY_DATE
    dataset.StudyDate = STUDY_DATE
    dataset.StudyInstanceUID = f"{ROOT}.1"
    dataset.SeriesInstanceUID = f"{ROOT}.2"
    dataset.InstitutionName = PATIENT
    dataset.StudyDescription = f"{PATIENT} {PATIENT_ID}"
    item = Dataset()
    item.PatientID = PATIENT_ID
    item.PatientName = PATIENT
    dataset.OtherPatientIDsSequence = [item]
    block = dataset.private_block(0x0011, "ACME 1.1", create=True)
    block.add_new(0x01, "LO", PATIENT)


def _dataset(pixels: np.ndarray, syntax: uid.UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID(f"{ROOT}.3")
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    dataset.SOPClassUID = uid.CTImageStorage
    dataset.SOPInstanceUID = f"{ROOT}.3"
    dataset.Modality = "CT"
    identified(dataset)
    colour = pixels.shape[-1] == 3
    shape = pixels.shape[:-1] if pixels.ndim == 4 or colour else pixels.shape
    dataset.Rows, dataset.Columns = shape[-2:]
    if pixels.ndim == 4:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    return dataset


def _compressed(frame: np.ndarray, syntax: uid.UID, dataset: Dataset) -> bytes:
    frame = frame[..., 0] if frame.ndim == 3 and frame.shape[-1] == 1 else frame
    bits = int(dataset.BitsStored)
    if syntax not in (*uid.JPEG2000TransferSyntaxes, uid.RLELossless) and frame.dtype.kind == "i":
        # JPEG and JPEG-LS know no sign: the stored bits go in as they are.
        frame = frame.view(f"u{frame.itemsize}") & ((1 << bits) - 1)
    data: bytes
    match syntax:
        case uid.RLELossless:
            # Not dataset.compress: it would write every frame anew.
            options = {
                "rows": frame.shape[0], "columns": frame.shape[1],
                "samples_per_pixel": 3 if frame.ndim == 3 else 1,
                "bits_allocated": 8 * frame.dtype.itemsize, "bits_stored": bits,
                "pixel_representation": int(frame.dtype.kind == "i"), "number_of_frames": 1,
                "photometric_interpretation": dataset.PhotometricInterpretation,
                "planar_configuration": 0,
            }  # fmt: skip
            data = RLELosslessEncoder.encode(frame.tobytes(), index=0, **options)
        case uid.JPEGBaseline8Bit:
            data = imagecodecs.jpeg8_encode(frame, level=95)
        case uid.JPEGExtended12Bit:
            data = imagecodecs.jpeg8_encode(frame, level=95, bitspersample=12)
        case uid.JPEGLossless | uid.JPEGLosslessSV1:
            data = imagecodecs.jpeg8_encode(
                frame, lossless=True, predictor=1, bitspersample=bits if bits != 8 else None
            )
        case uid.JPEGLSLossless | uid.JPEGLSNearLossless:
            near = 2 if syntax == uid.JPEGLSNearLossless else 0
            data = imagecodecs.jpegls_encode(frame, level=near)
        case uid.JPEG2000Lossless | uid.JPEG2000:
            lossless = syntax == uid.JPEG2000Lossless
            data = imagecodecs.jpeg2k_encode(
                frame, level=0 if lossless else 60, codecformat="J2K", reversible=lossless,
                bitspersample=bits, mct=False,
            )  # fmt: skip
        case uid.HTJ2KLossless | uid.HTJ2KLosslessRPCL | uid.HTJ2K:
            data = imagecodecs.htj2k_encode(frame)
        case _:
            raise ValueError(f"no encoder for {syntax}")
    return data
