"""Files behind URLs: `gs://` and `s3://`, through fsspec, fetched into a cache on this host.

Whatever takes a path from the user hands it to `local`, and reads what comes back. A URL is listed each time it is
asked for; what its files are now (size, and what the store says of their version) names a folder of the cache, so that
a changed file is fetched anew, and all that is read of one listing belongs together.
"""

import errno
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from jaxalign.errors import RemoteError

# Scheme -> the extra that brings its driver; memory, which is fsspec's own and ends with the process, is for tests.
EXTRAS = {"gs": "gcs", "s3": "s3", "memory": ""}
# Keys that name what is written.
WRITTEN = ("output", "folder", "cache", "reference_cache")
LISTING = "listing.json"
# What a store says of a file by which two of its versions differ; the first that it has counts.
VERSIONS = ("generation", "etag", "ETag", "md5Hash", "created", "mtime", "LastModified")
THREADS = 8
# Bytes from which on a line says that something is fetched.
WORTH_A_LINE = 64 * 2**20

Files = dict[str, list[Any]]


def scheme(path: str | os.PathLike) -> str:
    """What stands before :// in a URL; empty for any other path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", os.fspath(path))
    return match[1].lower() if match else ""


def check_url(url: str) -> None:
    """A URL is one that can be read and written here, and its driver is installed.

    Raises:
      RemoteError: it is not, naming what is expected.
    """
    _opened(url)


def refuse(config: Mapping[str, Any], prefix: str = "") -> None:
    """No key but run.output names a URL to write to.

    Args:
      config: of a command, as nested dicts.
      prefix: of the names of its keys.

    Raises:
      RemoteError: one does, naming it.
    """
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            refuse(value, f"{key}.")
        elif name in WRITTEN and key != "run.output" and isinstance(value, str) and scheme(value):
            raise RemoteError(f"{key}: {value}: expected a path here; only run.output may be a URL")


def cache_home() -> Path:
    """The folder of all caches of jaxalign: $JAXALIGN_CACHE, else jaxalign in the user's cache folder."""
    ours, common = os.environ.get("JAXALIGN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(ours) if ours else Path(common or "~/.cache") / "jaxalign"


def local(path: str | os.PathLike, leave: Sequence[str] = ()) -> str:
    """A path on this host for what the user named, fetched where it is not.

    A file is there whole or not at all, and is fetched once however many processes of the host ask for it.

    Args:
      path: a gs:// or s3:// URL of a file or folder, a file:// URL, or any other path or name, which is given back as
        it is. What `local` gave back before is completed by the files that were left then.
      leave: patterns (as of fnmatch) of files that are not wanted; names begin below the folder that was listed.

    Raises:
      RemoteError: there is no such file, it cannot be read, or the scheme or its driver is not known here.
    """
    path = os.fspath(path)
    if not scheme(path):
        if (found := _entry_of(path)) is not None:
            _fetch(*found, leave)
        return path
    if scheme(path) == "file":
        return local_file(path)
    check_url(path)
    url = path.rstrip("/")
    files = listing(url)
    if not files:
        raise RemoteError(f"{url}: no such file or folder")
    for name in files:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise RemoteError(f"{url}: the name of {name!r} leads out of its folder")
    entry = _root() / short_hash([url, files])
    entry.mkdir(parents=True, exist_ok=True)
    if not (entry / LISTING).is_file():
        replace_file(entry / LISTING, json.dumps({"url": url, "files": files}).encode())
    place = entry / _base(url)
    if "" not in files:
        place.mkdir(exist_ok=True)
    _fetch(entry, "", leave)
    return str(place)


def as_named(path: str) -> str:
    """The URL that a path of the cache was fetched from, and any other path as it is."""
    if not path or scheme(path) or (found := _entry_of(path)) is None:
        return path
    entry, below = found
    about = json.loads((entry / LISTING).read_text())
    there = not below or any(name == below or name.startswith(f"{below}/") for name in about["files"])
    return f"{about['url']}/{below}".rstrip("/") if there else path


def local_file(url: str) -> str:
    """The path that a file:// URL names.

    Raises:
      RemoteError: it names another host, or no whole path.
    """
    path = unquote(url[len("file://") :])
    if not path.startswith("/"):
        raise RemoteError(f"{url}: expected file:///, and a path from the root")
    return path


# --- a store ----------------------------------------------------------------------------------


def _opened(url: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it."""
    name = scheme(url)
    if name not in EXTRAS:
        raise RemoteError(f"{url}: unknown scheme {name}://; expected gs://, s3://, file:// or a path here")
    if not url[len(name) + 3 :].strip("/"):
        raise RemoteError(f"{url}: expected {name}://BUCKET/PATH")
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError:
        raise RemoteError(
            f"{url}: the driver of {name}:// is not installed; pip install 'jaxalign[{EXTRAS[name]}]'"
        ) from None
    except Exception as error:
        raise refused(url, "opened", error) from error


def refused(url: str, how: str, error: BaseException) -> RemoteError:
    """What a store, or the disk, says in one line."""
    if isinstance(error, FileNotFoundError):
        return RemoteError(f"{url}: no such file or folder")
    text = str(error).strip()
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        text = f"no space left on the disk of the cache, {_root()}"
    return RemoteError(f"{url}: cannot be {how} ({text.splitlines()[0] if text else type(error).__name__})")


def listing(url: str) -> Files:
    """Name below the URL -> [bytes, *version], of all its files; the name of a file itself is empty.

    Nothing where nothing is there.

    Raises:
      RemoteError: it cannot be listed.
    """
    store, root = _opened(url)
    try:
        store.invalidate_cache()
        found = store.find(root, detail=True)
        if list(found) == [root]:
            return {"": _version(found[root])}
        # Stores keep folders as empty files of which the names end in a slash.
        return {
            name.removeprefix(root).lstrip("/"): _version(about)
            for name, about in found.items()
            if about["type"] == "file" and not name.endswith("/")
        }
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise refused(url, "read", error) from error


def _version(about: Mapping[str, Any]) -> list[Any]:
    return [int(about["size"]), next((str(about[name]) for name in VERSIONS if name in about), "")]


def read_bytes(url: str) -> bytes | None:
    """A small file's bytes as they are now; None where it is not there.

    Raises:
      RemoteError: it cannot be read.
    """
    store, path = _opened(url)
    try:
        store.invalidate_cache()
        return store.cat_file(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise refused(url, "read", error) from error


def write_bytes(url: str, content: bytes) -> None:
    """Writes a small file, whole or not at all.

    Raises:
      RemoteError: it cannot be written.
    """
    store, path = _opened(url)
    try:
        store.pipe_file(path, content)
    except Exception as error:
        raise refused(url, "written", error) from error


def upload(file: Path, url: str) -> None:
    """Copies a file here to a URL, where it appears whole or not at all.

    Raises:
      FileNotFoundError: the file is gone.
      RemoteError: it cannot be written.
    """
    store, path = _opened(url)
    try:
        store.put_file(str(file), path)
    except Exception as error:
        if not file.exists():
            raise FileNotFoundError(str(file)) from None
        raise refused(url, "written", error) from error


def download(url: str, file: Path, version: Sequence[Any]) -> None:
    """Copies a file of a listing to a place here, where it appears whole or not at all.

    Raises:
      RemoteError: it cannot be read, or is not the one that was listed any more.
    """
    store, path = _opened(url)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:100]}.")
        os.close(handle)
        try:
            store.get_file(path, temporary)
            if os.path.getsize(temporary) != version[0] or listing(url).get("") != list(version):
                raise RemoteError(
                    f"{url}: the file changed while it was read; start again once it is complete"
                )
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except RemoteError:
        raise
    except Exception as error:
        raise refused(url, "read", error) from error


def remove(url: str) -> None:
    """Removes a file; one that is gone is no error.

    Raises:
      RemoteError: it cannot be removed.
    """
    store, path = _opened(url)
    try:
        store.rm_file(path)
    except FileNotFoundError:
        pass
    except Exception as error:
        raise refused(url, "removed", error) from error


def each(function: Any, *items: Sequence[Any]) -> None:
    """Calls a function with each of some items, several at once; raises what the first of them raises."""
    with ThreadPoolExecutor(THREADS) as pool:
        done = [pool.submit(function, *item) for item in zip(*items, strict=True)]
        try:
            for one in done:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# --- the cache --------------------------------------------------------------------------------


def _root() -> Path:
    return (cache_home().expanduser() / "remote").resolve()


def _base(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def _entry_of(path: str) -> tuple[Path, str] | None:
    """The folder of the cache that a path lies in, and its name below what was listed there."""
    root, whole = _root(), Path(path).expanduser().absolute()
    if not whole.is_relative_to(root) or len(parts := whole.relative_to(root).parts) < 2:
        return None
    return (root / parts[0], "/".join(parts[2:])) if (root / parts[0] / LISTING).is_file() else None


def _fetch(entry: Path, below: str, leave: Sequence[str]) -> None:
    """Fetches what is missing of a listing, or of a folder in it."""
    from filelock import FileLock

    about = json.loads((entry / LISTING).read_text())
    url, files = about["url"], about["files"]
    place = entry / _base(url)

    def missing() -> list[str]:
        return [
            name
            for name in files
            if (not below or name == below or name.startswith(f"{below}/"))
            and not any(fnmatchcase(name, pattern) for pattern in leave)
            and not (place / name).exists()
        ]

    if not missing():
        return
    with FileLock(entry / ".lock"):
        names = missing()  # another process may have fetched them meanwhile
        size = sum(files[name][0] for name in names)
        if size >= WORTH_A_LINE:
            say(f"fetching {url}: {len(names)} files, {size / 2**30:.2f} GiB")
        urls = [f"{url}/{name}" if name else url for name in names]
        each(download, urls, [place / name for name in names], [files[name] for name in names])


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)


def short_hash(value: Any) -> str:
    """A name for a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def replace_file(file: Path, content: bytes) -> None:
    """Writes a file here, whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    os.replace(temporary, file)
