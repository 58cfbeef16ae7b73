"""``llava-med deidentify``: a folder of DICOM, PNG and JPEG files as bare PNGs, with a report."""
