"""The book's data files by name (5.7)."""

import tarfile
import zipfile
from pathlib import Path

from d2lfast.data.download import Remote, fetch
from d2lfast.data.files import DATA_URL, SHA1

__all__ = ["DATA_HUB", "DATA_URL", "download", "download_extract", "extract"]

# Name to address and SHA-1; programs may add their own.
DATA_HUB: dict[str, tuple[str, str]] = {
    name: (DATA_URL + file, SHA1[file])
    for name, file in (
        ("time_machine", "timemachine.txt"),
        ("fra-eng", "fra-eng.zip"),
        ("kaggle_house_train", "kaggle_house_pred_train.csv"),
        ("kaggle_house_test", "kaggle_house_pred_test.csv"),
        ("airfoil", "airfoil_self_noise.dat"),
    )
}


def download(url: str, folder: str = "../data", sha1_hash: str | None = None) -> str:
    """Download a file to `folder`, unless the right one is there, and return its path.

    Args:
        url: an address, or a name in `DATA_HUB`.
        folder: is made if it is not there.
        sha1_hash: of the file; without it, one of the same name that is there is taken as right.

    Raises:
        OSError: it cannot be downloaded; the message says where to put it by hand.
    """
    if not url.startswith(("http://", "https://", "file://")):
        if url not in DATA_HUB:
            raise ValueError(f"{url!r} is neither an address nor one of {', '.join(sorted(DATA_HUB))}")
        url, sha1_hash = DATA_HUB[url]
    path = Path(folder) / url.rsplit("/", 1)[-1]
    remote = Remote(sha1=sha1_hash or "")
    if not remote.matches(path):
        fetch([url], path, remote)
    return str(path)


def extract(filename: str, folder: str | None = None) -> None:
    """Unpack a zip or tar archive to `folder`, by default the one it lies in; nothing is written outside it.

    Raises:
        ValueError: it is neither, or damaged; the message names it.
    """
    base = folder or str(Path(filename).parent)
    try:
        if zipfile.is_zipfile(filename):
            with zipfile.ZipFile(filename) as archive:
                archive.extractall(base)
        elif tarfile.is_tarfile(filename):
            with tarfile.open(filename) as tar:
                tar.extractall(base, filter="data")
        else:
            raise ValueError(f"{filename} is neither a zip nor a tar archive")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{filename} is damaged ({error})") from error


def download_extract(name: str, folder: str | None = None) -> str:
    """Download and unpack an archive; return the path of `folder` in it, or of what the archive is called."""
    path = Path(download(name))
    extract(str(path))
    stem = path.name
    for suffix in (".zip", ".tar.gz", ".tgz", ".tar"):
        stem = stem.removesuffix(suffix)
    return str(path.parent / (folder or stem))
