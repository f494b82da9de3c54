"""Where the files of the data sets come from."""

import logging
import os
from pathlib import Path

from d2lfast._folders import cache_folder
from d2lfast.data.download import Remote, fetch

_log = logging.getLogger(__name__)

DATA_URL = "http://d2l-data.s3-accelerate.amazonaws.com/"
# File name to SHA-1 of the book's data sets.
SHA1 = {
    "timemachine.txt": "090b5e7e70c295757f55df93cb0a180b9691891a",
    "fra-eng.zip": "94646ad1522d915e7b0f9296181140edcf86a4f5",
    "kaggle_house_pred_train.csv": "585e9cc93e70b39160e7921475f9bcd7d31219ce",
    "kaggle_house_pred_test.csv": "fa19780a7b011d9b009e8bff8e99922a8ee2eb90",
    "airfoil_self_noise.dat": "76e5be1548fd8222e5074cf0faae75edff8cf93f",
}


def data_folder(root: str | Path | None = None) -> Path | None:
    """The folder `root`, else the one named by D2LFAST_DATA, else None."""
    folder = root or os.environ.get("D2LFAST_DATA")
    return Path(folder) if folder else None


def find_file(name: str, subfolder: str, root: str | Path | None = None) -> Path | None:
    """The file in the data folder or its subfolder, if it is there."""
    folder = data_folder(root)
    if folder is None:
        return None
    return next((path for path in (folder / subfolder / name, folder / name) if path.is_file()), None)


def book_file(name: str, subfolder: str, root: str | Path | None = None, download: bool = True) -> Path:
    """Return the path of one of the book's files: in the data folder, downloaded before, or downloaded now.

    A file in the data folder is taken as it is; a download is checked, and a damaged one fetched again.

    Raises:
        OSError: it is not there and cannot be downloaded; the message says where to put it.
    """
    found = find_file(name, subfolder, root)
    if found is not None:
        return found
    path = cache_folder() / subfolder / name
    remote = Remote(sha1=SHA1[name])
    if remote.matches(path):
        return path
    if not download:
        raise FileNotFoundError(f"{name} was not found; put it there: {path}")
    if path.exists():
        _log.warning("%s is damaged and is downloaded again", path)
    fetch([DATA_URL + name], path, remote)
    return path
