"""From the `uri` of a job file to inputs: folders, files and globs, local and on S3.

Streamed and sorted by URI; each file is looked at once (its stat or its listing entry). A place may
be written in any way (relative, `file://`, trailing slash): it ends in the same URIs, roots and
keys. Links to files and folders are followed under the name of the link, but never into a folder
that they lie in. Hidden names (a leading dot, in any folder below the root) are passed over unless
the pattern itself writes the dot. One URI that several patterns match is listed once.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from tokenmill.schemas.errors import SourceError, StoreError, StoreUnavailable
from tokenmill.schemas.job import Source as SourceConfig
from tokenmill.schemas.work import Input
from tokenmill.store.access import Access
from tokenmill.workers.sources.bounded import UNSUPPORTED
from tokenmill.workers.sources.globs import compile_globs, has_magic, split_fixed
from tokenmill.workers.sources.objects import as_source_error, content_hash, local_version

_log = logging.getLogger(__name__)

Filter = Callable[[str], bool]
Found = tuple[str, int, str]  # path below the root, bytes, version


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """One entry of `uri`: everything below `root`, or what `pattern` matches there, or one file."""

    written: str
    root: str
    name: str = ""
    pattern: str = ""

    @property
    def local(self) -> bool:
        return "://" not in self.root


def list_inputs(
    config: SourceConfig, *, suffixes: tuple[str, ...] = (), compressible: bool = False
) -> Iterator[Input]:
    """Inputs sorted by URI. Raises SourceError, StoreUnavailable.

    suffixes: lower-case endings that a folder is searched for, unless `include` is given.
    compressible: refuse compressions that we do not read, rather than read them as text.
    """
    listings = [_inputs(place(uri), config, suffixes) for uri in config.uris]
    if not listings:
        raise SourceError("the source names no place", remedy="give source.uri a folder or a file")
    previous = ""
    for input_ in heapq.merge(*listings, key=lambda found: found.uri):
        if input_.uri == previous:
            continue
        previous = input_.uri
        if compressible and input_.uri.lower().endswith(UNSUPPORTED):
            raise SourceError(
                f"{input_.uri}: this compression is not read",
                remedy="compress it again with gzip or zstd, or leave it out with source.exclude",
            )
        yield identified(input_, config)


def identified(input_: Input, config: SourceConfig) -> Input:
    """`input_` with what the identity mode lets into its id."""
    if config.identity == "version":
        return input_
    if config.identity == "path":
        return replace(input_, identity="")
    return replace(input_, identity=content_hash(input_.uri, input_.version, input_.root))


def place(uri: str) -> _Place:
    """What one entry of `uri` names. Looks at the disk or the bucket, at one name only."""
    if "://" in uri and not uri.startswith("file://"):
        return _remote_place(uri)
    path = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
    # not Path.resolve: links are kept, so that the same words name the same samples for ever
    path = os.path.abspath(os.path.expanduser(path or "/"))  # noqa: PTH100, PTH111 - see above
    path = "/" + path.lstrip("/")  # POSIX leaves two leading slashes alone
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - strings all the way: paths may be odd
    except (FileNotFoundError, NotADirectoryError):
        if has_magic(path):
            root, pattern = split_fixed(path)
            return _Place(written=uri, root=root or "/", pattern=pattern)
        raise _missing(path) from None
    except OSError as error:
        raise _refused(path, error) from None
    except ValueError as error:  # a zero byte
        raise SourceError(f"{path!r} is no path", where="source.uri", why=str(error)) from None
    if stat.S_ISDIR(mode):
        return _Place(written=uri, root=path)
    if not stat.S_ISREG(mode):
        raise SourceError(f"{path} is neither a file nor a folder", where="source.uri")
    root, _, name = path.rpartition("/")
    return _Place(written=uri, root=root or "/", name=name)


def _remote_place(uri: str) -> _Place:
    # by hand: to urlsplit, the `?` of a glob begins a query
    scheme, _, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    bucket = f"{scheme.lower().replace('s3a', 's3')}://{host.rpartition('@')[2]}"
    key = posixpath.normpath(path).strip("/") if path.strip("/") else ""
    folder = path.endswith("/") or not key
    if has_magic(key):
        root, pattern = split_fixed(key)
        return _Place(written=uri, root=f"{bucket}/{root}".rstrip("/"), pattern=pattern)
    parent, _, name = key.rpartition("/")
    above = f"{bucket}/{parent}".rstrip("/")
    if not folder and _is_object(above, name):
        return _Place(written=uri, root=above, name=name)
    return _Place(written=uri, root=f"{bucket}/{key}".rstrip("/"))


def _is_object(root: str, name: str) -> bool:
    try:
        Access(root, any_names=True).stat(name)
    except FileNotFoundError:
        return False
    except StoreUnavailable:
        raise
    except StoreError as error:
        raise as_source_error(f"{root}/{name}", error) from error
    return True


def _inputs(place: _Place, config: SourceConfig, suffixes: tuple[str, ...]) -> Iterator[Input]:
    wanted = _filter(place, config, suffixes)
    base = place.root.rstrip("/")
    empty = True
    for path, size, version in _found(place, wanted):
        empty = False
        uri = f"{base}/{path}"
        if not uri.isascii():
            _check_unicode(uri)
        yield Input(uri=uri, version=version, size=size, root=place.root)
    if empty:
        raise _nothing(place, config, suffixes)


def _filter(place: _Place, config: SourceConfig, suffixes: tuple[str, ...]) -> Filter:
    pattern = compile_globs([place.pattern] if place.pattern else [])
    exclude = compile_globs(config.exclude)
    if place.name:
        return lambda path: exclude is None or not exclude.fullmatch(path)
    include = compile_globs(config.include)
    endings = () if place.pattern or include else suffixes
    hidden_too = "/." in f"/{place.pattern}"

    def wanted(path: str) -> bool:
        if not hidden_too and (path[0] == "." or "/." in path):
            return False
        return (
            (not endings or path.lower().endswith(endings))
            and (pattern is None or pattern.fullmatch(path) is not None)
            and (include is None or include.fullmatch(path) is not None)
            and (exclude is None or exclude.fullmatch(path) is None)
        )

    return wanted


def _found(place: _Place, wanted: Filter) -> Iterator[Found]:
    if place.local:
        return _one_local(place, wanted) if place.name else _below(place, wanted)
    return _remote(place, wanted)


def _remote(place: _Place, wanted: Filter) -> Iterator[Found]:
    try:
        access = Access(place.root, any_names=True)
        listed = [access.stat(place.name)] if place.name else access.list()
        for item in listed:
            if wanted(item.path):
                _check_steps(place.root, item.path)
                yield item.path, item.size, item.version
    except StoreUnavailable:
        raise
    except StoreError as error:
        raise as_source_error(place.root, error) from error


def _one_local(place: _Place, wanted: Filter) -> Iterator[Found]:
    path = f"{place.root.rstrip('/')}/{place.name}"
    try:
        status = os.stat(path)  # noqa: PTH116 - as above
    except OSError as error:
        raise _refused(path, error) from None
    if wanted(place.name):
        yield place.name, status.st_size, local_version(status)


def _below(place: _Place, wanted: Filter) -> Iterator[Found]:
    """Regular files below a local folder in the order of their paths."""
    # without `**` a pattern cannot match deeper than it is long
    depth = None if "**" in place.pattern or not place.pattern else place.pattern.count("/")
    hidden_too = "/." in f"/{place.pattern}"
    stack = [_folder(place.root, "", ())]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            continue
        path, entry, above = step
        if path.endswith("/"):
            if (hidden_too or entry.name[0] != ".") and (depth is None or len(stack) <= depth):
                stack.append(_folder(entry.path, path, above))
        elif wanted(path):
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):
                    _log.warning("%s is a dangling link, or gone: passed over", entry.path)
                    continue
                raise _refused(entry.path, error) from None
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size, local_version(status)


_Step = tuple[str, "os.DirEntry[str]", tuple[tuple[int, int], ...]]


def _folder(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[_Step]:
    """(path, entry, the folders above) of one folder; the paths of folders end in a slash."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - as above
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            named = [(_name(entry), entry) for entry in entries]
    except FileNotFoundError:
        if prefix:
            return  # removed since its parent was read
        raise _missing(folder) from None
    except OSError as error:
        raise _refused(folder, error) from None
    # with the slash, so that "a.txt" < "a/b" < "a0": the order of whole paths
    named.sort(key=lambda pair: pair[0])
    for name, entry in named:
        yield prefix + name, entry, (*above, here)


def _name(entry: os.DirEntry[str]) -> str:
    try:
        return f"{entry.name}/" if entry.is_dir() else entry.name
    except OSError:  # a link to itself, or into what may not be read: its own stat will say
        return entry.name


def _missing(path: str) -> SourceError:
    return SourceError(
        f"{path} does not exist",
        where="source.uri",
        remedy="check the spelling; relative paths start at the job file's folder",
    )


def _refused(path: str, error: OSError) -> SourceError:
    return SourceError(
        f"{path} cannot be listed",
        where="source.uri",
        why=error.strerror or str(error),
        remedy="give read permission, or leave it out with source.exclude",
    )


def _check_steps(root: str, path: str) -> None:
    """Keys of a bucket may hold what is no path below a folder."""
    if path.startswith("/") or ".." in path.split("/"):
        raise SourceError(
            f"{root}/{path}: an object of such a name cannot be addressed below {root}",
            remedy="copy it to another name, or leave it out with source.exclude",
        )


def _check_unicode(uri: str) -> None:
    try:
        uri.encode()
    except UnicodeEncodeError:
        shown = uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise SourceError(
            f"{shown}: this file's name is not UTF-8",
            why="keys and URIs are text wherever they are read",
            remedy="rename it, or leave it out with source.exclude",
        ) from None


def _nothing(place: _Place, config: SourceConfig, suffixes: tuple[str, ...]) -> SourceError:
    shown = f"{place.root}/{place.pattern}" if place.pattern else place.root
    if place.pattern:
        remedy = "`*` stays within a folder, `**/` goes below; hidden files are passed over"
    elif config.include:
        remedy = f"include is {config.include}: write `**/*.txt` to match in every folder"
    elif suffixes:
        remedy = f"a folder is searched for {', '.join(suffixes)}: give a glob for other names"
    else:
        remedy = "check the spelling; hidden files are passed over"
    return SourceError(f"{shown} matches no file", where="source.uri", remedy=remedy)
