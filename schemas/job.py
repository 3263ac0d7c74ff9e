"""The job file: what a person writes, as pydantic models. Parsing only, no I/O.

Unknown keys are errors that name the nearest known one; duplicate YAML keys are errors.
A job file is trusted like code.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenmill.schemas.errors import JobError

Format = Literal["text", "jsonl", "parquet", "webdataset", "files"]
MIB = 1 << 20
STARTER = "starter"  # a checkpoint: the one that comes with the tokenizer (a file: "./starter")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z", re.IGNORECASE)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Clips(_Model):
    """Cuts every video of a source into clips: each is a sample, for all streams alike.

    The clips of a source have the fields `video` (frames) and `audio` (the sound of the same span,
    absent where the file has none), and all other fields of the sample that they are cut from.
    """

    field: str
    """The source's field that holds the video file."""
    frames: int = Field(default=17, ge=1)
    """Frames of a clip, after resampling."""
    stride: int | None = Field(default=None, ge=1)
    """Frames from the beginning of one clip to that of the next; left out: `frames`."""
    fps: float | None = Field(default=None, gt=0, le=1000)
    """Frames per second, each the one shown then; left out: all frames as they are."""
    size: int | tuple[int, int] | None = None
    """Height and width (or one number) that frames are brought to; left out: as they are."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """crop: the shorter side is scaled, then the centre cut out; pad: all of it, on black."""
    bounds: Literal["fixed", "keyframe", "scene"] = "fixed"
    """keyframe, scene: cutting begins anew at each, so that no clip crosses one."""
    scene_threshold: float = Field(default=0.4, gt=0, le=1)
    """How unlike two frames' brightness and colour must be to be of two scenes (0 to 1)."""
    tail: Literal["drop", "keep"] = "drop"
    """What becomes of a last clip with fewer frames."""
    max_clips: int | None = Field(default=None, ge=1)
    """At most so many clips of one video."""
    reader: Literal["auto", "decord", "pyav"] = "auto"
    """Which library decodes."""

    @model_validator(mode="after")
    def _key_frames_are_known(self) -> Clips:
        if self.bounds == "keyframe" and self.reader == "decord":
            raise ValueError("`reader: decord` does not tell key frames: leave it at auto")
        return self


class Source(_Model):
    """Where samples come from."""

    uri: str | list[str]
    """A folder, a file or a glob (`*`, `**`, `?`), local or `s3://`; or a list of these."""
    format: Format
    """text: one sample per file; jsonl (plain, .gz, .zst); parquet; webdataset (tar); files:
    objects of the same stem are one sample, fields by extension."""
    by: Literal["file", "line"] = "file"
    """For `format: text`: one sample per file, or one per line."""
    key: str | None = None
    """For jsonl and parquet: the field that people see as a sample's key."""
    identity: Literal["version", "content", "path"] = "version"
    """What makes an input a new one: its version (etag; size, mtime and inode), its content, or
    nothing but its path."""
    include: list[str] = []
    """For folders: only relative paths that match one of these globs (`**/*.py`)."""
    exclude: list[str] = []
    """Relative paths that match one of these globs are left out."""
    clips: Clips | None = None
    """Cut videos into clips; one file becomes many samples, with keys that name their seconds."""
    max_sample_bytes: int = Field(default=64 * MIB, ge=1)
    """A larger sample is quarantined as `too-large` without being held in memory."""
    unit_bytes: int = Field(default=64 * MIB, ge=1)
    """About how much of the source one work unit takes: a few minutes of work or less."""
    unit_inputs: int = Field(default=4096, ge=1)
    """At most so many inputs in one work unit."""

    @property
    def uris(self) -> list[str]:
        return [self.uri] if isinstance(self.uri, str) else list(self.uri)


class Stream(_Model):
    """One named token sequence of every sample."""

    tokenizer: str
    """Name of a tokenizer: `tokenmill tokenizers` lists them."""
    field: str | None = None
    """The source's field that the tokenizer reads, or several (`jpg;png`): the first that a sample
    has. May be left out where the source has one."""
    fields: dict[str, str] = {}
    """Tokenizer role -> source field, where there are several."""
    parent: str | None = None
    """Another stream of this pipeline: the tokenizer reads its tokens instead of a field."""
    output: str | None = None
    """One of the tokenizer's outputs, where it has several."""
    checkpoint: str | None = None
    """Path or URI of the weights or vocabulary; `starter`, or left out: the one that comes with
    the tokenizer, where one does."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Checked after fetching and before parsing."""
    config: dict[str, Any] = {}
    """The tokenizer's own settings; part of the recipe. Paths that begin with ./ or ../ start at
    the job file's folder."""
    required: bool = False
    """A sample without the field is quarantined (true) or `absent` (false)."""
    encoding: Literal["auto", "plain", "zstd", "packed"] = "auto"
    """How ids lie in shards; auto measures the first block, once per recipe. packed: as many bits
    per id as the codebook needs."""
    runtime_env: dict[str, Any] = {}
    """Ray runtime environment of this stream's workers."""

    @model_validator(mode="after")
    def _one_way_of_naming_fields(self) -> Stream:
        if self.field is not None and self.fields:
            raise ValueError("give either `field` or `fields`, not both")
        if self.parent is not None and (self.field is not None or self.fields):
            raise ValueError("give either `parent` or a field: a child reads its parent's tokens")
        return self


class Pipeline(_Model):
    source: Source
    streams: dict[str, Stream] = Field(min_length=1)

    @field_validator("streams")
    @classmethod
    def _names(cls, value: dict[str, Stream]) -> dict[str, Stream]:
        _check_names(value, "stream")
        for name, stream in value.items():
            if stream.parent is not None and stream.parent not in value:
                hint = nearest(stream.parent, value.keys() - {name})
                raise ValueError(f"{name}.parent: no stream is called {stream.parent!r}{hint}")
        parents_first(value)
        return value


def parents_first(streams: Mapping[str, Stream]) -> list[str]:
    """The names, each after its parent, else in their order. Raises ValueError for a circle."""
    order: list[str] = []
    for name in streams:
        line: list[str] = []
        at: str | None = name
        while at is not None and at not in order:
            if at in line:
                raise ValueError(
                    f"{at}.parent: the streams {' -> '.join([*line, at])} are a circle"
                )
            line.append(at)
            at = streams[at].parent
        order += reversed(line)
    return order


class Workers(_Model):
    min: int = Field(default=0, ge=0)
    """Kept although they have nothing to do, until the run ends; others are released."""
    max: int | None = Field(default=None, ge=1)
    """Left out: as many as the CPUs (or GPUs) allow."""

    @model_validator(mode="after")
    def _bounds(self) -> Workers:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max}) is less than min ({self.min})")
        return self


class Resources(_Model):
    """What one worker of a stream takes."""

    gpus_per_worker: float = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, ge=0)
    workers: Workers = Workers()
    labels: dict[str, str] = {}
    """Ray only: nodes that have these labels (`ray start --labels`, KubeRay's `labels`)."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _gpus(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("a fraction of one GPU, or whole GPUs: not 1.5")
        return value


class Policy(_Model):
    quarantine_share: float = Field(default=0.05, ge=0, le=1)
    """A run that quarantines more of its samples ends with exit code 1."""
    attempts: int = Field(default=3, ge=1)
    """How often a task may lose its worker before its suspects are quarantined or the run stops."""
    licences: list[Literal["permissive", "non-commercial", "restricted", "unknown"]] = [
        "permissive",
        "unknown",
    ]
    """Use policies of tokenizers and weights that this job accepts."""
    sample_seconds: float = Field(default=30, gt=0)
    """A sample whose decode child makes no progress for so long is quarantined as `timeout`."""
    sample_mib: int = Field(default=4096, ge=256)
    """Address space of a decode child: a sample that wants more is quarantined."""
    encode_seconds: float = Field(default=300, ge=0)
    """A batch that does not come back from the encoder within so long kills its worker; its
    samples then go one by one, and the one that does it again is quarantined. 0: wait for ever."""
    systematic_share: float = Field(default=0.05, gt=0, le=1)
    """The same unexpected error in more of the last 1,000 samples is a fault of the worker's until
    another worker has met it too: nothing of it is quarantined before."""
    systematic_row: int = Field(default=20, ge=2)
    """The same, for so many samples in a row."""
    store_patience: float = Field(default=600, ge=0)
    """Seconds that a store may fail in a row before the run stops with exit code 3."""


class Limits(_Model):
    gpu_hours: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    until: str | None = Field(default=None, pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    """A local time of day; a graceful stop: what is finished is committed, exit 4."""


class Job(_Model):
    name: str
    """People see it in `runs` and in the lease."""
    store: str
    """Where shards and ledger go: a folder or `s3://bucket/prefix`."""
    pipelines: dict[str, Pipeline] = Field(min_length=1)
    resources: dict[str, Resources] = {}
    """By stream name."""
    policy: Policy = Policy()
    limits: Limits = Limits()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        _check_names([value], "job")
        return value

    @field_validator("pipelines")
    @classmethod
    def _names(cls, value: dict[str, Pipeline]) -> dict[str, Pipeline]:
        _check_names(value, "pipeline")
        return value

    @model_validator(mode="after")
    def _resources_name_streams(self) -> Job:
        streams = {name for p in self.pipelines.values() for name in p.streams}
        for name in self.resources:
            if name not in streams:
                hint = nearest(name, streams)
                raise ValueError(f"resources: no stream is called {name!r}{hint}")
        return self


def _check_names(names: Any, what: str) -> None:
    for name in names:
        if not _NAME.match(name):
            raise ValueError(
                f"{what} name {name!r}: 1 to 63 letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit"
            )


def nearest(word: str, known: Any) -> str:
    """`; did you mean 'x'?` or `; known: a, b` or nothing: the tail of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with the same key twice (PyYAML keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)) and key in seen:
                mark = key_node.start_mark
                raise JobError(
                    f"the key {key!r} stands twice in one mapping",
                    where=f"{mark.name}, line {mark.line + 1}",
                    why="YAML would silently keep the last one",
                    remedy="rename or remove one of them",
                )
            if isinstance(key, (str, int, float, bool)):
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_job(text: str, *, name: str, folder: str) -> Job:
    """The job in the YAML `text` of the file `name`; relative paths start at `folder`.

    Raises JobError with file, field, value and remedy.
    """
    try:
        loader = _UniqueKeys(text)
        loader.name = name
        try:
            data = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise JobError("the job file is not YAML", where=name, why=str(error)) from None
    if not isinstance(data, dict):
        raise JobError(
            "the job file is not a mapping", where=name, remedy="`tokenmill init` writes an example"
        )
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        raise JobError(
            "the job file is not valid",
            where=name,
            why="\n       ".join(_explain(error)),
            remedy="`tokenmill init` writes a commented example",
        ) from None
    return _resolve(job, folder)


def _explain(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        where = ".".join(path) or "(the job)"
        if item["type"] == "extra_forbidden":
            yield f"{where}: unknown key{nearest(path[-1], _keys_at(path[:-1]))}"
        elif item["type"] == "missing":
            yield f"{where}: is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = repr(item["input"])
            value = (
                f" (given: {shown})" if len(shown) < 80 and item["type"] != "value_error" else ""
            )
            yield f"{where}: {message}{value}"


def _keys_at(path: list[str]) -> list[str]:
    model: Any = Job
    steps = {
        ("pipelines",): Pipeline,
        ("source",): Source,
        ("clips",): Clips,
        ("streams",): Stream,
        ("resources",): Resources,
        ("workers",): Workers,
        ("policy",): Policy,
        ("limits",): Limits,
    }
    for part in path:
        model = steps.get((part,), model)
    return list(model.model_fields)


def _resolve(job: Job, folder: str) -> Job:
    def absolute(path: str) -> str:
        if "://" in path or not path or path == STARTER:
            return path
        return posixpath.normpath(posixpath.join(folder, posixpath.expanduser(path)))

    def beside(value: Any) -> Any:
        """Paths within a tokenizer's settings, which only their beginning tells apart."""
        if isinstance(value, dict):
            return {key: beside(one) for key, one in value.items()}
        if isinstance(value, str) and value.startswith(("./", "../")):
            return absolute(value)
        return value

    pipelines = {}
    for name, pipeline in job.pipelines.items():
        uris = [absolute(u) for u in pipeline.source.uris]
        source = pipeline.source.model_copy(update={"uri": uris[0] if len(uris) == 1 else uris})
        streams = {
            s: v.model_copy(
                update={
                    "checkpoint": absolute(v.checkpoint) if v.checkpoint else v.checkpoint,
                    "config": beside(v.config),
                }
            )
            for s, v in pipeline.streams.items()
        }
        pipelines[name] = pipeline.model_copy(update={"source": source, "streams": streams})
    return job.model_copy(update={"store": absolute(job.store), "pipelines": pipelines})


def job_json_schema() -> Mapping[str, Any]:
    """The JSON Schema of the job file, for editors."""
    schema = Job.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "tokenmill job file"
    return schema
